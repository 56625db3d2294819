"""Task → run record, output, log lines, callback payload and delivery record. Pure.

The states have three names on this wire, and the two spellings of cancelled differ on purpose:

    task         status_code   callback status   callback event
    queued       queued
    processing   running
    succeeded    succeeded     succeeded         run.completed
    failed       failed        failed            run.failed
    cancelled    canceled      cancelled         run.cancelled
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec

from darkroom.api.files import image_url
from darkroom.api.runflow.errors import failure
from darkroom.api.runflow.options import named_id, options_of
from darkroom.delivery.policies import foreign
from darkroom.media.fetch import inner_address
from darkroom.tasks.lifecycle import Status, is_final
from darkroom.tasks.task import Delivery, Result, Task
from darkroom.types import ImageFormat, Stage

STATUS_CODE = {
    Status.QUEUED: "queued",
    Status.PROCESSING: "running",
    Status.SUCCEEDED: "succeeded",
    Status.FAILED: "failed",
    Status.CANCELLED: "canceled",
}
CALLBACK_STATUS = {Status.SUCCEEDED: "succeeded", Status.FAILED: "failed", Status.CANCELLED: "cancelled"}
CALLBACK_EVENT = {Status.SUCCEEDED: "run.completed", Status.FAILED: "run.failed", Status.CANCELLED: "run.cancelled"}
STATUSES = (  # GET /v1/runs/statuses: the ones a run here can have
    ("queued", "Queued", False, "Accepted, waiting for the engine."),
    ("running", "Running", False, "The engine is working on it."),
    ("succeeded", "Succeeded", True, "Every picture asked for is in output.outputs."),
    ("failed", "Failed", True, "failure_code and failure_message say why."),
    ("canceled", "Canceled", True, "Stopped by a cancellation before it was done."),
)
EXTENSIONS = {ImageFormat.JPEG: "jpg", ImageFormat.PNG: "png", ImageFormat.WEBP: "webp"}
MAX_ATTEMPTS = 3  # of a callback: the policy "runflow" of delivery/policies.py


def run_record(task: Task, base: str, inline: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The whole record of GET /v1/runs/{id}. inline: data URIs by media id, instead of URLs."""
    options = options_of(task)
    code, stage = failure(task.fault) if task.status is Status.FAILED else (None, None)
    message = (task.fault.message if task.fault else "The run failed.") if code else None
    completed = instant(task.finished_at)
    return {
        "id": task.id,
        "status_code": STATUS_CODE[task.status],
        "status": STATUS_CODE[task.status],
        "target_type": "model",
        "model": options.model,
        "model_id": model_uuid(options.model),
        "input": task.wire.get("input"),
        "output": output(task, base, inline) if task.status is Status.SUCCEEDED else None,
        "metadata": options.metadata,
        "callback_url": options.callback_url,
        "client_ref": options.client_ref,
        "created_at": instant(task.created_at),
        "started_at": instant(task.started_at),
        "completed_at": completed,
        "finished_at": completed,
        "duration_ms": milliseconds(task.created_at, task.finished_at),
        "cost": cost(task),
        "cost_breakdown": None,
        "failure_code": code,
        "failure_message": message,
        "failure_stage_code": stage,
        "failure_stage": stage,
        "error": {"code": code, "message": message} if code else None,
        "request_id": request_id(task),
        "batch_id": options.batch_id,
        "nodes_total": 1,
        "nodes_completed": 1 if task.status is Status.SUCCEEDED else 0,
        "has_logs": True,
        "has_node_runs": False,
        "node_runs": [],
        "source_code": "api",
        **dict.fromkeys(EMPTY_FIELDS),
    }


EMPTY_FIELDS = (  # of products this server does not have
    "target_version",
    "context",
    "links",
    "org_id",
    "created_by",
    "jurisdiction_code",
    "flow_id",
    "flow_version_id",
    "comfyui_workflow_id",
    "resolved_template_id",
)


def output(task: Task, base: str, inline: Mapping[str, str] | None = None) -> dict[str, Any]:
    """`output` of a succeeded run: the five keys of the model's page, pictures in the order of their seeds, and the
    addresses alone under the name by which the callbacks' page reads them.
    """
    made = [result for result in task.results if result.media_id is not None]
    return {
        "outputs": [artifact(task, result, base, inline or {}) for result in made],
        "seed": task.request.seed,
        "model_data": model_data(task, made),
        "nsfw_detected": nsfw(made),
        "timing": timing(task, made),
        "image_urls": [image_url(base, file_name(task, result)) for result in made],
    }


