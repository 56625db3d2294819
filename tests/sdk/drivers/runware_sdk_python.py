"""Drives PyPI `runware-sdk` (the current Python SDK), unmodified, through one scenario; transport in the argument.

    python runware_sdk_python.py SCENARIO '{"url": …, "key": …, "transport": "rest" or "websocket", …}'

Prints one line of JSON: {"value": …} or {"error": {…}}. "sent" on a line of its own says that the work is under way.
"""

# ruff: noqa: T201, ASYNC230 (a small program: it prints its result and may read a file)

import asyncio
import base64
import json
import sys

from runware import Runware

PROMPT = "a lighthouse at dusk"
BASE = {"taskType": "imageInference", "model": "runware:400@4", "width": 256, "height": 256, "steps": 4}


def client_for(given):
    return Runware(
        api_key=given["key"],
        transport=given["transport"],
        http_base_url=given["url"] + "/v1",
        ws_base_url=given["url"].replace("http", "ws", 1) + "/v1",
        max_retries=6,  # the default gives up after 7 s, and a server on a busy machine may need longer to come back
    )


async def make(given, **more):
    async with client_for(given) as client:
        return await client.run({**BASE, "positivePrompt": PROMPT, "deliveryMethod": "sync", **more})


async def connect(given):
    async with client_for(given) as client:
        await client.account_management({"operation": "getDetails"})
        return client.is_connected


async def wrong_key(given):
    return await connect(given)


async def one(given):
    return await make(given, seed=7, includeCost=True)


async def three(given):
    return await make(given, numberResults=3, seed=7)


async def reference(given):
    with open(given["file"], "rb") as file:
        text = base64.b64encode(file.read()).decode()
    return await make(given, inputs={"referenceImages": [text]})


async def polling(given):
    return await make(given, positivePrompt=given["prompt"], numberResults=3, deliveryMethod="async")


async def refused(given):
    return await make(given, width=100)


async def failing_second(given):
    return await make(given, positivePrompt="[fail 1] two boats", numberResults=2)


async def restart(given):
    async with client_for(given) as client:
        ask = {**BASE, "positivePrompt": given["prompt"], "taskUUID": given["uuid"], "deliveryMethod": "async"}
        work = asyncio.create_task(client.run(ask))
        await asyncio.sleep(0.3)
        print("sent", flush=True)
        return await work


async def upload(given):
    with open(given["file"], "rb") as file:
        text = base64.b64encode(file.read()).decode()
    async with client_for(given) as client:
        [kept] = await client.media_storage({"operation": "upload", "media": text})
        images = await client.run(
            {
                **BASE,
                "positivePrompt": PROMPT,
                "deliveryMethod": "sync",
                "inputs": {"referenceImages": [kept["mediaUUID"]]},
            }
        )
        return {"upload": kept, "images": images}


async def webhook(given):
    return await make(given, webhookURL=given["webhook"], deliveryMethod="async")


async def main():
    name, given = sys.argv[1], json.loads(sys.argv[2])
    try:
        print(json.dumps({"value": await globals()[name](given)}))
    except Exception as error:
        told = {key: getattr(error, key, None) for key in ("code", "parameter", "task_uuid", "status_code")}
        print(json.dumps({"error": {"type": type(error).__name__, "message": str(error), **told}}, default=str))


asyncio.run(main())
