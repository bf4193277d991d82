"""What a machine can really run: which place a bundle is loaded on, and which engine and variant each graph gets."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

from mmrt.runtime import background, manifest
from mmrt.runtime.arrays import need_bfloat16
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.devices import CPU, Place, cuda, driver
from mmrt.runtime.engines import ENGINES, Engine
from mmrt.runtime.engines.fallback import FallbackEngine
from mmrt.runtime.engines.tensorrt import TensorRtEngine
from mmrt.runtime.errors import EngineError, EngineWarning, RequestError, UnbuiltError, UnreadyError

Memory = Literal["full", "low"]
MEMORIES = ("full", "low")
DEVICES = "auto, cpu, cuda, cuda:1 and so on"
PRECISIONS = {  # by device, best first: ONNX Runtime on a CPU casts around fp16 and has no operators in bf16
    "cpu": ("fp32", "fp16", "int8"),
    "cuda": ("fp16", "bf16", "fp32", "int8"),  # bf16 is as fast as fp16, and an eighth as exact
}
_BF16 = (8, 0)  # the first compute capability that has it
_GPU = re.compile(r"cuda(?::([0-9]{1,3}))?\Z")
_SAID: set[str] = set()


@dataclass(frozen=True)
class Description:
    """How a bundle runs here: of each graph its engine, precision and place; what was refused, with the reason; and how
    the building of better engines in the background stands, if there is one."""

    engines: Mapping[str, str]
    refused: Mapping[str, str]
    building: str = ""

    def __str__(self) -> str:
        lines = [f"{graph}: {engine}" for graph, engine in self.engines.items()]
        lines += [f"refused {what}: {why}" for what, why in self.refused.items()]
        return "\n".join([*lines, *([f"building: {self.building}"] if self.building else [])])


def places(device: str, engine: str) -> tuple[list[Place], dict[str, str]]:
    """Where to try to load, best first, for a `device` and an `engine` that were asked for; what is refused and why.

    Raises `EngineError` where nothing is left, or what was asked for is not known.
    """
    if engine not in ("auto", *ENGINES):
        raise EngineError(f"engine {engine!r} is not supported; engines are auto, {', '.join(ENGINES)}")
    asked = gpu_number(device)
    if device not in ("auto", "cpu") and asked is None:
        raise EngineError(f"device {device!r} is not supported; devices are {DEVICES}")
    kinds = {kind for name, each in ENGINES.items() if engine in ("auto", name) for kind in each.kinds}
    found: list[Place] = []
    refused: dict[str, str] = {}
    if device != "cpu" and "cuda" in kinds:
        try:
            found.append(cuda.gpu(asked or 0))
        except EngineError as error:
            if asked is not None or "cpu" not in kinds:
                raise EngineError(f"{engine if asked is None else device}: {error}") from None
            refused["cuda"] = str(error)
            if driver.expected():
                say_once(f"runs on the CPU: {error}")
    if asked is None and "cpu" in kinds:
        found.append(CPU)
    if not found:
        raise EngineError(f"the engine {engine!r} runs on {' and '.join(sorted(kinds))}, not on {device}")
    return found, refused


def gpu_number(device: str) -> int | None:
    """N of "cuda:N", 0 of "cuda"; None of what is no GPU."""
    found = _GPU.match(device)
    return int(found[1] or 0) if found else None


def say_once(message: str) -> None:
    """Warn, once in a process."""
    if message not in _SAID:
        _SAID.add(message)
        warnings.warn(message, EngineWarning, stacklevel=2)


def precisions(manifest_: manifest.Manifest, asked: str, device: str) -> tuple[str, ...]:
    """Those to look for in every graph, best first: what is asked for, else what this device does fastest.

    Graphs of which there is no other variant stay in fp32, which loses nothing.
    """
    if asked == "auto":
        return PRECISIONS[device]
    offered = {variant.precision: None for graph in manifest_.graphs.values() for variant in graph.variants}
    if asked not in offered:
        raise EngineError(f"precision is {asked!r}, {manifest_.name} has {', '.join(offered)}")
    if asked not in PRECISIONS[device]:
        here = ", ".join(each for each in offered if each in PRECISIONS[device])
        raise EngineError(
            f"precision is {asked!r}, in which ONNX Runtime has no operators on a CPU: that takes a GPU, the CPU {here}"
        )
    return asked, "fp32"


class Engines(Mapping[str, Engine]):
    """The engines of a bundle's graphs by name, on one place: each is the best that loads, when first asked for.

    With memory "low" they are there only while `lent`. With `build`, better engines than those of ONNX Runtime are
    built in the background where there are none.
    """

    def __init__(
        self, bundle: Bundle, place: Place, engine: str, precision: str, threads: int, memory: Memory, build: bool
    ) -> None:
        self._bundle, self.place, self._threads, self._memory = bundle, place, threads, memory
        self._precision, self._build = precision, build
        wanted = precisions(bundle.manifest, precision, place.kind)
        backends = [name for name, each in ENGINES.items() if engine in ("auto", name) and place.kind in each.kinds]
        self._candidates = {
            name: _candidates(name, graph, backends, wanted) for name, graph in bundle.manifest.graphs.items()
        }
        self.refused: dict[str, str] = {}
        self._unready: dict[str, tuple[str, UnreadyError]] = {}  # the first engine of a graph that a command could give
        self._tried: set[str] = set()  # graphs whose first candidate has loaded
        self._others: dict[str, str] = {}  # what else serves, for sizes that an engine was not built for
        self._said = False  # how a better engine could be had
        self._building: background.Building | None = None
        self._loaded: dict[str, Engine] = {}
        self._users: dict[str, int] = {}
        self._lock = threading.Lock()
        self._check_room()

    def load(self, names: Iterable[str]) -> None:
        """Load several at the same time, where they may stay."""
        if self._memory == "full":
            with ThreadPoolExecutor() as pool:
                list(pool.map(self.__getitem__, names))

    @contextmanager
    def lent(self, names: Iterable[str]) -> Iterator[None]:
        """Graphs that stay while this lasts, and with memory "low" are let go when nobody has them any more."""
        names = [*names]
        with self._lock:
            for name in names:
                self._users[name] = self._users.get(name, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                for name in names:
                    self._users[name] -= 1
                    if self._memory == "low" and not self._users[name]:
                        self._loaded.pop(name, None)

    def building(self) -> str:
        """How the building of better engines in the background stands; nothing where there is none."""
        building = self._building
        return str(building) if building is not None and building.state() != "none" else ""

    def variant(self, name: str) -> tuple[str, manifest.Variant]:
        """A graph's engine and variant: those that loaded, else those that are tried next."""
        return self._candidates[name][0]

    def described(self, name: str) -> str:
        """What runs a graph and where; of one that nobody has asked for yet, what will be tried first."""
        backend, variant = self.variant(name)
        also = f", {self._others[name]} at other sizes" if name in self._others else ""
        if name not in self._tried and len({backend for backend, _ in self._candidates[name]}) > 1:
            also = ", if it loads"
        return f"{backend} {variant.precision} on {self.place}{also}"

    def __getitem__(self, name: str) -> Engine:
        found = self._loaded.get(name)
        if found is None:
            found = self._load(name)
            with self._lock:
                found = self._loaded.setdefault(name, found)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._candidates)

    def __len__(self) -> int:
        return len(self._candidates)

    def _load(self, name: str) -> Engine:
        """The best that loads; what does not is not tried again."""
        candidates = self._candidates[name]
        while True:
            backend, variant = candidates[0]
            if backend == "onnx":
                self._improve(name)
            try:
                found = self._for_all_sizes(name, self._open(name, backend, variant), variant.precision)
                self._tried.add(name)
                return found
            except EngineError as error:
                if len(candidates) == 1:
                    raise
                with self._lock:
                    if isinstance(error, UnreadyError):
                        self._unready.setdefault(name, (backend, error))
                    if candidates[0] == (backend, variant):
                        del candidates[0]
                        self.refused[f"{backend} {variant.precision} of {name}"] = str(error)

    def _open(self, name: str, backend: str, variant: manifest.Variant) -> Engine:
        if isinstance(self.place, cuda.Gpu):
            self.place.driver.trim()  # engines do not take from the pool
        check_bf16(variant, self.place)
        spec = self._bundle.manifest.graphs[name].of(variant)
        return ENGINES[backend].load(name, spec, variant, self._bundle, self.place, self._threads)

    def _for_all_sizes(self, name: str, engine: Engine, precision: str) -> Engine:
        """With ONNX Runtime for sizes that an engine was not built for, where the bundle has a graph for it."""
        found = (variant for backend, variant in self._candidates[name] if backend == "onnx")
        variant = next((each for each in found if each.precision == precision), None)
        if not isinstance(engine, TensorRtEngine) or variant is None:
            return engine

        def load(problem: str) -> Engine:
            try:
                other = self._open(name, "onnx", variant)
            except EngineError as error:
                raise RequestError(f"{problem}, and ONNX Runtime does not take them: {error}") from None
            self._others[name] = f"onnx {precision}"
            say_once(f"{problem}; ONNX Runtime takes them meanwhile")
            return other

        return FallbackEngine(self._bundle.manifest.graphs[name].of(variant), engine, load)

    def _improve(self, name: str) -> None:
        """Before ONNX Runtime serves: begin to build what would be better, or say which command gives it; once."""
        with self._lock:
            if name not in self._unready or self._said:
                return
            self._said = True
            backend, error = self._unready[name]
        said = str(error)
        if isinstance(error, UnbuiltError) and isinstance(self.place, cuda.Gpu):
            with suppress(EngineError):
                self._building = building = background.Building(self._bundle, backend, self.place, self._precision)
                if self._build:
                    building.begin()
                if (state := building.state()) != "none":
                    said = building.notice if state == "running" else ""  # how it failed, `describe` says
        if said:
            say_once(f"{said}; another engine serves meanwhile")

    def _check_room(self) -> None:
        """Raise `EngineError` where the GPU's memory cannot even hold the weights."""
        if not isinstance(self.place, cuda.Gpu):
            return
        sizes = [self._bundle.manifest.size(self.variant(name)[1].file) for name in self]
        needed = max(sizes) if self._memory == "low" else sum(sizes)
        self.place.driver.trim()
        free, total = self.place.driver.memory()
        if needed > free:
            advice = "" if self._memory == "low" else '; memory "low" loads one after the other'
            raise EngineError(
                f"{self.place} has {free / 1e9:.1f} GB of {total / 1e9:.1f} free, the weights take "
                f"{needed / 1e9:.1f}{advice}"
            )


def check_bf16(variant: manifest.Variant, place: Place) -> None:
    """Raise `EngineError` where the GPU or NumPy has none."""
    if variant.precision == "bf16" and isinstance(place, cuda.Gpu) and place.driver.capability < _BF16:
        own, least = (".".join(map(str, each)) for each in (place.driver.capability, _BF16))
        raise EngineError(f"bf16 takes a GPU of compute capability {least} or more, {place} has {own}")
    if "bfloat16" in variant.dtypes.values():
        need_bfloat16()


def _candidates(
    name: str, graph: manifest.Graph, backends: list[str], wanted: tuple[str, ...]
) -> list[tuple[str, manifest.Variant]]:
    found = [
        (backend, variant)
        for precision in wanted
        for backend in backends
        for variant in graph.variants
        if variant.precision == precision and variant.engine in ENGINES[backend].takes
    ]
    if not found:
        offered = ", ".join(f"{variant.engine} {variant.precision}" for variant in graph.variants)
        raise EngineError(f"{name}: no variant of precision {' or '.join(wanted)} runs here; the bundle has {offered}")
    return found
