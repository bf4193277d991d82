"""The kinds of stage a program is made of, and the state of one request that goes through them."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from mmrt.runtime.arrays import AnyArray, Float32, Int64
from mmrt.runtime.devices import Array, Device, cpu
from mmrt.runtime.engines import Call
from mmrt.runtime.errors import BundleError
from mmrt.runtime.events import Segment
from mmrt.runtime.manifest import Autoregress, Diffuse, Shape
from mmrt.runtime.noise import GENERATORS, Noise
from mmrt.runtime.request import Request, check_noise, dimensions
from mmrt.runtime.search import Completion
from mmrt.runtime.tokenizer import Detokenizer


@dataclass
class Run:
    """One request on its way: its named arrays on its device, its generators of noise, and the time in each graph.

    An array made from an input has one row for each distinct text or picture, and what graphs make of several arrays
    one for each distinct combination. `rows[array]` says which of its rows each result takes; where a stage is guided,
    which each unconditional row takes comes before. Arrays without are the whole request's, for graphs to look up in.
    `completions` are the texts' tokens, `segments` their times.
    """

    request: Request
    detokenizer: Detokenizer | None = None  # of the tokens that the program makes
    device: Device = cpu
    arrays: dict[str, Array] = field(default_factory=dict)
    rows: dict[str, Int64] = field(default_factory=dict)
    marks: list[tuple[str, Any, Any]] = field(default_factory=list)  # of a graph: when it began and ended
    completions: list[Completion] = field(default_factory=list)
    segments: list[list[Segment]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    first_token: float | None = None  # seconds until it was chosen
    lengths: dict[str, Int64] = field(default_factory=dict)  # of arrays of ids: how many of a row are its own

    @cached_property
    def noise(self) -> list[Noise]:
        """Of each result, from its seed."""
        return [GENERATORS[self.request.noise](seed) for seed in self.request.seeds]

    def part(self, results: Sequence[int]) -> Run:
        """Some of the results as a run of their own: each for itself, with what was named, drawn and timed so far."""
        seeds = tuple(self.request.seeds[index] for index in results)
        part = Run(
            replace(self.request, batch=len(results), count=1, seeds=seeds),
            self.detokenizer,
            self.device,
            dict(self.arrays),
            {name: rows[-self.request.batch :][results] for name, rows in self.rows.items()},
            self.marks,
            started=self.started,
        )
        part.noise = [self.noise[index] for index in results]
        return part

    def put(self, name: str, array: Array, rows: Int64 | None) -> None:
        """Name an array of the device; without rows it is the whole request's. Raises `BundleError` where it has not
        the rows that results take."""
        if rows is None:
            self.arrays[name] = array
            self.rows.pop(name, None)
            return
        if len(array) != (wanted := int(rows.max()) + 1):
            raise BundleError(
                f"{name} has {len(array)} rows, wanted {wanted}, one for each distinct value of its inputs"
            )
        self.arrays[name], self.rows[name] = array, rows

    def bring(self, name: str, array: AnyArray, rows: Int64 | None) -> None:
        """Name a NumPy array, which goes to the device."""
        self.put(name, self.device.put(array), rows)

    def join(self, names: Iterable[str]) -> Int64 | None:
        """Give arrays one row for each distinct combination of theirs; which of these each result takes.

        Arrays of the whole request stay as they are; None where there are no others.
        """
        taken = {name: self.rows[name] for name in names if name in self.rows}
        if not taken:
            return None
        longest = max(map(len, taken.values()))
        combined = np.stack([np.resize(rows, longest) for rows in taken.values()], axis=1)
        joined = distinct(map(bytes, combined))
        first = np.unique(joined, return_index=True)[1]
        for name in taken:
            self.put(name, self.device.take_rows(self.arrays[name], np.resize(self.rows[name], longest)[first]), joined)
        return joined

    def spread(self, names: Iterable[str], copies: int, each: int) -> dict[str, Array]:
        """Arrays with `each` consecutive rows a prompt; all of that twice, the unconditional first, for 2 `copies`.

        A loop fills the rest of what its graphs take; names that are not of the request's arrays so far are left out,
        and arrays of the whole request are as they are.
        """
        known = self.arrays.keys() & set(names)
        found, results = {name: self.arrays[name] for name in known - self.rows.keys()}, copies * self.request.batch
        for name in known & self.rows.keys():
            rows = self.rows[name]
            rows = np.resize(rows, results) if len(rows) < results else rows[-results:]
            found[name] = self.device.take_rows(self.arrays[name], np.repeat(rows[:: self.request.count], each))
        return found

    def results(self, name: str) -> AnyArray:
        """An array's row for each result, as NumPy has it."""
        return self.device.get(self.device.take_rows(self.arrays[name], self.rows[name][-self.request.batch :]))

    def draw(self, shape: Sequence[int]) -> Float32:
        """Normal noise (batch, *shape), each result's from its own seed."""
        return np.stack([noise.normal(tuple(shape)) for noise in self.noise])

    def drawn(self, shape: Shape, scattered: bool) -> Float32:
        """Normal noise of a manifest's shape (batch, *longest): each result's of its own size, and zeros after it."""
        names = {dim for dim in shape[1:] if isinstance(dim, str)}
        columns = [self.results(name).tolist() for name in names]
        lengths = [dict(zip(names, sizes, strict=True)) for sizes in zip(*columns, strict=True)]
        request = self.request
        sizes = [dimensions(shape, request.width, request.height, each) for each in lengths or [{}] * request.batch]
        check_noise(sizes)
        whole = np.zeros((len(sizes), *map(max, zip(*sizes, strict=True))), np.float32)
        for row, (size, noise) in enumerate(zip(sizes, self.noise, strict=True)):
            own = tuple(slice(each) for each in size)  # of a row that may be one number
            whole[row : row + 1][(slice(None), *own)] = noise.scattered(size) if scattered else noise.normal(size)
        return whole

    def uniforms(self) -> list[Callable[[], float]]:
        """For each result, a function that draws from [0, 1)."""
        return [partial(self._uniform, index) for index in range(self.request.batch)]

    def _uniform(self, index: int) -> float:
        return self.noise[index].uniform()

    def shape(self, shape: Shape) -> tuple[int, ...]:
        """A manifest's shape for this request, less its first dimension, the batch."""
        return dimensions(shape, self.request.width, self.request.height)

    @contextmanager
    def clock(self, graph: str) -> Iterator[None]:
        """Add the time inside to the graph's seconds."""
        start = self.device.mark()
        yield
        self.marks.append((graph, start, self.device.mark()))

    def round(self, calls: Mapping[str, Call], after: Callable[[], None]) -> Callable[[], None]:
        """One round of a loop: the calls of its graphs, and what comes `after` them; as one where that is possible."""

        def plain() -> None:
            for graph, call in calls.items():
                with self.clock(graph):
                    call()
            after()

        def bare() -> None:
            for call in calls.values():
                call()
            after()

        replay = self.device.record(bare) if all(call.capturable for call in calls.values()) else None
        if replay is None:
            return plain

        def recorded() -> None:
            with self.clock(" + ".join(calls)):
                replay()

        return recorded

    def seconds(self) -> dict[str, float]:
        """The time spent in each graph so far."""
        spent: dict[str, float] = {}
        for graph, start, end in self.marks:
            spent[graph] = spent.get(graph, 0.0) + self.device.seconds(start, end)
        return spent


def guided(stage: Diffuse | Autoregress, request: Request) -> bool:
    """Whether there are unconditional rows too: classifier-free guidance with a scale over 1."""
    guidance = stage.guidance
    return guidance is not None and guidance.kind == "classifier-free" and request.values[guidance.scale] > 1


def distinct(values: Iterable[Hashable]) -> Int64:
    """For each value, which of the distinct ones it is, in the order in which they first come."""
    places: dict[Hashable, int] = {}
    return np.array([places.setdefault(value, len(places)) for value in values])
