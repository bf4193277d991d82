"""TensorRT 10 and 11, and TensorRT-RTX: engines that were built before, on a GPU.

A loop that is bound has an execution context of its own, whose shapes and addresses are set once; between two calls of
it the host does nothing but enqueue. The memory for activations is one block for all engines of a request, for they run
one after the other in its stream.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from mmrt.runtime import folders, manifest
from mmrt.runtime.arrays import mismatch
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.devices import Array, Device, Place, cpu
from mmrt.runtime.engines import cache
from mmrt.runtime.engines.builder import as_tensorrt_takes_it, fixed, specialised
from mmrt.runtime.engines.nvidia import DTYPES, Kind, Library
from mmrt.runtime.errors import BundleError, EngineError, RequestError, UnreadyError
from mmrt.runtime.files import whole
from mmrt.runtime.trust import trusted


def load(
    kind: Kind, graph: str, spec: manifest.Graph, variant: manifest.Variant, bundle: Bundle, place: Place
) -> TensorRtEngine:
    """The engine that comes with the bundle, or the one that was built here of an ONNX variant.

    Raises `EngineError` with the reason why there is none that may and can run here, before any of it is deserialised.
    """
    library = Library(kind)
    found = Found(library, graph, variant, bundle, _capability(place))
    return TensorRtEngine(library, graph, spec, found.file, found.build, place, found.onnx)


class Found:
    """An engine's file, what it was built of, and the ONNX file that has its weights if it has not."""

    def __init__(
        self, library: Library, graph: str, variant: manifest.Variant, bundle: Bundle, capability: str
    ) -> None:
        """Raises `EngineError` where nothing fits."""
        comes_with = variant.build is not None
        if comes_with and not trusted(bundle):
            raise UnreadyError(f"the engines of {bundle.path} are code, and not trusted: mmrt trust {bundle.path}")
        source = _source(variant, bundle, graph)
        digest = bundle.digest(source.file) if source is not None else None
        wanted = cache.Wanted(
            library.kind, graph, variant.precision, digest, library.version, capability, str(bundle.path)
        )
        if variant.build is None:
            self.file, self.build = cache.find(wanted)
        elif problem := wanted.misfit(variant.build):
            raise EngineError(f"{variant.file}: {problem}")
        else:
            self.file, self.build = bundle.file(variant.file), variant.build
        self.onnx: Path | None = None
        if self.build.stripped:
            if source is None:
                raise EngineError(f"{variant.file}: its weights are those of an ONNX graph that is not in the bundle")
            self.onnx = bundle.onnx_file(source.file)


def _source(variant: manifest.Variant, bundle: Bundle, graph: str) -> manifest.Variant | None:
    """The ONNX variant of the same precision."""
    for each in bundle.manifest.graphs[graph].variants:
        if each.engine == "onnx" and each.precision == variant.precision:
            return each
    return None


def _capability(place: Any) -> str:
    major, minor = place.driver.capability
    return f"{major}.{minor}"


