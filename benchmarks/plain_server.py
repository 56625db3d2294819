"""The server that a FastAPI tutorial and the diffusers documentation give together: what Darkroom is compared with.

    python -m benchmarks.plain_server FOLDER PORT

Pipelines in one process, a lock around them, one request at a time, the picture in the answer. FOLDER: a model in the
embedded layout. POST /generate {variant, prompt, side, steps, guidance, seed, reference} answers {image} (base64 JPEG).
"""

from __future__ import annotations

import base64
import io
import sys
import threading
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image

from benchmarks.models import Model

TEXT_LENGTH = 64


def create_app(model: Model) -> FastAPI:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    pipelines = {variant: model.pipeline(variant, device, dtype) for variant in ("base", "distilled")}
    for pipeline in pipelines.values():
        pipeline.set_progress_bar_config(disable=True)
    one_at_a_time = threading.Lock()
    app = FastAPI()

    @app.get("/ready")
    def ready() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/generate")
    def generate(wanted: dict[str, Any]) -> dict[str, str]:
        reference = wanted.get("reference")
        with one_at_a_time, torch.inference_mode():
            made = pipelines[wanted["variant"]](
                prompt=wanted["prompt"],
                image=Image.open(io.BytesIO(base64.b64decode(reference))) if reference else None,
                height=wanted["side"],
                width=wanted["side"],
                num_inference_steps=wanted["steps"],
                guidance_scale=wanted["guidance"],
                max_sequence_length=TEXT_LENGTH,
                generator=torch.Generator("cpu").manual_seed(wanted["seed"]),
            )
        file = io.BytesIO()
        made.images[0].save(file, "JPEG", quality=95)
        return {"image": base64.b64encode(file.getvalue()).decode()}

    return app


if __name__ == "__main__":
    app = create_app(Model("served", Path(sys.argv[1]), TEXT_LENGTH))
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
