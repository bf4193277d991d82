"""TensorRT 10 and 11, and TensorRT-RTX: engines that were built before, on a GPU."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mmrt.runtime import folders, manifest
from mmrt.runtime.arrays import mismatch
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.devices import Array, Device, Place, cpu
from mmrt.runtime.engines import Call
from mmrt.runtime.engines.builder import as_tensorrt_takes_it, fixed, specialised
from mmrt.runtime.engines.context import Bound, Context
from mmrt.runtime.engines.found import Found
from mmrt.runtime.engines.nvidia import DTYPES, Kind, Library, capability
from mmrt.runtime.errors import BundleError, EngineError, RequestError
from mmrt.runtime.files import whole


def load(
    kind: Kind, graph: str, spec: manifest.Graph, variant: manifest.Variant, bundle: Bundle, place: Place
) -> TensorRtEngine:
    """The engine that comes with the bundle, or the one that was built here of an ONNX variant.

    Raises `EngineError` with the reason why there is none that may and can run here, before any of it is deserialised.
    """
    library = Library(kind)
    found = Found(library, graph, variant, bundle, capability(place))
    return TensorRtEngine(library, graph, spec, found.file, found.build, place, found.onnx)


class TensorRtEngine:
    """A graph as an engine; arrays are `DeviceArray`s. Fixed dimensions stand as numbers in `inputs` and `outputs`."""

    sizes: Mapping[str, int] = MappingProxyType({})

    def __init__(
        self,
        library: Library,
        graph: str,
        spec: manifest.Graph,
        file: Path,
        build: manifest.Build,
        place: Any,
        onnx: Path | None = None,
    ) -> None:
        """`onnx` has the weights of an engine that is stripped. Raises `EngineError` or `BundleError`."""
        self.graph, self._library, self._build = graph, library, build
        self.fixed = fixed(build)
        self.inputs: Mapping[str, manifest.Array] = specialised(spec.inputs, self.fixed)
        self.outputs: Mapping[str, manifest.Array] = specialised(spec.outputs, self.fixed)
        self._free = spec.inputs
        self._place = place
        place.driver.here()
        self._runtime = library.module.Runtime(library.log)
        self._engine = self._deserialized(file)
        if onnx is not None:
            self._refit(onnx)
        self._compare(file)
        self._aliases = self._aliased()
        self._config, self._kernels = self._configured()
        self._contexts: list[Context] = []  # that are free
        self._lock = threading.Lock()

    def run(self, arrays: Mapping[str, Array], device: Device = cpu) -> dict[str, Array]:
        """See `Engine.run`."""
        call, outputs = self.bind(arrays, device=device)
        call()
        return outputs

    def bind(
        self,
        arrays: Mapping[str, Array],
        into: Mapping[str, Array] = MappingProxyType({}),
        device: Device = cpu,
        last: Call | None = None,
    ) -> tuple[Call, dict[str, Array]]:
        """See `Engine.bind`."""
        sizes: dict[str, int] = {}
        if problem := mismatch(self.graph, "input", self.inputs, arrays, sizes):
            raise RequestError(problem)
        profile = self._profile(sizes)
        if profile is None:
            raise RequestError(self._outside(sizes))
        self._place.driver.here()  # a request may go on in another thread than it began in
        context = self._take(device)
        bound = Bound(self, context, device)
        shapes = {name: tuple(arrays[name].shape) for name in self.inputs}
        self.must(context.shape(profile, shapes, bound.handle), "does not take these shapes")
        outputs = {name: into[name] if name in into else self._empty(context, name, device) for name in self.outputs}
        if problem := mismatch(self.graph, "output", self.outputs, outputs, sizes):
            raise BundleError(f"{problem}, as the manifest says")
        bound.place({name: arrays[name] for name in self.inputs}, outputs, self._aliases)
        return bound, outputs

    def misfit(self, arrays: Mapping[str, Array]) -> str | None:
        """Why it was not built for arrays that its graph takes, in a line; None where it was, or the graph does not."""
        sizes: dict[str, int] = {}
        if mismatch(self.graph, "input", self._free, arrays, sizes) or self._profile(sizes) is not None:
            return None
        return self._outside(sizes)

    # ---------------------------------------------------------------- loading

    def _deserialized(self, file: Path) -> Any:
        runtime, log = self._runtime, self._library.log
        log.take()
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if hasattr(runtime, "get_engine_validity"):  # TensorRT-RTX's: it reads the first bytes alone
                validity, reasons = runtime.get_engine_validity(data[: runtime.engine_header_size])
                if validity == self._library.module.EngineValidity.INVALID:
                    raise EngineError(f"{file}: {self._library} cannot use it: {self._reasons(reasons)}")
            engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise EngineError(f"{file}: {self._library} cannot load it: {log.take() or 'it does not say why'}")
        return engine

    def _reasons(self, reasons: int) -> str:
        known = self._library.module.EngineInvalidityDiagnostics.__members__
        names = [name.lower().replace("_", " ") for name, each in known.items() if reasons & int(each)]
        return ", ".join(names) or self._library.log.take() or "it does not say why"

    def _refit(self, onnx: Path) -> None:
        trt, log = self._library.module, self._library.log
        refitter = trt.Refitter(self._engine, log)
        parser = trt.OnnxParserRefitter(refitter, log)
        model = as_tensorrt_takes_it(onnx, self.fixed)
        done = parser.refit_from_bytes(model, str(onnx)) and refitter.refit_cuda_engine()
        self.must(done, "cannot take its weights from the ONNX graph")

    def _compare(self, file: Path) -> None:
        """Compare the names, dtypes and shapes in the engine with the manifest's."""
        trt, engine = self._library.module, self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        for side, mode, wanted in (
            ("input", trt.TensorIOMode.INPUT, self.inputs),
            ("output", trt.TensorIOMode.OUTPUT, self.outputs),
        ):
            found = {name for name in names if engine.get_tensor_mode(name) == mode}
            if found != wanted.keys():
                raise BundleError(f"{file}: {side}s are {sorted(found)}, the manifest says {sorted(wanted)}")
            for name, spec in wanted.items():
                kind, shape = engine.get_tensor_dtype(name).name, tuple(engine.get_tensor_shape(name))
                fits = len(shape) == len(spec.shape) and all(
                    size in (dim, -1) or isinstance(dim, str) for size, dim in zip(shape, spec.shape, strict=True)
                )
                if DTYPES.get(kind) != spec.dtype or not fits:
                    raise BundleError(f"{file}: {side} {name!r} is {kind}{shape}, the manifest says {spec}")
                if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                    raise EngineError(
                        f"{file}: shapes follow from the {side} {name!r}: {self._library} has it in the host's memory"
                    )

    def _aliased(self) -> dict[str, str]:
        """The outputs that are inputs which the engine changes in place: caches."""
        if not hasattr(self._engine, "get_aliased_input_tensor"):  # before TensorRT 10.15 there are none
            return {}
        found = {name: self._engine.get_aliased_input_tensor(name) for name in self.outputs}
        return {name: alias for name, alias in found.items() if alias}

    def _configured(self) -> tuple[Any, _Kernels | None]:
        """How contexts are made; with TensorRT-RTX, which compiles its kernels when it meets new shapes, also where
        these are kept."""
        trt = self._library.module
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._library.kind == "tensorrt":
            return strategy, None
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        # all at once: what a CUDA graph captures, it keeps, and must not be kernels that do until the others are there
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        return config, _Kernels(
            config, f"{self.graph}.{self._build.source[:16]}.{self._library.version}.{capability(self._place)}"
        )

    # ---------------------------------------------------------------- running

    def _profile(self, sizes: Mapping[str, int]) -> int | None:
        """The first profile with these sizes in it."""
        for index, profile in enumerate(self._build.profiles):
            if all(profile[name].min <= size <= profile[name].max for name, size in self._of_profiles(sizes).items()):
                return index
        return None

    def _outside(self, sizes: Mapping[str, int]) -> str:
        ranges = "; ".join(
            ", ".join(f"{name} {size.min} to {size.max}" for name, size in profile.items())
            for profile in self._build.profiles
        )
        asked = ", ".join(f"{name} {size}" for name, size in self._of_profiles(sizes).items())
        return f"{self.graph}: {asked} is asked for, its engine takes {ranges}; --shapes builds others"

    def _of_profiles(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {name: sizes[name] for name in self._build.profiles[0] if name in sizes}

    def _empty(self, context: Context, name: str, device: Device) -> Array:
        shape = tuple(context.own.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise EngineError(f"{self.graph}: {self._library} does not know the shape of {name!r} before it has run")
        return device.empty(shape, self.outputs[name].dtype)

    def _take(self, device: Any) -> Context:
        """A context that nobody uses; what it did before is over when the device's stream uses it."""
        with self._lock:
            context = self._contexts.pop() if self._contexts else None
        if context is None:
            own = self._engine.create_execution_context(self._config)
            self.must(own is not None, "gives no execution context")
            return Context(own)
        if context.busy is not None:
            device.place.driver.wait(device.stream, context.busy)
        return context

    def give(self, context: Context) -> None:
        """Let others have the context."""
        if self._kernels is not None and context.new:
            self._kernels.save()
            context.new = False
        with self._lock:
            self._contexts.append(context)

    def must(self, done: Any, problem: str) -> None:
        """Raise `EngineError` with what the library says, unless it is done."""
        if not done:
            reason = self._library.log.take() or "it does not say why"
            raise EngineError(f"{self.graph}: {self._library} {problem}: {reason}")

    def enqueue(self, context: Context, handle: int) -> None:
        """Put a run into the stream."""
        if not context.own.execute_async_v3(handle):
            self.must(False, "failed")


class _Kernels:
    """The kernels that TensorRT-RTX compiled on this machine, on disk: the next process need not compile them again."""

    def __init__(self, config: Any, name: str) -> None:
        self._cache = config.create_runtime_cache()
        self._file = folders.own(folders.cache() / "kernels") / f"{name}.rtx"
        if self._file.is_file():
            self._cache.deserialize(self._file.read_bytes())  # refuses what other drivers, GPUs or versions made
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write them; not being able to costs time alone."""
        with suppress(RequestError), whole(self._file) as file:
            file.write_bytes(self._cache.serialize())
