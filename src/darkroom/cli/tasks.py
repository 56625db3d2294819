"""darkroom tasks: what became of a task, its results, and every try to tell somebody about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from darkroom.cli.common import DataOption, print_table, with_store
from darkroom.errors import NotFound
from darkroom.tasks.lifecycle import Status
from darkroom.tasks.task import DIALECTS

if TYPE_CHECKING:
    from darkroom.tasks.sql import SqlTaskStore
    from darkroom.tasks.task import Delivery, Task

app = typer.Typer(help="Tasks: list the newest, show one with its results and deliveries.", no_args_is_help=True)


@app.command("list")
def list_tasks(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many.")] = 20,
    data: DataOption = None,
) -> None:
    """List the newest tasks of all keys."""

    async def work(store: SqlTaskStore) -> tuple[list[Task], dict[str, int]]:
        found = [task for owner in await owners(store) for task in await store.recent(owner, limit=limit)]
        newest = sorted(found, key=lambda task: task.created_at, reverse=True)[:limit]
        return newest, await store.queue_positions([task.id for task in newest if task.status is Status.QUEUED])

    tasks, positions = with_store(data, work)
    rows = (
        (
            task.id,
            task.dialect,
            task.external_id,
            standing(task, positions.get(task.id)),
            task.request.card,
            f"{task.created_at:%Y-%m-%d %H:%M:%S}",
        )
        for task in tasks
    )
    columns = ("id", "dialect", "client's id", "status", "model", "created")
    print_table("", columns, rows, whole=("id", "client's id", "model"), empty="There are no tasks.")


@app.command("show")
def show_task(
    uuid: Annotated[
        str, typer.Argument(metavar="UUID", help="The client's id (taskUUID, run id) or the server's own.")
    ],
    data: DataOption = None,
) -> None:
    """Show one task: state, results, webhooks and uploads with every attempt."""

    async def work(store: SqlTaskStore) -> tuple[Task, list[Delivery], dict[str, int]]:
        task = await find(store, uuid)
        return task, await store.deliveries(task.id), await store.queue_positions([task.id])

    task, deliveries, positions = with_store(data, work)
    print_table("Task", ("", ""), facts(task, positions.get(task.id)))
    results = (
        (r.index, r.seed, r.media_id or "", f"{r.width}×{r.height}" if r.media_id else "", stages(r.record.stage_ms),
         f"{r.fault.code}: {r.fault.message}" if r.fault else "")
        for r in task.results
    )  # fmt: skip
    print_table(
        "Results",
        ("index", "seed", "picture", "size", "seconds", "fault"),
        results,
        whole=("picture",),
        empty="There are no results yet.",
    )
    print_table(
        "Deliveries",
        ("kind", "url", "state", "at", "status", "ms", "error"),
        (row for delivery in deliveries for row in attempts(delivery)),
        empty="No webhook or upload is owed.",
    )


async def find(store: SqlTaskStore, uuid: str) -> Task:
    """By our id, else by the client's under any key and dialect. Raises NotFound."""
    try:
        return await store.get(uuid)
    except NotFound:
        for owner in await owners(store):
            for dialect in DIALECTS:
                try:
                    return await store.find(owner, dialect, uuid)
                except NotFound:
                    continue
    raise NotFound(f"There is no task {uuid!r} here; records are kept as long as their pictures.", what="task")


async def owners(store: SqlTaskStore) -> list[str]:
    return ["local", *(key.id for key in await store.keys.list())]


def standing(task: Task, position: int | None) -> str:
    """ "succeeded", or of a task that waits how many come before it: "queued, 3 ahead"."""
    if position is None:
        return task.status
    return f"{task.status}, {position} ahead" if position else f"{task.status}, next"


def facts(task: Task, position: int | None = None) -> list[tuple[str, str]]:
    times = {"created": task.created_at, "started": task.started_at, "finished": task.finished_at}
    return [
        ("id", task.id),
        (f"id of the client ({task.dialect})", task.external_id),
        ("owner", task.owner),
        ("status", standing(task, position)),
        ("fault", f"{task.fault.code}: {task.fault.message}" if task.fault else ""),
        *((name, f"{at:%Y-%m-%d %H:%M:%S}" if at else "") for name, at in times.items()),
        ("attempts", str(task.attempts)),
        ("model", task.request.card),
        ("prompt", task.request.prompt),
        ("size, steps", f"{task.request.width}×{task.request.height}, {task.request.steps}"),
        ("cost", "" if task.cost is None else f"${task.cost:f}"),
    ]


def stages(stage_ms: dict[str, float]) -> str:
    """ "text 0.12 · denoise 1.30 · decode 0.05": seconds by stage, in the order they ran."""
    return " · ".join(f"{name} {ms / 1000:.2f}" for name, ms in stage_ms.items())


def attempts(delivery: Delivery) -> list[tuple[object, ...]]:
    """One row a try; one without a time when nothing was tried yet."""
    head = (delivery.owed.kind, delivery.owed.url, delivery.state)
    if not delivery.attempts:
        waits = f"next try {delivery.next_at:%H:%M:%S}" if delivery.next_at else ""
        return [(*head, waits, "", "", "")]
    return [
        (*head, f"{a.at:%Y-%m-%d %H:%M:%S}", a.status or "", f"{a.milliseconds:.0f}", a.error or "")
        for a in delivery.attempts
    ]
