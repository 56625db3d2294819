"""The documents say what is true: every module is in the architecture, the versions agree, links lead somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tools import architecture

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "darkroom"
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
MODULES = [path for path in sorted(SOURCE.rglob("*.py")) if path.name != "__init__.py" and "versions" not in path.parts]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|<img[^>]*src=\"([^\"]+)\"")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_every_module_is_in_the_architecture(path: Path) -> None:
    assert f"`{path.relative_to(SOURCE).as_posix()}`" in ARCHITECTURE


def test_the_architecture_names_no_module_that_is_gone() -> None:
    named = set(re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py)`", ARCHITECTURE))
    gone = sorted(name for name in named if not (SOURCE / name).exists() and not (ROOT / name).exists())
    assert not gone


def test_version_and_last_release_of_the_changelog_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    top = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert top is not None
    assert top[1] == version


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for groups in LINK.findall(page.read_text()):
        target = (groups[0] or groups[1]).partition("#")[0]
        if target and not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_served_manual_has_what_its_pages_link_to() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    served = {file for path in included for file in (ROOT / path, *(ROOT / path).rglob("*.md"))}
    for page in (file for file in served if file.suffix == ".md"):
        for groups in LINK.findall(page.read_text()):
            target = (groups[0] or groups[1]).partition("#")[0]
            if target and not re.match(r"[a-z]+:", target):
                assert (page.parent / target).resolve() in served, f"{page.name}: {target} is not in the wheel"


def test_the_list_of_files_is_up_to_date() -> None:
    assert architecture.with_list(ARCHITECTURE) == ARCHITECTURE, "python -m tools.architecture rewrites it"
