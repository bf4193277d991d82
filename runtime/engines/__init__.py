"""Engines: what runs a graph. Each offers the same small protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from mmrt.runtime import manifest
from mmrt.runtime.devices import Array, Device, Kind, Place, cpu
from mmrt.runtime.devices.cuda import Gpu
from mmrt.runtime.errors import EngineError

if TYPE_CHECKING:
    from mmrt.runtime.bundle import Bundle


class Call(Protocol):
    """A graph's run over arrays that are bound.

    `capturable` says whether it may be captured into a CUDA graph: it only enqueues work on the device's stream, and
    allocates nothing.
    """

    capturable: bool

    def __call__(self) -> None: ...


class Engine(Protocol):
    """A loaded graph: a function of named arrays. Safe to call from many threads.

    `sizes` are those of free dimensions that it is for, of which others may be slower; dimensions that it has fixed
    stand as numbers in `inputs` and `outputs`.
    """

    graph: str
    inputs: Mapping[str, manifest.Array]
    outputs: Mapping[str, manifest.Array]
    sizes: Mapping[str, int]

    def run(self, arrays: Mapping[str, Array], device: Device = cpu) -> dict[str, Array]:
        """The outputs for `arrays` of a `device` of the engine's place; of these, names that are no inputs are ignored.

        On a GPU the work is put into the device's stream, and nothing waits for it. Raises `RequestError` where names,
        dtypes or shapes are not the graph's, `EngineError` where it fails.
        """
        ...

    def bind(
        self,
        arrays: Mapping[str, Array],
        into: Mapping[str, Array] = MappingProxyType({}),
        device: Device = cpu,
        last: Call | None = None,
    ) -> tuple[Call, dict[str, Array]]:
        """A call that reads `arrays` where they lie and writes into the outputs returned, for loops; one thread's.

        `into` gives some outputs their place, which may be an input's: the graph then changes that in place. `last` is
        a call of this engine that is not used any more: this one may be made of it, and have outputs of its.
        """
        ...


_CRASHING = {"fp16": ("NchwcTransformer",)}  # in ONNX Runtime 1.32, where a MatMul reads what a Transpose made


def load_onnx(
    graph: str, spec: manifest.Graph, variant: manifest.Variant, bundle: Bundle, place: Place, threads: int
) -> Engine:
    """ONNX Runtime, imported only when an engine is wanted."""
    file = bundle.onnx_file(variant.file)
    try:
        from mmrt.runtime.engines import onnx, onnx_cuda
    except (ImportError, OSError) as error:  # a library that it needs may be missing, or of another version
        extra = "cuda" if place.kind == "cuda" else "cpu"
        what = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
        raise EngineError(f"ONNX Runtime {what}: pip install 'mmrt[{extra}]'") from None
    if isinstance(place, Gpu):
        return onnx_cuda.CudaOnnxEngine(graph, spec, file, place)
    return onnx.OnnxEngine(graph, spec, file, threads, without=_CRASHING.get(variant.precision, ()))


def load_tensorrt(
    graph: str, spec: manifest.Graph, variant: manifest.Variant, bundle: Bundle, place: Place, threads: int
) -> Engine:
    """TensorRT, with an engine that was built on this machine."""
    from mmrt.runtime.engines import tensorrt

    return tensorrt.load("tensorrt", graph, spec, variant, bundle, place)


def load_tensorrt_rtx(
    graph: str, spec: manifest.Graph, variant: manifest.Variant, bundle: Bundle, place: Place, threads: int
) -> Engine:
    """TensorRT-RTX, with an engine that comes with the bundle or was built on this machine."""
    from mmrt.runtime.engines import tensorrt

    return tensorrt.load("tensorrt-rtx", graph, spec, variant, bundle, place)


class Backend(NamedTuple):
    """An engine: on which places it runs, which variants of a graph it takes, and how it loads one.

    `load` checks the variant's file by the bundle, and raises `EngineError` with a reason in one line where this
    machine or this engine cannot run it; then the next is tried. `threads` of 0 leave their number to the engine.
    """

    kinds: tuple[Kind, ...]
    takes: tuple[str, ...]
    load: Callable[[str, manifest.Graph, manifest.Variant, Bundle, Place, int], Engine]


ENGINES: dict[str, Backend] = {  # best first
    "tensorrt": Backend(("cuda",), ("onnx",), load_tensorrt),
    "tensorrt-rtx": Backend(("cuda",), ("tensorrt-rtx", "onnx"), load_tensorrt_rtx),
    "onnx": Backend(("cpu", "cuda"), ("onnx",), load_onnx),
}
