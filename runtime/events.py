"""What a pipeline's stream yields, and what a request ends with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Step:
    """A sampler step was done: `number` of `total`, counted from 1."""

    number: int
    total: int
    _preview: Callable[[], list[Image]]

    def preview(self) -> list[Image]:
        """What the pictures would be now, coarsely, one for each result. Ask before the loop goes on."""
        return self._preview()


@dataclass(frozen=True)
class Result:
    """The end of a request: for each of its results the outputs and what made it.

    `outputs` maps an output's name to its values; `provenance[i]` holds the bundle, request, engines and version that
    make result i again; `timings` are seconds: `total`, and within it each graph's time under `graphs`.
    """

    outputs: Mapping[str, list[Any]]
    provenance: list[dict[str, Any]]
    timings: Mapping[str, Any]

    @property
    def images(self) -> list[Image]:
        """The pictures, 8-bit RGB."""
        return self.outputs["image"]

    @property
    def image(self) -> Image:
        """The first picture."""
        return self.images[0]


@dataclass(frozen=True)
class Done:
    """The last event of a stream."""

    result: Result


Event: TypeAlias = Step | Done
