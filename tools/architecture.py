"""Keeps the list of files in docs/architecture.md: every module with the first sentence of its docstring.

python -m tools.architecture        rewrite the list; tests/test_docs.py fails while it is out of date
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "darkroom"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- files: python -m tools.architecture -->", "<!-- end of files -->"
PARTS = {  # in the order of the layers, lowest first
    "": "The root",
    "catalog": "catalog/: what is known about models",
    "engine": "engine/: needs torch, has never heard of HTTP, tasks or SQL",
    "tasks": "tasks/: the only place that knows SQL",
    "media": "media/: files in and out",
    "delivery": "delivery/: what is owed to others",
    "api": "api/: what both dialects share, and the pages",
    "api/runware": "api/runware/: the task API",
    "api/runflow": "api/runflow/: the runs API",
    "cli": "cli/: the command line",
}


def file_list() -> str:
    """The Markdown between the markers. Raises LookupError for a folder that PARTS leaves out."""
    sections, listed = [], set[Path]()
    for part, title in PARTS.items():
        folder = SOURCE / part
        paths = sorted(folder.rglob("*.py") if part not in ("", "api") else folder.glob("*.py"))
        listed |= set(paths)
        rows = [f"| `{path.relative_to(SOURCE).as_posix()}` | {idea(path)} |" for path in paths if path.name[0] != "_"]
        rows += [f"| `{part}/__main__.py` | {idea(path)} |" for path in paths if path.name == "__main__.py"]
        sections.append("\n".join([f"### {title}", "", "| file | idea |", "| --- | --- |", *rows]))
    if left := {path.parent.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if path not in listed}:
        raise LookupError(
            f"{', '.join(sorted(left))} would not be listed: give each a title in PARTS of tools/architecture.py"
        )
    return "\n\n".join(sections)


def idea(path: Path) -> str:
    """The first paragraph of a module's docstring, up to the end of its first sentence."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    sentence = re.match(r"(.+?[.?])(?:\s|$)", " ".join(text.split("\n\n")[0].split()))
    return (sentence[1] if sentence else text).replace("|", "\\|")


def with_list(page: str) -> str:
    """The page with its list brought up to date."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n\n{file_list()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_list(PAGE.read_text()))