def artifact(task: Task, result: Result, base: str, inline: Mapping[str, str]) -> dict[str, Any]:
    return {
        "type": "image",
        "url": inline.get(str(result.media_id)) or image_url(base, file_name(task, result)),
        "width": result.width,
        "height": result.height,
        "duration": None,
        "content_type": f"image/{task.request.output.format}",
        "file_size": result.record.file_bytes or None,
        "seed": result.seed,
    }


def file_name(task: Task, result: Result) -> str:
    return f"{result.media_id}.{EXTENSIONS[task.request.output.format]}"


def model_data(task: Task, made: Sequence[Result]) -> dict[str, Any]:
    """The prompt, the one really used where it differs, and what the caller should know but no field has room for."""
    options = options_of(task)
    data: dict[str, Any] = {"prompt": task.request.prompt}
    if rewritten := next((result.record.prompt for result in made if result.record.prompt), None):
        data["actual_prompt"] = rewritten
    if any(result.record.demo for result in made):
        data["demo"] = True
    notes = [*options.warnings, *(note for result in made for note in result.record.warnings)]
    if options.ignored:
        notes.append(f"Not fields of this model, ignored: {', '.join(options.ignored)}.")
    if notes:
        data["warnings"] = list(dict.fromkeys(notes))
    return data


def nsfw(made: Sequence[Result]) -> bool | None:
    """True when one was flagged, False when all were cleared, None when one was not checked."""
    found = [result.nsfw for result in made]
    if any(found):
        return True
    return False if found and all(value is False for value in found) else None


def timing(task: Task, made: Sequence[Result]) -> dict[str, float]:
    """Milliseconds by stage; of several pictures made together, the one that took longest in that stage."""
    spent = {str(stage): 0.0 for stage in Stage}
    for result in made:
        for stage, value in result.record.stage_ms.items():
            spent[stage] = max(spent.get(stage, 0.0), value)
    if not spent[Stage.QUEUE]:
        spent[Stage.QUEUE] = milliseconds(task.created_at, task.started_at) or 0.0
    work = (Stage.TEXT, Stage.REFERENCES, Stage.DENOISE, Stage.DECODE)
    named = {f"{stage}_ms": round(value, 3) for stage, value in spent.items()}
    return {**named, "inference_ms": round(sum(spent[stage] for stage in work), 3)}


def callback_payload(task: Task, status: Status, completed_at: datetime) -> dict[str, Any]:
    """The body POSTed to callback_url: these keys in this order, and no others."""
    options = options_of(task)
    return {
        "event": CALLBACK_EVENT[status],
        "run_id": task.id,
        "status": CALLBACK_STATUS[status],
        "output": output(task, options.base_url) if status is Status.SUCCEEDED else None,
        "duration_ms": milliseconds(task.created_at, completed_at),
        "created_at": instant(task.created_at),
        "completed_at": instant(completed_at),
        "metadata": options.metadata,
    }


def delivery_record(delivery: Delivery, about: Mapping[str, str]) -> dict[str, Any]:
    """One entry of the callback history. about: {"run_id": …} or {"batch_id": …}."""
    tried = delivery.attempts
    last = tried[-1] if tried else None
    reason, detail = _given_up(delivery) if delivery.state == "failed" and tried else (None, None)
    return {
        "id": delivery.id,
        **about,
        "callback_url": delivery.owed.url,
        "payload_bytes": delivery.owed.body.decode(errors="replace"),
        "payload": _payload(delivery.owed.body),
        "signing_secret_id": None,
        "is_automatic": delivery.automatic,
        "status_code": delivery.state,
        "failure_reason_code": reason,
        "failure_detail": detail,
        "attempt_count": len(tried),
        "max_attempts": MAX_ATTEMPTS,
        "next_attempt_at": instant(delivery.next_at),
        "created_at": instant(delivery.created_at),
        "updated_at": instant(last.at if last else delivery.created_at),
        "completed_at": instant(last.at) if last and delivery.state != "pending" else None,
        "attempts": [
            {
                "id": named_id(delivery.id, str(number)),
                "delivery_id": delivery.id,
                "attempt_number": number,
                "status_code": attempt.status,
                "response_body": attempt.response,
                "response_time_ms": round(attempt.milliseconds, 3),
                "error_message": attempt.error,
                "created_at": instant(attempt.at),
            }
            for number, attempt in enumerate(tried, 1)
        ],
    }


def _payload(body: bytes) -> Any:
    """What a body says; None for one that another version wrote in another form."""
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        return None


