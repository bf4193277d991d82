"""The calls that calibrate a graph: what a replay of the receipts sends through it.

These are the golden calls, and every kind of call of whole requests: a denoiser's at several timesteps, a decoder's
with its caches more and more filled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType

from mmrt.runtime import manifest
from mmrt.runtime.arrays import AnyArray
from mmrt.runtime.devices import Array, Device, cpu
from mmrt.runtime.engines import Call, Engine

_MOST = 16  # calls that are kept of a graph


class Recorder(Mapping[str, Engine]):
    """Engines that keep a copy of what they read; of many calls, equally many from beginning to end."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = engines
        self.calls: dict[str, Calls] = {name: Calls() for name in engines}

    def __getitem__(self, name: str) -> Engine:
        return _Recorded(self._engines[name], self.calls[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._engines)

    def __len__(self) -> int:
        return len(self._engines)


class Calls:
    """A sample of a graph's calls, in their order."""

    def __init__(self) -> None:
        self.kept: list[dict[str, AnyArray]] = []
        self._seen, self._stride = 0, 1

    def add(self, arrays: dict[str, AnyArray]) -> None:
        """Keep a copy of them, or not."""
        if self._seen % self._stride == 0:
            self.kept.append({name: array.copy() for name, array in arrays.items()})
            if len(self.kept) > _MOST:
                self.kept, self._stride = self.kept[::2], 2 * self._stride
        self._seen += 1


class _Recorded:
    """An engine on the CPU that keeps what it reads."""

    def __init__(self, engine: Engine, calls: Calls) -> None:
        self.graph, self.sizes = engine.graph, engine.sizes
        self.inputs: Mapping[str, manifest.Array] = engine.inputs
        self.outputs: Mapping[str, manifest.Array] = engine.outputs
        self._engine, self._calls = engine, calls

    def run(self, arrays: Mapping[str, Array], device: Device = cpu) -> dict[str, Array]:
        outputs = self._engine.run(arrays, device)
        self._calls.add({name: arrays[name] for name in self.inputs})
        return outputs

    def bind(
        self,
        arrays: Mapping[str, Array],
        into: Mapping[str, Array] = MappingProxyType({}),
        device: Device = cpu,
        last: Call | None = None,
    ) -> tuple[Call, dict[str, Array]]:
        call, outputs = self._engine.bind(arrays, into, device)
        return _Kept(call, partial(self._calls.add, {name: arrays[name] for name in self.inputs})), outputs


class _Kept:
    """A call before which what it reads is kept."""

    capturable = False

    def __init__(self, call: Call, keep: Callable[[], None]) -> None:
        self._call, self._keep = call, keep

    def __call__(self) -> None:
        self._keep()
        self._call()
