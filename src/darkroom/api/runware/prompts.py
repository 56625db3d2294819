"""promptEnhance: a longer prompt from the card's own text model, as prompt upsampling writes it for a picture.

The engine knows one kind of work, a picture; so a version is taken from the record of the smallest one (one step,
the card's smallest size). Nothing of it is stored.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

from darkroom.api.runware.call import Call, Reply, WireTask, identity, nothing_done
from darkroom.api.runware.fields import Form
from darkroom.catalog.card import Card
from darkroom.config import EngineKind
from darkroom.errors import FeatureNotInstalled, InferenceError
from darkroom.types import Failure, ImageRequest, Job, Picture

MAX_WORDS = 380  # what the official SDKs send
DEFAULT_MODEL = "runware:400@4"
FORM = Form(
    {
        "prompt": {"type": "string", "minLength": 1, "maxLength": 10000},
        "promptMaxLength": {"type": "integer", "minimum": 4, "maximum": 400},
        "promptVersions": {"type": "integer", "minimum": 1, "maximum": 5},
        "model": {"type": "string", "minLength": 1, "maxLength": 200},
        "includeCost": {"type": "boolean"},
        "deliveryMethod": {"type": "string", "enum": ["sync", "async"]},
    },
    required=["prompt"],
)
_one_at_a_time = asyncio.Semaphore(2)  # the pictures people wait for come first


async def prompt_enhance(call: Call, task: WireTask) -> AsyncIterator[Reply]:
    """One item per version, all in one reply: clients take the first message. promptMaxLength counts words."""
    fields = FORM.read(task)
    card = call.services.catalog.resolve(fields.get("model", DEFAULT_MODEL))
    if call.services.settings.engine is not EngineKind.FAKE:
        call.services.installed.locate(card)
    if call.dry_run:
        yield nothing_done(task)
        return
    words = fields.get("promptMaxLength", MAX_WORDS)
    items = []
    for place in range(fields.get("promptVersions", 1)):
        async with _one_at_a_time:
            text = await longer(call, card, fields["prompt"], f"{task['taskUUID']}:{place}")
        item = {**identity(task), "text": " ".join(text.split()[:words])}
        if fields.get("includeCost"):
            item["cost"] = 0.0
        items.append(item)
    yield Reply(data=tuple(items))


async def longer(call: Call, card: Card, prompt: str, job_id: str) -> str:
    """One version. Raises InferenceError, FeatureNotInstalled when the card's text model cannot write."""
    rules = card.parameters["width"]
    side = int(rules.min or 256)
    request = ImageRequest(
        card=card.id,
        prompt=prompt,
        width=side,
        height=side,
        steps=1,
        seed=secrets.randbelow(2**32),
        upsample_prompt=True,
    )
    async for event in call.services.pool.run(Job(id=job_id, request=request, results=(0,), scope=call.owner)):
        if isinstance(event, Failure):
            raise (
                FeatureNotInstalled(event.message)
                if event.code == FeatureNotInstalled.code
                else InferenceError(event.message)
            )
        if isinstance(event, Picture):
            if event.record.prompt is None:
                raise FeatureNotInstalled("The text model that is installed here can read prompts, but not write them.")
            return event.record.prompt
    raise InferenceError("The engine gave no prompt back; try again.")
