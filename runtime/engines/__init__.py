"""Engines: what runs a graph. Each offers the same small protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from mmrt.runtime import manifest
from mmrt.runtime.arrays import AnyArray


class Engine(Protocol):
    """A loaded graph: a function of named arrays on the engine's device. Safe to call from many threads."""

    graph: str
    inputs: Mapping[str, manifest.Array]
    outputs: Mapping[str, manifest.Array]

    def run(self, arrays: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """The outputs for `arrays`; of these, names that are no inputs are ignored.

        Raises `RequestError` where names, dtypes or shapes are not the graph's, `EngineError` where it fails.
        """
        ...

    def bind(
        self, arrays: Mapping[str, AnyArray], into: Mapping[str, AnyArray] = MappingProxyType({})
    ) -> tuple[Callable[[], None], dict[str, AnyArray]]:
        """A call that reads `arrays` where they lie and writes into the outputs returned, for loops; one thread's.

        `into` gives some outputs their place, which may be an input's: the graph then changes that in place.
        """
        ...


def load_onnx(graph: str, spec: manifest.Graph, file: Path, threads: int) -> Engine:
    """ONNX Runtime on the CPU, imported only when an engine is wanted."""
    from mmrt.runtime.engines.onnx import OnnxEngine

    return OnnxEngine(graph, spec, file, threads)
