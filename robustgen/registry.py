"""One registry for everything that has a name: attacks, plans, purifiers.

A plug-in is a file that decorates a class; outsiders declare an entry point in the group `robustgen.<kind>s`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Any, Generic, TypeVar

from robustgen.errors import SpecError, unknown_name

__all__ = ["ATTACKS", "PLANS", "Registry", "register_attack", "register_plan"]

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to objects, found on first use.

    Args:
        kind: what one entry is called in messages ("attack").
        package: the package whose modules register themselves when imported, or None.
        modules: single modules that do so.
    """

    def __init__(self, kind: str, package: str | None = None, modules: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self._package = package
        self._modules = modules
        self._entries: dict[str, T] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files an object under `name`; a second object of that name is an error."""

        def add(entry: T) -> T:
            held = self._entries.get(name)
            if held is not None and getattr(held, "__qualname__", held) != getattr(entry, "__qualname__", entry):
                raise SpecError(f"{self.kind} '{name}' is registered twice: {held!r} and {entry!r}.")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        self._discover()
        if name not in self._entries:
            raise unknown_name(self.kind, name, self._entries, hint=f"See `robustgen list {self.kind}s`.")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        self._discover()
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._entries

    def name_of(self, entry: object) -> str:
        """The name under which an object, or the class of an instance, was registered."""
        self._discover()
        for name, held in self._entries.items():
            if held is entry or held is type(entry):
                return name
        raise SpecError(f"{entry!r} is not a registered {self.kind}.")

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True  # set first: the modules imported below use the registry themselves
        if self._package is not None:
            for module in iter_modules(import_module(self._package).__path__):
                import_module(f"{self._package}.{module.name}")
        for name in self._modules:
            import_module(name)
        for point in entry_points(group=f"robustgen.{self.kind}s"):
            self.register(point.name)(point.load())


ATTACKS: Registry[Any] = Registry("attack", "robustgen.attacks")
PLANS: Registry[Any] = Registry("plan", "robustgen.attacks")

register_attack = ATTACKS.register
register_plan = PLANS.register
