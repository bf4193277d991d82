"""Devices: where arrays live, and the few operations that the loops do there, under the same names on each.

`Device` is a device as one request uses it: what is asked of it happens in order, on a GPU in a stream of the request's
own, so that only `get` waits. `cpu` is a module of functions over NumPy arrays; `cuda.Cuda` has `DeviceArray`s. A
`Place` is where a pipeline was loaded, and gives each request its device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import numpy.typing as npt

from mmrt.runtime.arrays import AnyArray, Int64

Kind: TypeAlias = Literal["cpu", "cuda"]
Array: TypeAlias = Any  # of a device: a NumPy array or a `DeviceArray`; both have shape, dtype, nbytes and a length


class Device(Protocol):
    """What stages ask of a device. Arrays are contiguous; those that go in are the device's own, but for `put`'s."""

    kind: Kind

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        """An array whose values are not set."""

    def zeros(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        """An array of zeros."""

    def put(self, array: AnyArray) -> Array:
        """A NumPy array, brought to the device. The array may be changed afterwards."""

    def get(self, array: Array) -> AnyArray:
        """The array as NumPy has it, after all that was asked before."""

    def write(self, array: Array, values: AnyArray) -> None:
        """array[:] = values, with a NumPy array of the same shape and dtype, which may be changed afterwards."""

    def numbers(self, array: Array) -> Numbers:
        """The values of a small int64 array, for a loop that writes or reads them in every step."""

    def copy(self, array: Array, values: Array) -> None:
        """array[:] = values, both of the device and of the same shape and dtype."""

    def cast(self, array: Array, dtype: npt.DTypeLike) -> Array:
        """A copy with another dtype, rounded to nearest, ties to even."""

    def take_rows(self, array: Array, rows: Int64) -> Array:
        """array[rows]; the array itself where that is the same."""

    def enlarge(self, array: Array, capacity: int, length: int) -> Array:
        """A cache (rows, heads, places, width) with `capacity` places: the first `length` of before, then zeros."""

    def reorder_rows(self, array: Array, rows: Int64, group: int, length: int) -> None:
        """array[:, :, :length] = array[rows, :, :length], for a cache; rows go on within each `group` of them."""

    def normal(
        self,
        out: Array,
        seeds: Array,
        offsets: Array,
        max_threads: int,
        table: Array | None = None,
        step: Array | None = None,
    ) -> None:
        """See `cpu.normal`."""

    def guide_and_step(
        self,
        prediction: Array,
        latents: Array,
        history: Array,
        model_input: Array,
        timestep: Array,
        table: Array,
        step: Array,
        noise: Array | None = None,
        denoised: Array | None = None,
        factor: Array | None = None,
    ) -> None:
        """See `cpu.guide_and_step`."""

    def choose_token(
        self,
        *,
        logits: Array,
        scores: Array,
        history: Array,
        starts: Array,
        rules: Array,
        forbidden: Array,
        forced: Array,
        ends: Array,
        uniforms: Array,
        tokens: Array,
        positions: Array,
        ended: Array,
        state: Array,
    ) -> None:
        """See `cpu.choose_token`."""

    def record(self, call: Callable[[], None]) -> Callable[[], None] | None:
        """What does the same on the same arrays with less of the host's time, if there is such a thing here.

        `call` only asks things of this device, and looks at nothing that changes from one time to the next.
        """

    def mark(self) -> Any:
        """A point in time, after all that was asked before."""

    def seconds(self, start: Any, end: Any) -> float:
        """The time between two marks, after the second has passed."""


class Numbers(Protocol):
    """The values of an array in their order, seen from the host."""

    def write(self, values: list[int]) -> None:
        """Set them all."""

    def read(self) -> list[int]:
        """All of them, after all that was asked before."""


class Place(Protocol):
    """Where a pipeline is loaded: its `name` is cpu, cuda:0 and so on."""

    kind: Kind
    name: str

    def device(self) -> Device:
        """The device for one request. Raises `EngineError`."""

    def look(self) -> int:
        """The most bytes of its memory that were in use at any time that this was called; 0 without one."""


class Cpu:
    """The place that every machine has."""

    kind: Kind = "cpu"
    name = "cpu"

    def __str__(self) -> str:
        return self.name

    def look(self) -> int:
        """0: its memory is the process's."""
        return 0

    def device(self) -> Device:
        """The module of functions over NumPy arrays."""
        from mmrt.runtime.devices import cpu

        return cpu


CPU = Cpu()
