"""The kinds of stage a program is made of, and the state of one request that goes through them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from mmrt.runtime.arrays import AnyArray, Float32, Int64
from mmrt.runtime.manifest import Shape
from mmrt.runtime.noise import GENERATORS
from mmrt.runtime.request import Request, dimensions
from mmrt.runtime.tokenizer import Detokenizer


@dataclass
class Run:
    """One request on its way: its named arrays, its generators of noise, and the seconds spent in each graph.

    Arrays made from the input `name` have one row for each distinct text or picture; `rows[name]` says which of them
    belongs to which row of the batch. `stopped` says why each text ended: "end", "length" or "stop".
    """

    request: Request
    detokenizer: Detokenizer | None = None  # of the tokens that the program makes
    arrays: dict[str, AnyArray] = field(default_factory=dict)
    rows: dict[str, Int64] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    first_token: float | None = None  # seconds until it was chosen
    tokens: int = 0  # that were chosen for all results

    def __post_init__(self) -> None:
        generator = GENERATORS[self.request.noise]
        self._noise = [generator(seed) for seed in self.request.seeds]

    def draw(self, shape: Sequence[int]) -> Float32:
        """Normal noise (batch, *shape), each result's from its own seed."""
        return np.stack([noise.normal(tuple(shape)) for noise in self._noise])

    def uniforms(self) -> list[Callable[[], float]]:
        """For each result, a function that draws from [0, 1)."""
        return [noise.uniform for noise in self._noise]

    def shape(self, shape: Shape) -> tuple[int, ...]:
        """A manifest's shape for this request, less its first dimension, the batch."""
        return dimensions(shape, self.request.width, self.request.height)

    @contextmanager
    def clock(self, graph: str) -> Iterator[None]:
        """Add the time inside to the graph's seconds."""
        start = time.perf_counter()
        yield
        self.seconds[graph] = self.seconds.get(graph, 0.0) + time.perf_counter() - start
