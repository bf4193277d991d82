"""What a pipeline's stream yields, and what a request ends with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import numpy as np

from mmrt.runtime.arrays import Float32

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmrt.runtime.sound import Sound


@dataclass(frozen=True)
class Step:
    """A sampler step was done: `number` of `total`, counted from 1."""

    number: int
    total: int
    _preview: Callable[[], list[Image]]

    def preview(self) -> list[Image]:
        """What the pictures would be now, coarsely, one for each result. Ask before the loop goes on."""
        return self._preview()


class Token(msgspec.Struct, frozen=True):
    """A token was chosen for result `index`: its `id`, and the `text` that became certain with it, which may be none.

    Text that comes with no token of its own has `id` None. A result's texts joined are its whole text.
    """

    index: int
    id: int | None
    text: str


@dataclass(frozen=True)
class Segment:
    """What was said in a recording from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Result:
    """The end of a request: for each of its results the outputs and what made it.

    `outputs` maps an output's name to its values; `provenance[i]` holds the bundle, request, engines and version that
    make result i again; `timings` are seconds: `total`, and within it each graph's time under `graphs`, and
    `first_token` where there are tokens, with their number as `tokens`. `stopped` says why each text ended: "end" (the
    model ended it), "length" (of `max_new_tokens`) or "stop" (a stop string came). `segments` are each recording's,
    where there are timestamps.
    """

    outputs: Mapping[str, list[Any]]
    provenance: list[dict[str, Any]]
    timings: Mapping[str, Any]
    stopped: list[str] = field(default_factory=list)
    segments: list[list[Segment]] = field(default_factory=list)

    @property
    def images(self) -> list[Image]:
        """The pictures, 8-bit RGB."""
        return self.outputs["image"]

    @property
    def image(self) -> Image:
        """The first picture."""
        return self.images[0]

    @property
    def texts(self) -> list[str]:
        """The texts."""
        return self.outputs["text"]

    @property
    def audios(self) -> list[Sound]:
        """The sounds: samples, their rate, and `save`, which writes a WAV file."""
        return self.outputs["audio"]

    @property
    def audio(self) -> Sound:
        """The first sound."""
        return self.audios[0]

    @property
    def embeddings(self) -> Float32:
        """The vectors, float32 (results, width); where texts and pictures were given, those of the texts.

        `outputs` has both.
        """
        return np.stack(next(iter(self.outputs.values())))

    @property
    def text(self) -> str:
        """The first text."""
        return self.texts[0]


@dataclass(frozen=True)
class Done:
    """The last event of a stream."""

    result: Result


Event: TypeAlias = Step | Token | Done
