"""A longer prompt, written by the card's own text model.

The text encoders of FLUX.2 are whole language models of which the pipelines only read hidden states; here one is loaded
with its head and asked to write. The instruction is the one published with FLUX.2, taken from diffusers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from darkroom.engine.from_diffusers import SYSTEM_MESSAGE_UPSAMPLING_I2I, SYSTEM_MESSAGE_UPSAMPLING_T2I
from darkroom.errors import InferenceError, WeightsError

TEMPERATURE = 0.15  # what FLUX.2's authors advise: nearly the model's first choice, but not the same for every seed
MAX_NEW_TOKENS = 512
MAX_PROMPT_TOKENS = 1536  # of the prompt alone: cutting the whole conversation would cut its end, the part that matters


class PromptWriter:
    """One language model, ready to write. Slow to load and large: keep it only while it is needed."""

    def __init__(
        self, encoder: str, text_encoder: Path, tokenizer: Path, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        """encoder: "qwen3" or "mistral3", of the card. Raises WeightsError when the folders do not hold it."""
        loader = AutoModelForImageTextToText if encoder == "mistral3" else AutoModelForCausalLM
        try:
            self.model = loader.from_pretrained(
                text_encoder, dtype=dtype, local_files_only=True, use_safetensors=True
            ).to(device)
            self.tokenizer = load_tokenizer(tokenizer)
        except (OSError, ValueError, RuntimeError) as error:
            raise WeightsError(f"The text model cannot be loaded for writing prompts: {error}") from error
        self.model.eval()
        self.typed_content = encoder == "mistral3"

    @torch.inference_mode()
    def write(self, prompt: str, *, seed: int, editing: bool = False, max_new_tokens: int | None = None) -> str:
        """The prompt to use instead: the same for the same seed. editing: there are reference images.

        Raises InferenceError when the model writes nothing.
        """
        inputs = self._inputs(prompt, editing)
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # generate() draws from the process's generator
            torch.manual_seed(seed)
            output = self.model.generate(
                **inputs,
                max_new_tokens=max_new_tokens or MAX_NEW_TOKENS,
                do_sample=True,
                temperature=TEMPERATURE,
                top_k=0,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        written = self.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        if not written:
            raise InferenceError("The text model wrote no prompt; try another seed or switch promptUpsampling off.")
        return str(written)

    def _inputs(self, prompt: str, editing: bool) -> dict[str, Any]:
        instruction = SYSTEM_MESSAGE_UPSAMPLING_I2I if editing else SYSTEM_MESSAGE_UPSAMPLING_T2I
        texts = (("system", instruction), ("user", self._shortened(prompt.replace("[IMG]", ""))))
        messages = [{"role": role, "content": self._content(text)} for role, text in texts]
        encoded = self.tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=True,
            enable_thinking=False,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        return {name: encoded[name].to(self.model.device) for name in ("input_ids", "attention_mask")}

    def _shortened(self, prompt: str) -> str:
        tokens = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return prompt if len(tokens) <= MAX_PROMPT_TOKENS else str(self.tokenizer.decode(tokens[:MAX_PROMPT_TOKENS]))

    def _content(self, text: str) -> str | list[dict[str, str]]:
        return [{"type": "text", "text": text}] if self.typed_content else text


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, or the one inside the processor that dev ships in its place."""
    if (folder / "processor_config.json").is_file() or (folder / "preprocessor_config.json").is_file():
        return AutoProcessor.from_pretrained(folder, local_files_only=True).tokenizer
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
