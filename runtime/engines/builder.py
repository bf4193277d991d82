"""An ONNX graph becomes a TensorRT or TensorRT-RTX engine, at export and on the machine that runs it.

This needs neither torch nor the onnx package: it is the runtime's, and export imports it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mmrt.runtime import manifest
from mmrt.runtime.devices.cuda import Gpu
from mmrt.runtime.engines.nvidia import DTYPES, Library
from mmrt.runtime.engines.onnx_file import drop_attribute, fix_dimensions
from mmrt.runtime.errors import EngineError

T = TypeVar("T")
CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")  # of TensorRT-RTX; 7.5 must be asked for, and alone
_LONGEST = 400  # signs of a library's message


@dataclass(frozen=True)
class Building:
    """How far a graph's engine is, from 0 to 1; at each tenth, but not more often than once a second."""

    graph: str
    share: float


def build(
    library: Library,
    graph: str,
    spec: manifest.Graph,
    onnx: Path,
    wanted: manifest.Build,
    target: Path,
    place: Gpu | None = None,
) -> Iterator[Building]:
    """Write the engine of the ONNX file to `target` as `wanted`, yielding how far it is. Leaving the loop ends the
    building.

    TensorRT builds for a GPU, the `place`, and takes up to half of its free memory to try kernels in, so that others
    go on; TensorRT-RTX needs one where the engine is to be stripped. Raises `EngineError` naming the graph, and the
    node where there is one.
    """
    trt = library.module
    library.log.take()
    if place is not None:
        place.driver.here()
    builder = trt.Builder(library.log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(library, graph, network, onnx, fixed(wanted))
    _compare(library, graph, network, spec, fixed(wanted))
    _allow_decomposing(trt, network)
    config = _config(trt, builder)
    if place is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, place.driver.memory()[0] // 2)
    for profile in wanted.profiles:
        config.add_optimization_profile(_profile(library, graph, builder, spec, profile))
    if wanted.stripped:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
    if library.kind == "tensorrt-rtx":
        config.num_compute_capabilities = len(wanted.capabilities)
        for index, capability in enumerate(wanted.capabilities):
            config.set_compute_capability(_capability(library, capability), index)
    monitor = _monitor(trt)
    config.progress_monitor = monitor

    def work() -> Any:
        if place is not None:
            place.driver.here()  # it is another thread
        return builder.build_serialized_network(network, config)

    serialized = yield from _watched(monitor, graph, work)
    if serialized is None:
        raise EngineError(f"{graph}: {library} cannot build it: {_short(library.log.take())}")
    with target.open("wb") as file:
        file.write(serialized)


def fixed(build: manifest.Build) -> dict[str, int]:
    """The dimensions that have one size in all profiles."""
    return {
        name: size.min
        for name, size in build.profiles[0].items()
        if all(profile[name].min == profile[name].max == size.min for profile in build.profiles)
    }


def specialised(arrays: Mapping[str, manifest.Array], sizes: Mapping[str, int]) -> dict[str, manifest.Array]:
    """The arrays with fixed dimensions as numbers."""
    return {
        name: manifest.Array(
            dtype=array.dtype, shape=tuple(sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in array.shape)
        )
        for name, array in arrays.items()
    }


def as_tensorrt_takes_it(onnx: Path, sizes: Mapping[str, int]) -> bytes:
    """The ONNX file with its fixed dimensions, and without a wish for Attention's softmax: TensorRT has its own."""
    return drop_attribute(fix_dimensions(onnx.read_bytes(), sizes), "softmax_precision")


def _parse(library: Library, graph: str, network: Any, onnx: Path, sizes: Mapping[str, int]) -> None:
    parser = library.module.OnnxParser(network, library.log)
    if parser.parse(as_tensorrt_takes_it(onnx, sizes), str(onnx)):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    nodes = dict.fromkeys(f"{each.node_operator()} {each.node_name()!r}" for each in errors if each.node_operator())
    at = f" at {', '.join(nodes)}" if nodes else ""
    said = (each.desc().split("[checkMacros")[0] for each in errors)  # what follows says that there is no driver
    what = _short(" ".join(said))
    raise EngineError(f"{graph}: {library} cannot parse it{at}: {what}")


def _compare(library: Library, graph: str, network: Any, spec: manifest.Graph, sizes: Mapping[str, int]) -> None:
    """Compare what the network takes and gives with the manifest."""
    found = {"input": _tensors(network.num_inputs, network.get_input)}
    found["output"] = _tensors(network.num_outputs, network.get_output)
    for side, arrays in (("input", spec.inputs), ("output", spec.outputs)):
        wanted = specialised(arrays, sizes)
        if found[side].keys() != wanted.keys():
            raise EngineError(f"{graph}: {library} has the {side}s {sorted(found[side])}, wanted {sorted(wanted)}")
        for name, array in wanted.items():
            dtype, shape = found[side][name]
            like = len(shape) == len(array.shape) and all(
                size in (dim, -1) or isinstance(dim, str) for size, dim in zip(shape, array.shape, strict=True)
            )
            if dtype != array.dtype or not like:
                raise EngineError(f"{graph}: {library} has the {side} {name!r} as {dtype}{shape}, wanted {array}")


def _tensors(count: int, get: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    tensors = [get(index) for index in range(count)]
    return {each.name: (DTYPES.get(each.dtype.name, each.dtype.name), tuple(each.shape)) for each in tensors}


def _allow_decomposing(trt: Any, network: Any) -> None:
    """Let attention without a kernel of its own, such as that of fp32, be computed by several."""
    if not hasattr(trt, "IAttentionOutputLayer"):  # before TensorRT 10.14 the parser writes no such layers
        return
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_OUTPUT:
            layer.__class__ = trt.IAttentionOutputLayer  # what the bindings give is an ILayer
            layer.attention.decomposable = True


def _config(trt: Any, builder: Any) -> Any:
    """Where the graph says fp32, its engine keeps to it: those who want speed take fp16."""
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # it rounds to 10 bits, and is on unless this is said
    return config


def _profile(library: Library, graph: str, builder: Any, spec: manifest.Graph, sizes: manifest.Sizes) -> Any:
    profile = builder.create_optimization_profile()
    for name, array in spec.inputs.items():
        if any(isinstance(dim, str) for dim in array.shape):
            shapes = (
                tuple(getattr(sizes[dim], end) if isinstance(dim, str) else dim for dim in array.shape)
                for end in ("min", "opt", "max")
            )
            profile.set_shape(name, *shapes)
    if not profile:
        raise EngineError(f"{graph}: {library} does not take these sizes: {_short(library.log.take())}")
    return profile


def _capability(library: Library, capability: str) -> Any:
    known = library.module.ComputeCapability
    name = f"SM{capability.replace('.', '')}"
    if not hasattr(known, name):
        offered = ", ".join(f"{each[2:-1]}.{each[-1]}" for each in known.__members__ if each.startswith("SM"))
        raise EngineError(f"{library} builds for no GPU of compute capability {capability}; it does for {offered}")
    return getattr(known, name)


def _short(message: str) -> str:
    message = " ".join(message.split()) or "it does not say why"
    return message if len(message) <= _LONGEST else f"{message[:_LONGEST]}..."


# ---------------------------------------------------------------- how far it is


def _watched(
    monitor: Any, graph: str, work: Callable[[], T], pause: float = 1.0
) -> Generator[Building, None, T | None]:
    """Do the work in a thread, yield how far it is, and return what it returns."""
    results: list[T] = []

    def run() -> None:
        try:
            results.append(work())
        finally:
            monitor.shares.put(None)

    thread = threading.Thread(target=run, name=f"build {graph}")
    thread.start()
    try:
        tenths, last = 0, time.monotonic()
        while (share := monitor.shares.get()) is not None:
            if int(share * 10) > tenths and time.monotonic() - last >= pause:
                tenths, last = int(share * 10), time.monotonic()
                yield Building(graph, tenths / 10)
    finally:
        monitor.cancelled = True
        thread.join()
    return results[0] if results else None


def _monitor(trt: Any) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Puts the share that is done into `shares`: phases of steps, in which there may be further phases."""

        def __init__(self) -> None:
            super().__init__()
            self.shares: queue.SimpleQueue[float | None] = queue.SimpleQueue()
            self.cancelled = False
            self._phases: dict[str, tuple[str | None, int, int]] = {}  # parent, steps done, steps
            self._lock = threading.Lock()

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with self._lock:
                self._phases[name] = (parent, 0, max(steps, 1))

        def step_complete(self, name: str, step: int) -> bool:
            with self._lock:
                if name in self._phases:
                    parent, _, steps = self._phases[name]
                    self._phases[name] = (parent, step + 1, steps)
                self.shares.put(self._share(None))
            return not self.cancelled

        def phase_finish(self, name: str) -> None:
            with self._lock:
                self._phases.pop(name, None)

        def _share(self, parent: str | None) -> float:
            inner = [(each, done, steps) for each, (of, done, steps) in self._phases.items() if of == parent]
            return max((min(1.0, (done + self._share(each)) / steps) for each, done, steps in inner), default=0.0)

    return Monitor()
