"""A command of mmrt, run in the tests' own process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ran:
    """How a command ended, and what it and its libraries wrote."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a command that failed."""
        assert self.code == 1
        assert self.out == ""
        assert self.err.startswith("mmrt: ")
        assert self.err.endswith("\n")
        assert self.err[:-1].isprintable()
        return self.err[len("mmrt: ") : -1]


Mmrt = Callable[..., Ran]
