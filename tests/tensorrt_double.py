"""A double of the modules `tensorrt` and `tensorrt_rtx`, over the host's memory.

Its engine files name an ONNX graph, which ONNX Runtime computes. Its builder asks for what the real one does, and
builds at once. Its contexts mind what the real ones do, and more: an
unknown name, a shape out of its profile, an address that is missing, activations without memory, and an output that is
changed in place but lies elsewhere each end in an error, as does a thread whose current GPU is another; what is set
again without a change is counted.
"""

from __future__ import annotations

import ctypes
import enum
import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from cuda_double import Double

VERSION = "11.4.1"
_NAMES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64", "int32": "INT32", "uint8": "UINT8", "bool": "BOOL"}
STREAMS: dict[int, Callable[[Callable[[], None]], None]] = {}  # how to put work into a stream; without, it is done
CURRENT: set[int] = set()  # the threads whose current GPU is the engines'
BUILDS: list[Callable[[str], str | None]] = []  # what to do when a graph's engine is built; why that fails, if it does
_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


def engine_file(
    path: Path, onnx: Path, profiles: Sequence[dict[str, tuple[int, int]]], aliases: dict[str, str] | None = None
) -> Path:
    """Write an engine of the graph that takes the dimensions of the profiles from a least to a most."""
    path.write_text(json.dumps({"onnx": str(onnx), "profiles": list(profiles), "aliases": aliases or {}}))
    return path


def _session(onnx: str) -> ort.InferenceSession:
    """Without the optimizer that ends the process in fp16."""
    return ort.InferenceSession(onnx, providers=["CPUExecutionProvider"], disabled_optimizers=["NchwcTransformer"])


class ILogger:
    ERROR, INTERNAL_ERROR, WARNING = "error", "internal error", "warning"


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(enum.Enum):
    TF32 = 0
    STRIP_PLAN = 1
    REFIT_IDENTICAL = 2


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class Network:
    """What a parser read."""

    num_layers = 0

    def __init__(self, flags: int) -> None:
        assert flags == 2, "not strongly typed"
        self.path, self.inputs, self.outputs = "", list[Any](), list[Any]()

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, index: int) -> Any:
        return self.inputs[index]

    def get_output(self, index: int) -> Any:
        return self.outputs[index]


class OnnxParser:
    num_errors = 0

    def __init__(self, network: Network, log: Any) -> None:
        self.network = network

    def parse(self, model: bytes, path: str) -> bool:
        session = _session(path)
        self.network.path = path
        for into, found in (
            (self.network.inputs, session.get_inputs()),
            (self.network.outputs, session.get_outputs()),
        ):
            for each in found:
                dims = tuple(dim if isinstance(dim, int) else -1 for dim in each.shape)
                kind = SimpleNamespace(name=_NAMES[_TYPES[each.type]])
                into.append(SimpleNamespace(name=each.name, dtype=kind, shape=dims, dims=each.shape))
        return True


class OptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Sequence[int], ...]] = {}

    def set_shape(self, name: str, least: Sequence[int], usual: Sequence[int], most: Sequence[int]) -> None:
        assert all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True))
        self.shapes[name] = least, usual, most


