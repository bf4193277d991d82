"""Modules with nothing behind them, for packages that a library imports and does not need for what it does here."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any


class Nothing:
    """What an unused name of a missing package is."""

    version = None

    def __init__(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def stand_ins(missing: Mapping[str, Mapping[str, Any]], always: Mapping[str, Mapping[str, Any]] = {}) -> Iterator[None]:
    """While it is entered, modules by name with the names in them: of packages that are not installed, and `always`."""
    standing = {name: names for name, names in missing.items() if not installed(name.partition(".")[0])} | dict(always)
    before = {name: sys.modules[name] for name in standing if name in sys.modules}
    try:
        for name, names in standing.items():
            sys.modules[name] = types.ModuleType(name)
            vars(sys.modules[name]).update(names)
        for name in standing:  # `import a.b as c` looks for b in a
            above, _, last = name.rpartition(".")
            if above in standing:
                setattr(sys.modules[above], last, sys.modules[name])
        yield
    finally:
        for name in standing:
            del sys.modules[name]
        sys.modules.update(before)


def installed(package: str) -> bool:
    """Whether there is such a package to import."""
    return importlib.util.find_spec(package) is not None
