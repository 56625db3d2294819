"""What an accepted task remembers of its wire, beyond the request itself: how and where its results are delivered."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from darkroom.tasks.task import Task
from darkroom.types import Value

DIALECT = "runware"
IMAGE_INFERENCE = "imageInference"


class OutputType(StrEnum):
    URL = "URL"
    BASE64 = "base64Data"
    DATA_URI = "dataURI"


class Options(Value, frozen=True, kw_only=True):
    """Kept in Task.options.

    task_uuid: as the client spelled it. base_url: where clients reach this server, for webhooks. sync: the client
    waits for the results themselves. cost: of one result, US dollars. seed_sent: the client's seed where it is above
    what a generator takes (the documented maximum is 2^63 rounded up to a double), to be echoed as it came.
    """

    task_uuid: str
    outputs: tuple[OutputType, ...] = (OutputType.URL,)
    sync: bool = True
    webhook_url: str | None = None
    upload_url: str | None = None
    include_cost: bool = False
    cost: float = 0.0
    seed_sent: int | None = None
    base_url: str = ""

    @property
    def inline(self) -> bool:
        """Results carry the file itself."""
        return any(output is not OutputType.URL for output in self.outputs)


def options_of(task: Task) -> Options:
    return msgspec.convert(task.options, Options)