class BuilderConfig:
    progress_monitor: Any = None
    num_compute_capabilities = 0

    def __init__(self) -> None:
        self.flags = {BuilderFlag.TF32}
        self.profiles: list[OptimizationProfile] = []
        self.limits: dict[MemoryPoolType, int] = {}

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def add_optimization_profile(self, profile: OptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        assert isinstance(size, int)
        self.limits[pool] = size


class Builder:
    def __init__(self, log: Any) -> None:
        assert threading.get_ident() in CURRENT, "TensorRT builds for the thread's current GPU"
        self.log = log

    def create_network(self, flags: int) -> Network:
        return Network(flags)

    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig()

    def create_optimization_profile(self) -> OptimizationProfile:
        return OptimizationProfile()

    def build_serialized_network(self, network: Network, config: BuilderConfig) -> bytes | None:
        assert threading.get_ident() in CURRENT, "TensorRT builds for the thread's current GPU"
        assert BuilderFlag.TF32 not in config.flags
        assert config.limits[MemoryPoolType.WORKSPACE] > 0
        monitor = config.progress_monitor
        monitor.phase_start("build", None, 2)
        monitor.step_complete("build", 0)
        for each in BUILDS:
            if problem := each(Path(network.path).name):
                self.log.log(ILogger.ERROR, problem)
                return None
        monitor.phase_finish("build")
        free = {each.name: each.dims for each in network.inputs if any(isinstance(dim, str) for dim in each.dims)}
        profiles = []
        for profile in config.profiles:
            assert profile.shapes.keys() == free.keys()
            ranges: dict[str, tuple[int, int]] = {}
            for name, (least, _, most) in profile.shapes.items():
                for dim, low, high in zip(free[name], least, most, strict=True):
                    if isinstance(dim, str):
                        assert ranges.setdefault(dim, (low, high)) == (low, high)
            profiles.append(ranges)
        whole = BuilderFlag.STRIP_PLAN not in config.flags
        return json.dumps({"onnx": network.path, "profiles": profiles, "aliases": {}, "whole": whole}).encode()


class IProgressMonitor:
    pass


class TensorIOMode(enum.Enum):
    INPUT = 0
    OUTPUT = 1


class TensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class EngineValidity(enum.Enum):
    VALID = 0
    INVALID = 2


class EngineInvalidityDiagnostics(enum.IntFlag):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2


class Runtime:
    """Reads engine files, but none that says why not."""

    def __init__(self, log: Any) -> None:
        self.log = log

    def deserialize_cuda_engine(self, data: Any) -> Engine | None:
        assert threading.get_ident() in CURRENT
        document = json.loads(bytes(data))
        if "error" in document:
            self.log.log(ILogger.ERROR, document["error"])
            return None
        return Engine(self.log, **document)


class RtxRuntime(Runtime):
    """Looks at an engine's first bytes too."""

    engine_header_size = 64

    def get_engine_validity(self, data: bytes) -> tuple[EngineValidity, int]:
        assert len(data) <= self.engine_header_size
        return (EngineValidity.INVALID, 3) if b"old" in data else (EngineValidity.VALID, 0)


class Engine:
    def __init__(
        self,
        log: Any,
        onnx: str,
        profiles: list[dict[str, list[int]]],
        aliases: dict[str, str],
        whole: bool = True,
        hosts: Sequence[str] = (),
    ) -> None:
        self.hosts = hosts  # tensors whose values shapes follow from
        self.log, self.onnx, self.profiles, self.aliases, self.whole = log, onnx, profiles, aliases, whole
        self.session = _session(onnx)
        self.inputs = {each.name: each for each in self.session.get_inputs()}
        self.tensors = self.inputs | {each.name: each for each in self.session.get_outputs()}
        self.known: dict[str, dict[str, tuple[int, ...]]] = {}
        self.contexts: list[Context] = []
        self.num_io_tensors = len(self.tensors)

    def outputs(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The shapes that they have where the inputs have these."""
        key = str(sorted(shapes.items()))
        if key not in self.known:
            names = [name for name in self.tensors if name not in self.inputs]
            zeros = {name: np.zeros(shape, _TYPES[self.inputs[name].type]) for name, shape in shapes.items()}
            self.known[key] = {
                name: each.shape for name, each in zip(names, self.session.run(names, zeros), strict=True)
            }
        return self.known[key]

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=_NAMES[_TYPES[self.tensors[name].type]])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(dim if isinstance(dim, int) else -1 for dim in self.tensors[name].shape)

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name in self.hosts else TensorLocation.DEVICE

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self.aliases.get(name)

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, how: Any) -> Context:
        strategy = how.strategy if isinstance(how, RuntimeConfig) else how
        assert strategy == "user managed"
        assert threading.get_ident() in CURRENT
        self.contexts.append(Context(self, how))
        return self.contexts[-1]


class Refitter:
    """Puts weights into an engine; the ONNX file itself has the double's."""

    def __init__(self, engine: Engine, log: Any) -> None:
        self.engine, self.given = engine, False

    def refit_cuda_engine(self) -> bool:
        self.engine.whole = self.given
        return self.given


class OnnxParserRefitter:
    def __init__(self, refitter: Refitter, log: Any) -> None:
        self.refitter = refitter

    def refit_from_bytes(self, model: bytes, path: str) -> bool:
        self.refitter.given = Path(path).name == Path(self.refitter.engine.onnx).name and len(model) > 0
        return self.refitter.given


class RuntimeConfig:
    strategy = "static"
    dynamic_shapes_kernel_specialization_strategy = "lazy"
    cache: RuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    """The kernels that were compiled: a line for each set of shapes."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.compiled = 0

    def deserialize(self, data: bytes) -> bool:
        self.lines = data.decode().splitlines()
        return True

    def serialize(self) -> bytes:
        return "\n".join(self.lines).encode()

    def meet(self, shapes: str) -> None:
        if shapes not in self.lines:
            self.lines.append(shapes)
            self.compiled += 1


class Context:
    def __init__(self, engine: Engine, how: Any) -> None:
        self.engine, self.how, self.set = engine, how, Counter[str]()
        self.profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)
        self.needs = -1
        self.streams: list[int] = []

    def _fail(self, message: str) -> bool:
        self.engine.log.log(ILogger.ERROR, message)
        return False

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert profile != self.profile
        self.set["profile"] += 1
        self.profile, self.shapes, self.needs = profile, {}, -1
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if name not in self.engine.inputs:
            return self._fail(f"no input is named {name}")
        assert self.shapes.get(name) != shape, f"the shape of {name} was set again without a change"
        self.set["shape"] += 1
        ranges = self.engine.profiles[self.profile]
        for size, dim in zip(shape, self.engine.inputs[name].shape, strict=True):
            least, most = ranges[dim] if isinstance(dim, str) else (dim, dim)
            if not least <= size <= most:
                return self._fail(f"{name} has a dimension of {size}, not from {least} to {most}")
        self.shapes[name], self.needs = shape, -1
        return True

    def _ready(self) -> bool:
        return self.shapes.keys() == self.engine.inputs.keys()

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self._ready()
        return self.shapes[name] if name in self.shapes else self.engine.outputs(self.shapes)[name]

    def update_device_memory_size_for_shapes(self) -> int:
        assert self._ready(), "shapes are missing"
        self.set["size"] += 1
        self.needs = 1000 * int(sum(np.prod(shape) for shape in self.shapes.values()))
        return self.needs

    def set_device_memory(self, pointer: int, size: int) -> None:
        assert pointer
        assert size >= self.needs >= 0
        self.set["memory"] += 1
        self.memory = (pointer, size)

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        if name not in self.engine.tensors:
            return self._fail(f"nothing is named {name}")
        assert pointer
        assert self.addresses.get(name) != pointer, f"the address of {name} was set again without a change"
        self.set["address"] += 1
        self.addresses[name] = pointer
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.set["execute"] += 1
        self.streams.append(stream)
        if not self.engine.whole:
            return self._fail("weights are missing")
        if not self._ready() or self.needs < 0 or self.memory[1] < self.needs:
            return self._fail("shapes or memory are missing")
        if self.addresses.keys() != self.engine.tensors.keys():
            return self._fail(f"no address for {sorted(self.engine.tensors.keys() - self.addresses.keys())}")
        for output, name in self.engine.aliases.items():
            if self.addresses[output] != self.addresses[name]:
                return self._fail(f"{output} must lie where {name} does")
        if isinstance(self.how, RuntimeConfig) and self.how.cache is not None:
            assert self.how.dynamic_shapes_kernel_specialization_strategy == "eager"
            self.how.cache.meet(str(sorted(self.shapes.items())))
        shapes, addresses, memory = dict(self.shapes), dict(self.addresses), (self.memory[0], self.needs)
        STREAMS.get(stream, lambda work: work())(lambda: self._compute(shapes, addresses, memory))
        return True

    def _compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int], memory: tuple[int, int]) -> None:
        ctypes.memset(memory[0], 0xAB, memory[1])  # activations: nobody else may count on what was there
        arrays = {name: self._array(name, shapes[name], addresses).copy() for name in self.engine.inputs}
        outputs = [name for name in self.engine.tensors if name not in self.engine.inputs]
        for name, array in zip(outputs, self.engine.session.run(outputs, arrays), strict=True):
            self._array(name, array.shape, addresses)[...] = array

    def _array(self, name: str, shape: Sequence[int], addresses: dict[str, int]) -> Any:
        dtype = np.dtype(_TYPES[self.engine.tensors[name].type])
        count = int(np.prod(shape)) * dtype.itemsize
        found = np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(addresses[name]))
        return found.view(dtype).reshape(shape)


class Gpu(Double):
    """A GPU that engines take for theirs. Its libraries work when the stream comes to it, this double too."""

    def here(self) -> None:
        CURRENT.add(threading.get_ident())


def module(kind: str = "tensorrt") -> Any:
    """The double of `tensorrt`, or of `tensorrt_rtx`."""
    rtx = kind == "tensorrt-rtx"
    return SimpleNamespace(
        __version__=VERSION,
        ILogger=ILogger,
        Builder=Builder,
        OnnxParser=OnnxParser,
        NetworkDefinitionCreationFlag=NetworkDefinitionCreationFlag,
        BuilderFlag=BuilderFlag,
        MemoryPoolType=MemoryPoolType,
        IProgressMonitor=IProgressMonitor,
        TensorIOMode=TensorIOMode,
        TensorLocation=TensorLocation,
        Refitter=Refitter,
        OnnxParserRefitter=OnnxParserRefitter,
        Runtime=RtxRuntime if rtx else Runtime,
        EngineValidity=EngineValidity,
        EngineInvalidityDiagnostics=EngineInvalidityDiagnostics,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
    )
