"""The list of files leaves no folder out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import architecture


def test_a_folder_without_a_title_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("worker.py", "engine/row.py", "tasks/migrations/env.py", "api/acme/http.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text('"""What it does."""')
    monkeypatch.setattr(architecture, "SOURCE", tmp_path)
    with pytest.raises(LookupError, match=r"^api/acme would not be listed: .*PARTS"):
        architecture.file_list()
    monkeypatch.setitem(architecture.PARTS, "api/acme", "api/acme/: another")
    assert "### api/acme/: another\n\n| file | idea |\n| --- | --- |\n| `api/acme/http.py` | What it does. |" in (
        architecture.file_list()
    )