def _given_up(delivery: Delivery) -> tuple[str, str]:
    """failure_reason_code and failure_detail. What is not tried again, though nobody answered, was never sent: the
    address is private, or none that can be called, unless it is a call that this version cannot make.
    """
    tried, last = delivery.attempts, delivery.attempts[-1]
    if last.status is not None:
        return "http_error", f"The receiver answered {last.status}."
    if foreign(delivery.owed):
        code = "not_supported"
    elif len(tried) < MAX_ATTEMPTS or last.error == inner_address().message:
        code = "address_refused"
    else:
        code = "network_error"
    return code, last.error or "There was no answer."


def log_lines(task: Task, deliveries: Sequence[Delivery], reason: str | None = None) -> list[dict[str, Any]]:
    """What happened to a run, oldest first, told from what is stored. reason: of its cancellation."""
    lines = [(task.created_at, *line) for line in _accepted(task)]
    if task.started_at:
        lines.append((task.started_at, "info", "The engine started on it.", {"attempts": task.attempts}))
    for result in task.results:
        lines.append((result.finished_at or task.created_at, *_result_line(task, result)))
    if task.finished_at:
        lines.append((task.finished_at, *_end_line(task, reason)))
    for delivery in deliveries:
        for attempt in delivery.attempts:
            good = attempt.status is not None and 200 <= attempt.status < 300
            told = f"Callback to {delivery.owed.url}: {attempt.error or f'{attempt.status}.'}"
            lines.append((attempt.at, "info" if good else "warning", told, {"delivery_id": delivery.id}))
    lines.sort(key=lambda line: line[0])
    return [
        {
            "id": named_id(task.id, "log", str(number)),
            "run_id": task.id,
            "level_code": level,
            "message": message,
            "timestamp": instant(at),
            "meta": meta,
        }
        for number, (at, level, message, meta) in enumerate(lines)
    ]


Line = tuple[str, str, dict[str, Any]]  # level, message, meta


def _accepted(task: Task) -> list[Line]:
    options = options_of(task)
    request = task.request
    size = {"width": request.width, "height": request.height, "steps": request.steps, "num_images": request.count}
    lines: list[Line] = [("info", f"Accepted for {options.model}.", size)]
    if options.ignored:
        told = f"Not fields of this model, ignored: {', '.join(options.ignored)}."
        lines.append(("warning", told, {"fields": list(options.ignored)}))
    lines.extend(("warning", warning, {}) for warning in options.warnings)
    return lines


def _result_line(task: Task, result: Result) -> Line:
    name = f"Picture {result.index + 1} of {task.request.count}"
    if result.fault:
        return "error", f"{name} could not be made: {result.fault.message}", {"code": result.fault.code}
    record = result.record
    meta = {"seed": result.seed, "stage_ms": record.stage_ms, "steps_reused": record.steps_reused}
    return "info", f"{name} is done: {result.width}×{result.height}, seed {result.seed}.", meta


def _end_line(task: Task, reason: str | None) -> Line:
    if task.status is Status.FAILED:
        code, stage = failure(task.fault)
        message = task.fault.message if task.fault else "The run failed."
        return "error", message, {"failure_code": code, "failure_stage_code": stage}
    return "info", f"The run ended: {STATUS_CODE[task.status]}.", {"reason": reason} if reason else {}


def search_row(task: Task) -> dict[str, Any]:
    """The values a run is searched and sorted by; keys are search.RUN_FIELDS."""
    options = options_of(task)
    price = cost(task)
    return {
        "id": task.id,
        "status_code": STATUS_CODE[task.status],
        "client_ref": options.client_ref,
        "model": options.model,
        "model_id": model_uuid(options.model),
        "batch_id": options.batch_id,
        "request_id": request_id(task),
        "failure_code": failure(task.fault)[0] if task.status is Status.FAILED else None,
        "created_at": task.created_at,
        "started_at": task.started_at,
        "completed_at": task.finished_at,
        "duration_ms": milliseconds(task.created_at, task.finished_at),
        "cost": float(price) if price is not None else None,
    }


def cost(task: Task) -> str | None:
    """US dollars as a decimal string; only success costs anything. None until it has ended."""
    if not is_final(task.status):
        return None
    return decimal(task.cost) if task.status is Status.SUCCEEDED and task.cost else "0"


def decimal(dollars: float) -> str:
    return f"{Decimal(repr(round(dollars, 9))).normalize():f}"


def instant(moment: datetime | None) -> str | None:
    """ISO 8601 with microseconds and +00:00, never Z."""
    return moment.isoformat(timespec="microseconds") if moment else None


def milliseconds(start: datetime, end: datetime | None) -> int | None:
    return max(0, round((end - start).total_seconds() * 1000)) if end else None


def model_uuid(model: str) -> str:
    """`model_id`: the same for a model on every server."""
    return named_id("model", model)


def request_id(task: Task) -> str:
    """Runflow-Request-Id: one per run."""
    return task.external_id
