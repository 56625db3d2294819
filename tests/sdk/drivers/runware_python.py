"""Drives PyPI `runware` (the older Python SDK), unmodified, through one scenario. Runs in that SDK's environment.

    python runware_python.py SCENARIO '{"url": "http://127.0.0.1:8000", "key": "…", …}'

Prints one line of JSON: {"value": …} or {"error": {…}}. "sent" on a line of its own says that the work is under way.
"""

# ruff: noqa: T201 (a small program: it prints its result and may read a file)

import asyncio
import dataclasses
import json
import sys

from runware import IAsyncTaskResponse, IImageInference, Runware

PROMPT = "a lighthouse at dusk"
BASE = {"model": "runware:400@4", "width": 256, "height": 256, "steps": 4}


async def connected(given):
    client = Runware(api_key=given["key"], url=given["url"].replace("http", "ws", 1) + "/v1")
    await client.connect()
    return client


def shown(images):
    if isinstance(images, IAsyncTaskResponse):
        return dataclasses.asdict(images)
    return [{k: v for k, v in dataclasses.asdict(image).items() if v is not None} for image in images]


async def make(given, **more):
    client = await connected(given)
    try:
        return shown(await client.imageInference(IImageInference(**{"positivePrompt": PROMPT, **BASE, **more})))
    finally:
        await client.disconnect()


async def connect(given):
    client = await connected(given)
    ready = client.connected()
    await client.disconnect()
    return ready


async def wrong_key(given):
    return await make(given)  # this SDK says so at the first request


async def one(given):
    return await make(given, seed=7, includeCost=True)


async def three(given):
    return await make(given, numberResults=3, seed=7)


async def reference(given):
    return await make(given, inputs={"referenceImages": [given["file"]]})


async def polling(given):
    client = await connected(given)
    try:
        ask = IImageInference(**BASE, positivePrompt=given["prompt"], numberResults=3, deliveryMethod="async")
        accepted = await client.imageInference(ask)
        return shown(await client.getResponse(taskUUID=accepted.taskUUID, numberResults=3))
    finally:
        await client.disconnect()


async def refused(given):
    return await make(given, width=100)


async def failing_second(given):
    return await make(given, positivePrompt="[fail 1] two boats", numberResults=2)


async def restart(given):
    client = await connected(given)
    try:
        ask = IImageInference(**BASE, positivePrompt=given["prompt"], taskUUID=given["uuid"])
        work = asyncio.create_task(client.imageInference(ask))
        await asyncio.sleep(0.3)
        print("sent", flush=True)
        return shown(await work)
    finally:
        await client.disconnect()


async def upload(given):
    client = await connected(given)
    try:
        kept = await client.uploadImage(given["file"])
        ask = IImageInference(**BASE, positivePrompt=PROMPT, inputs={"referenceImages": [kept.imageUUID]})
        return {"upload": dataclasses.asdict(kept), "images": shown(await client.imageInference(ask))}
    finally:
        await client.disconnect()


async def webhook(given):
    return await make(given, webhookURL=given["webhook"], deliveryMethod="async")


async def main():
    name, given = sys.argv[1], json.loads(sys.argv[2])
    try:
        print(json.dumps({"value": await globals()[name](given)}))
    except Exception as error:
        told = getattr(error, "error_data", None) or {"message": str(error)}
        print(json.dumps({"error": {"type": type(error).__name__, **told}}, default=str))


asyncio.run(main())