class TensorRtEngine:
    """A graph as an engine; arrays are `DeviceArray`s. Fixed dimensions stand as numbers in `inputs` and `outputs`."""

    capturable = True

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
        sizes = fixed(build)
        self.inputs: Mapping[str, manifest.Array] = specialised(spec.inputs, sizes)
        self.outputs: Mapping[str, manifest.Array] = specialised(spec.outputs, sizes)
        self._place = place
        place.driver.here()
        self._runtime = library.module.Runtime(library.log)
        self._engine = self._deserialized(file)
        if onnx is not None:
            self._refit(onnx)
        self._compare(file)
        self._aliases = self._aliased()
        self._config, self._kernels = self._configured()
        self._contexts: list[_Context] = []  # that are free
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
        last: Callable[[], None] | None = None,
    ) -> tuple[Callable[[], None], dict[str, Array]]:
        """See `Engine.bind`."""
        sizes: dict[str, int] = {}
        if problem := mismatch(self.graph, "input", self.inputs, arrays, sizes):
            raise RequestError(problem)
        profile = self._profile(sizes)
        self._place.driver.here()  # a request may go on in another thread than it began in
        context = self._take(device)
        bound = _Bound(self, context, device)
        shapes = {name: tuple(arrays[name].shape) for name in self.inputs}
        self._must(context.shape(profile, shapes, bound.handle), "does not take these shapes")
        outputs = {name: into[name] if name in into else self._empty(context, name, device) for name in self.outputs}
        if problem := mismatch(self.graph, "output", self.outputs, outputs, sizes):
            raise BundleError(f"{problem}, as the manifest says")
        bound.place({name: arrays[name] for name in self.inputs}, outputs, self._aliases)
        return bound, outputs

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
        model = as_tensorrt_takes_it(onnx, fixed(self._build))
        done = parser.refit_from_bytes(model, str(onnx)) and refitter.refit_cuda_engine()
        self._must(done, "cannot take its weights from the ONNX graph")

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
            config, f"{self.graph}.{self._build.source[:16]}.{self._library.version}.{_capability(self._place)}"
        )

    # ---------------------------------------------------------------- running

    def _profile(self, sizes: Mapping[str, int]) -> int:
        """The first profile with these sizes in it."""
        wanted = {name: sizes[name] for name in self._build.profiles[0] if name in sizes}
        for index, profile in enumerate(self._build.profiles):
            if all(profile[name].min <= size <= profile[name].max for name, size in wanted.items()):
                return index
        ranges = "; ".join(
            ", ".join(f"{name} {size.min} to {size.max}" for name, size in profile.items())
            for profile in self._build.profiles
        )
        asked = ", ".join(f"{name} {size}" for name, size in wanted.items())
        raise RequestError(f"{self.graph}: {asked} is asked for, its engine takes {ranges}; --shapes builds others")

    def _empty(self, context: _Context, name: str, device: Device) -> Array:
        shape = tuple(context.own.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise EngineError(f"{self.graph}: {self._library} does not know the shape of {name!r} before it has run")
        return device.empty(shape, self.outputs[name].dtype)

    def _take(self, device: Any) -> _Context:
        """A context that nobody uses; what it did before is over when the device's stream uses it."""
        with self._lock:
            context = self._contexts.pop() if self._contexts else None
        if context is None:
            own = self._engine.create_execution_context(self._config)
            self._must(own is not None, "gives no execution context")
            return _Context(own)
        if context.busy is not None:
            device.place.driver.wait(device.stream, context.busy)
        return context

    def give(self, context: _Context) -> None:
        """Let others have the context."""
        if self._kernels is not None and context.new:
            self._kernels.save()
            context.new = False
        with self._lock:
            self._contexts.append(context)

    def _must(self, done: Any, problem: str) -> None:
        if not done:
            reason = self._library.log.take() or "it does not say why"
            raise EngineError(f"{self.graph}: {self._library} {problem}: {reason}")

    def enqueue(self, context: _Context, handle: int) -> None:
        """Put a run into the stream."""
        if not context.own.execute_async_v3(handle):
            self._must(False, "failed")


class _Context:
    """An execution context, and what was set in it: that alone which changes is set again."""

    def __init__(self, own: Any) -> None:
        self.own = own
        self.busy: Any = None  # an event after all that it was last asked
        self.new = False  # it has met shapes since its kernels were saved
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory: tuple[int, int] = (0, 0)
        self._size = -1

    def shape(self, profile: int, shapes: Mapping[str, tuple[int, ...]], handle: int) -> bool:
        """Set the profile and the shapes; whether it takes them."""
        if profile != self._profile:
            if not self.own.set_optimization_profile_async(profile, handle):
                return False
            self._profile, self._shapes = profile, {}
        for name, shape in shapes.items():
            if self._shapes.get(name) != shape:
                if not self.own.set_input_shape(name, shape):
                    self._shapes.pop(name, None)
                    return False
                self._shapes[name], self._size, self.new = shape, -1, True
        return True

    def size(self) -> int:
        """Bytes that the activations take."""
        if self._size < 0:
            self._size = int(self.own.update_device_memory_size_for_shapes())
            self._memory = (0, 0)
        return self._size

    def remember(self, pointer: int, size: int) -> None:
        """Set where the activations are."""
        if self._memory != (pointer, size):
            self.own.set_device_memory(pointer, size)
            self._memory = (pointer, size)

    def address(self, name: str, pointer: int) -> bool:
        """Set where an input or output lies; whether there is such a one."""
        if self._addresses.get(name) == pointer:
            return True
        self._addresses[name] = pointer
        return bool(self.own.set_tensor_address(name, pointer))


class _Memory(NamedTuple):
    """Of the GPU, as long as it has an owner; not an array, which would keep its device alive."""

    pointer: int
    size: int
    owner: object


_ACTIVATIONS: weakref.WeakKeyDictionary[Any, _Memory] = weakref.WeakKeyDictionary()  # of each request's device


class _Bound:
    """A call of a context, which goes back when this is let go."""

    def __init__(self, engine: TensorRtEngine, context: _Context, device: Any) -> None:
        self._engine, self._context, self._device = engine, context, device
        self.handle: int = device.handle
        self._copies: list[tuple[Array, Array]] = []
        self._kept: list[Any] = []  # alive as long as the context has their addresses

    def place(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], aliases: Mapping[str, str]) -> None:
        """Say where all arrays lie. An input that is changed in place is the output's array, filled anew at each call
        where that is another."""
        lie = {**inputs, **outputs}
        for output, name in aliases.items():
            if outputs[output] is not inputs[name]:
                self._copies.append((outputs[output], inputs[name]))
                lie[name] = outputs[output]
        memory = self._memory(self._context.size())
        self._context.remember(memory.pointer, memory.size)
        for name, array in lie.items():
            placed = self._context.address(name, array.pointer or memory.pointer)  # of an empty array: anything but 0
            self._engine._must(placed, f"has no {name!r}")
        self._kept = [memory, *lie.values(), *inputs.values()]

    def _memory(self, size: int) -> _Memory:
        memory = _ACTIVATIONS.get(self._device)
        if memory is None or memory.size < size:
            array = self._device.empty((max(size, 256),), "uint8")
            memory = _ACTIVATIONS[self._device] = _Memory(array.pointer, array.nbytes, array.owner)
        return memory

    def __call__(self) -> None:
        for target, source in self._copies:
            self._device.copy(target, source)
        engine, context, handle = self._engine, self._context, self.handle
        self._device.place.driver.enqueue(self._device.stream, lambda: engine.enqueue(context, handle))

    def __del__(self) -> None:
        with suppress(Exception):  # at the interpreter's end there may be no device left
            self._context.busy = self._device.place.driver.record(self._device.stream)
            self._engine.give(self._context)


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
