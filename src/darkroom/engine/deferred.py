"""A few modules of a large package, without what they and the packages around them import on the way.

    with deferring({"big.models"}, late={"big.loaders"}, absent={"heavy"}):
        from big.models.one import Model      # big/models/__init__.py, which imports a hundred models, does not run

Nothing is replaced for good. A deferred package runs the first time that something is asked of it which is not there
yet, in the same module object, so `import big` later on works as ever and finds the same Model. A late module runs the
first time that one of its names is used; until then importers hold stand-ins.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FrameType, ModuleType
from typing import Any, Union


@contextmanager
def deferring(packages: Collection[str], *, late: Collection[str] = (), absent: Collection[str] = ()) -> Iterator[None]:
    """Within it, and on this thread only, these modules are imported without being run.

    packages: their own code waits until it is needed. late: these too, and `from late import name` gives a stand-in.
    absent: cannot be imported by modules beside these, which then take their own way without them; what is loaded
    already is found.
    After an error everything imported from the same top-level packages is forgotten, as if it had never been tried.
    A package that was loaded before is left alone: what it costs has been paid.
    """
    roots = {name.partition(".")[0] for name in (*packages, *late)}
    if roots & sys.modules.keys():
        yield
        return
    finder = _Finder(packages, late, absent, roots)
    sys.meta_path.insert(0, finder)
    try:
        yield
    except BaseException:
        for name in [name for name in sys.modules if name.partition(".")[0] in roots]:
            del sys.modules[name]
        raise
    finally:
        finder.open = False
        sys.meta_path.remove(finder)


class _Finder(MetaPathFinder):
    def __init__(
        self, packages: Collection[str], late: Collection[str], absent: Collection[str], roots: Collection[str]
    ) -> None:
        self.late, self.absent, self.roots = frozenset(late), frozenset(absent), frozenset(roots)
        self.deferred = self.late.union(packages)
        self.thread = threading.get_ident()
        self.open = True

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if threading.get_ident() != self.thread:
            return None
        if fullname in self.absent and _importer().partition(".")[0] in self.roots:
            raise ModuleNotFoundError(f"{fullname} is left out", name=fullname)
        if fullname not in self.deferred:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Deferring(spec.loader, self)
        return spec

    def hands_out_names_of(self, module: str) -> bool:
        return self.open and module in self.late and threading.get_ident() == self.thread


def _importer() -> str:
    """The module whose import statement is being carried out."""
    frame: FrameType | None = sys._getframe(1)
    while frame and frame.f_globals.get("__name__", "").startswith((__name__, "importlib")):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", "")) if frame else ""


class _Deferring(Loader):
    """Makes the module and leaves the running to it."""

    def __init__(self, loader: Loader, finder: _Finder) -> None:
        self.loader = loader
        self.finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Deferred(spec.name, self.finder)

    def exec_module(self, module: ModuleType) -> None:
        """Not yet; from here on the module looks like any other."""
        assert module.__spec__, "made from it"
        module.__spec__.loader = module.__loader__ = self.loader


class _Deferred(ModuleType):
    """A module that runs when it is asked for what it does not have."""

    def __init__(self, name: str, finder: _Finder) -> None:
        super().__init__(name)
        self._finder = finder
        self._lock = threading.RLock()
        self._state = "deferred"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":  # asked by anybody who looks at modules
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        if self._state == "deferred" and self._finder.hands_out_names_of(self.__name__):
            return _StandIn(self, name)
        return self.real(name)

    def real(self, name: str) -> Any:
        """What the module calls so, run for it if it has not been."""
        self._run()
        loaded = sys.modules.get(self.__name__, self)  # some packages put another object in their place
        if loaded is not self:
            return getattr(loaded, name)
        if name in vars(self):
            return vars(self)[name]
        raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")

    def _run(self) -> None:
        with self._lock:
            if self._state != "deferred":  # done, or asked by its own code while it runs, like any circular import
                return
            self._state = "running"
            try:
                assert self.__spec__ and self.__spec__.loader
                self.__spec__.loader.exec_module(self)
            except BaseException:
                self._state = "deferred"
                raise
            self._state = "run"
        self._settle()

    def _settle(self) -> None:
        """Put the real things where the stand-ins are."""
        root = self.__name__.partition(".")[0]
        for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == root]:
            for name, value in list(vars(module).items()):
                if type(value) is _StandIn and value.module is self:
                    with suppress(AttributeError):  # a name it does not have: whoever uses the stand-in is told
                        setattr(module, name, value.real())


class _StandIn:
    """A name of a late module: whatever is done with it is done with the real thing."""

    def __init__(self, module: _Deferred, name: str) -> None:
        self.module = module
        self.name = name

    def real(self) -> Any:
        return self.module.real(self.name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.real()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked of annotations
            raise AttributeError(name)
        return getattr(self.real(), name)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self.real())

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, self.real())

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        return (self.real(),)

    def __or__(self, other: Any) -> Any:  # in annotations, which are read and not used
        return Union[self, other]  # noqa: UP007

    def __ror__(self, other: Any) -> Any:
        return Union[other, self]  # noqa: UP007
