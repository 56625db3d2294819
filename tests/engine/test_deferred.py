"""Packages whose code waits until it is needed, and that nobody can tell from others afterwards."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from darkroom.engine.deferred import deferring

FILES = {
    "big/__init__.py": "",
    "big/heavy.py": "import ran; ran.now('heavy')",
    "big/models/__init__.py": "import ran; ran.now('models')\nfrom .one import Model\nfrom .two import Other\n",
    "big/models/one.py": "from ..loaders import load, Loader, LoadError\n"
    "class Model:\n"
    "    def read(self, loader: Loader | None = None, other: None | Loader = None): return load(3)\n"
    "    def is_loader(self, thing): return isinstance(thing, Loader)\n",
    "big/models/two.py": "import big.heavy\nfrom .one import Model\nclass Other(Model): pass\n",
    "big/models/sub.py": "from ..loaders import Loader\nclass Sub(Loader): pass\n",
    "big/models/compiled.py": "try: import compiler\nexcept ImportError: compiler = None\n",
    "big/loaders.py": "import ran; ran.now('loaders')\n"
    "class LoadError(Exception): pass\n"
    "class Loader:\n    size = 7\n"
    "def load(n): return n * 2\n",
    "big/replaced.py": "import ran, sys, types\nran.now('replaced')\n"
    "sys.modules[__name__] = types.SimpleNamespace(name='another')\n",
    "big/broken.py": "import ran; ran.now('broken')\nraise ValueError('broken')\n",
    "compiler.py": "",
    "outside.py": "import compiler\n",
    "big/models/uses.py": "import outside\n",
    "ran.py": "what = []\ndef now(name): what.append(name)\n",
}


@pytest.fixture(autouse=True)
def big(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that imports all it has."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in ("big", "compiler", "outside", "ran")]:
        del sys.modules[name]


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


def ran() -> list[str]:
    what: list[str] = module("ran").what
    return what


def test_a_package_does_not_run_for_one_of_its_modules() -> None:
    with deferring({"big.models"}):
        module("big.models.one")
    assert ran() == ["loaders"]


def test_it_runs_when_asked_for_what_is_not_there_and_has_the_same_classes() -> None:
    with deferring({"big.models"}):
        one = module("big.models.one")
    package = module("big.models")
    assert package.Model is one.Model
    assert ran() == ["loaders", "models", "heavy"]
    assert issubclass(package.Other, one.Model) and module("big.models") is package and package.one is one
    assert package.__file__ and package.__file__.endswith("__init__.py") and package.__spec__ is not None
    with pytest.raises(AttributeError, match=r"big\.models.*nothing"):
        _ = package.nothing
    assert ran() == ["loaders", "models", "heavy"], "it runs once"


def test_whoever_looks_at_all_modules_does_not_make_it_run() -> None:
    with deferring({"big.models"}):
        module("big.models.one")
    package = module("big.models")
    assert not hasattr(package, "__warningregistry__")
    assert "one" in dir(package)
    assert "models" not in ran()


def test_names_of_a_late_module_stand_for_the_real_ones() -> None:
    with deferring({"big.models"}, late={"big.loaders"}):
        one = module("big.models.one")
        assert ran() == []
    assert one.Model().read() == 6
    assert ran() == ["loaders"]
    loaders = module("big.loaders")
    assert one.Model().is_loader(loaders.Loader()) and not one.Model().is_loader(3)
    assert (one.load, one.Loader, one.LoadError) == (loaders.load, loaders.Loader, loaders.LoadError)


@pytest.mark.parametrize(
    "use",
    [
        lambda name: name.size == 7,
        lambda name: isinstance(name(), module("big.loaders").Loader),
        lambda name: isinstance(module("big.loaders").Loader(), name),
        lambda name: issubclass(module("big.loaders").Loader, name),
    ],
)
def test_a_stand_in_can_be_used_like_the_class_it_stands_for(use: Callable[[object], bool]) -> None:
    with deferring({"big.models"}, late={"big.loaders"}):
        stand_in = module("big.models.one").Loader
    assert ran() == []
    assert use(stand_in)


def test_a_stand_in_can_be_inherited_from_even_while_others_are_handed_out() -> None:
    with deferring({"big.models"}, late={"big.loaders"}):
        sub = module("big.models.sub").Sub
    assert sub.__mro__[1] is module("big.loaders").Loader


def test_what_is_absent_is_absent_here_and_now_only() -> None:
    elsewhere: list[str] = []
    with deferring({"big.models"}, absent={"compiler"}):
        assert module("big.models.compiled").compiler is None
        thread = threading.Thread(target=lambda: elsewhere.append(module("compiler").__name__))
        thread.start()
        thread.join()
    assert elsewhere == ["compiler"]
    del sys.modules["compiler"]
    assert module("compiler")


def test_what_is_absent_is_there_for_others_that_are_imported_on_the_way() -> None:
    with deferring({"big.models"}, absent={"compiler"}):
        assert module("big.models.uses").outside.compiler


def test_what_is_absent_is_found_when_it_was_loaded_before() -> None:
    compiler = module("compiler")
    with deferring({"big.models"}, absent={"compiler"}):
        assert module("big.models.compiled").compiler is compiler


def test_after_an_error_nothing_is_left_of_the_attempt() -> None:
    finders = list(sys.meta_path)
    with pytest.raises(ZeroDivisionError), deferring({"big.models"}, late={"big.loaders"}):
        module("big.models.one")
        _ = 1 / 0
    assert not [name for name in sys.modules if name.startswith("big")]
    assert sys.meta_path == finders
    assert module("big.models").Model().read() == 6


def test_a_package_that_is_loaded_already_is_left_alone() -> None:
    module("big")
    with deferring({"big.models"}, late={"big.loaders"}):
        module("big.models.one")
    assert ran() == ["models", "loaders", "heavy"]


def test_a_module_that_puts_another_object_in_its_place() -> None:
    with deferring({"big.replaced"}):
        deferred = module("big.replaced")
    assert deferred.name == "another" and deferred.name == "another"
    assert ran() == ["replaced"]


def test_an_error_of_its_own_is_raised_each_time() -> None:
    with deferring({"big.broken"}):
        broken = module("big.broken")
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            _ = broken.anything
    assert ran() == ["broken", "broken"]


def test_two_threads_that_ask_at_once_make_it_run_once() -> None:
    with deferring({"big.models"}):
        module("big.models.one")
    package, found, gate = module("big.models"), [], threading.Barrier(4)

    def ask() -> None:
        gate.wait()
        found.append(package.Other)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1
    assert ran().count("models") == 1
