"""accountManagement: what a self-hosted server can say about an account."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import NAMESPACE_URL, uuid5

from darkroom.api.runware.call import Call, Reply, WireTask, identity
from darkroom.api.runware.fields import Form
from darkroom.tasks.lifecycle import Status

FORM = Form({"operation": {"type": "string", "enum": ["getDetails"]}}, required=["operation"])
COUNTED = 1000  # tasks that the usage looks back on


async def account_management(call: Call, task: WireTask) -> AsyncIterator[Reply]:
    """getDetails. There is no balance to run out of: it is 0, and nothing is ever refused for it."""
    fields = FORM.read(task)
    recent = await call.services.store.recent(call.owner, statuses=(Status.SUCCEEDED,), limit=COUNTED)
    usage = {
        "recentTasks": len(recent),
        "recentImages": sum(done.request.count for done in recent),
        "recentCost": round(sum(done.cost or 0.0 for done in recent), 6),
    }
    about = {
        "operation": fields["operation"],
        "organizationName": "Darkroom",
        "organizationUUID": str(uuid5(NAMESPACE_URL, f"darkroom:{call.owner}")),
        "balance": 0,
        "team": [],
        "apiKeys": [],
        "usage": usage,
    }
    yield Reply(data=({**identity(task), **about},))
