"""An engine that was built for some sizes, with another that takes all others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType

from mmrt.runtime import manifest
from mmrt.runtime.devices import Array, Device, cpu
from mmrt.runtime.engines import Call, Engine
from mmrt.runtime.engines.tensorrt import TensorRtEngine


class FallbackEngine:
    """What was built runs where it was built for the sizes; for others another engine is loaded when such come."""

    def __init__(self, spec: manifest.Graph, built: TensorRtEngine, load: Callable[[str], Engine]) -> None:
        """`load` is told which sizes it is for."""
        self.graph = built.graph
        self.inputs: Mapping[str, manifest.Array] = spec.inputs
        self.outputs: Mapping[str, manifest.Array] = spec.outputs
        self.sizes: Mapping[str, int] = built.fixed
        self._built, self._load = built, load
        self._other: Engine | None = None
        self._lock = threading.Lock()

    def run(self, arrays: Mapping[str, Array], device: Device = cpu) -> dict[str, Array]:
        """See `Engine.run`."""
        return self._fitting(arrays).run(arrays, device)

    def bind(
        self,
        arrays: Mapping[str, Array],
        into: Mapping[str, Array] = MappingProxyType({}),
        device: Device = cpu,
        last: Call | None = None,
    ) -> tuple[Call, dict[str, Array]]:
        """See `Engine.bind`."""
        return self._fitting(arrays).bind(arrays, into, device, last)

    def _fitting(self, arrays: Mapping[str, Array]) -> Engine:
        problem = self._built.misfit(arrays)
        if problem is None:
            return self._built
        with self._lock:
            if self._other is None:
                self._other = self._load(problem)
            return self._other
