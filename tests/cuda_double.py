"""A double of `devices.driver.Driver` over the host's memory, to run the GPU's path without a GPU.

Nothing happens when it is asked: streams keep what they are asked until somebody waits for it, so that whoever reads
too early, or writes into what is still to be read, gets wrong numbers. Memory that is new or let go holds garbage, and
what was let go stays in the pool until that is trimmed.
Kernels are the shipped source in the emulator. A graph notes what a stream is asked, and asks it again.
"""

from __future__ import annotations

import ctypes
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from emulation import Emulator

from mmrt.runtime import manifest
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.devices import Place
from mmrt.runtime.devices.cuda import Cuda, Gpu
from mmrt.runtime.engines import Engine
from mmrt.runtime.engines.onnx_cuda import CudaOnnxEngine
from mmrt.runtime.errors import EngineError
from mmrt.runtime.kernels.launch import Launch

GARBAGE = 0xA5
TOTAL = 8 << 30


class Event:
    """A point in a stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.passed = stream, 0.0


class Stream:
    """What was asked and is not yet done, in order."""

    def __init__(self) -> None:
        self.waiting: deque[Callable[[], None]] = deque()
        self.noted: list[Callable[[], None]] | None = None  # while a graph is captured

    def ask(self, work: Callable[[], None]) -> None:
        (self.waiting if self.noted is None else self.noted).append(work)

    def work(self, until: Event | None = None) -> None:
        while self.waiting and not (until and until.passed):
            self.waiting.popleft()()


class Memory:
    """Bytes, which are of no use before they are written, nor after they were let go."""

    def __init__(self, driver: Double, count: int, stream: Stream | None) -> None:
        self.driver, self.stream = driver, stream
        self.bytes = np.full(count, GARBAGE, np.uint8)
        self.pointer = self.bytes.ctypes.data
        driver.places[self.pointer] = count

    def __del__(self) -> None:
        bytes_, places, pointer = self.bytes, self.driver.places, self.pointer

        def release() -> None:
            bytes_[:] = GARBAGE
            del places[pointer]

        if self.stream is not None:
            self.stream.ask(release)


class Double:
    """One GPU. `graphs` and `replays` count what was captured and replayed, `syncs` how often the host waited."""

    name, capability = "a double", (8, 9)

    def __init__(self, emulator: Emulator, index: int = 0, free: int = TOTAL) -> None:
        self.index, self.free, self._emulator = index, free, emulator
        self.places: dict[int, int] = {}  # the bytes at each pointer that is in use
        self.streams: list[Stream] = []
        self.graphs = self.replays = self.syncs = 0
        self.pool = 0  # the most bytes of the GPU's that were in use since it was trimmed

    def providers(self, stream: Stream) -> tuple[str, list[Any]]:
        return "cpu", ["CPUExecutionProvider"]

    def here(self) -> None:
        """There is no other."""

    def memory(self) -> tuple[int, int]:
        self.pool = max(self.pool, sum(self.places.values()))
        return self.free - self.pool, TOTAL

    def trim(self) -> None:
        self.pool = sum(self.places.values())

    def stream(self) -> Stream:
        self.streams.append(Stream())
        return self.streams[-1]

    def handle(self, stream: Stream) -> int:
        return id(stream)

    def allocate(self, count: int, stream: Stream) -> Memory:
        if stream.noted is not None:
            raise EngineError("memory is allocated while a graph is captured")
        if count > self.free - sum(self.places.values()):
            raise EngineError(f"a double has no {count:,} bytes")
        made = Memory(self, count, stream)
        self.memory()
        return made

    def pinned(self, count: int) -> Memory:
        return Memory(self, count, None)

    def pointer(self, memory: Memory) -> int:
        return memory.pointer

    def copy(self, target: int, source: int, count: int, stream: Stream) -> None:
        self._known(target, count)
        stream.ask(lambda: ctypes.memmove(target, source, count) and None)

    def copy_rows(
        self, target: int, source: int, stride: tuple[int, int], width: int, count: int, stream: Stream
    ) -> None:
        for row in range(count):
            self.copy(target + row * stride[0], source + row * stride[1], width, stream)

    def clear(self, target: int, count: int, stream: Stream) -> None:
        self._known(target, count)
        stream.ask(lambda: ctypes.memset(target, 0, count) and None)

    def record(self, stream: Stream) -> Event:
        event = Event(stream)
        stream.ask(lambda: setattr(event, "passed", time.perf_counter()))
        return event

    def done(self, event: Event) -> bool:
        return bool(event.passed)

    def wait(self, stream: Stream, event: Event) -> None:
        stream.ask(lambda: event.stream.work(event))

    def seconds(self, start: Event, end: Event) -> float:
        end.stream.work(end)
        return end.passed - start.passed

    def sync(self, stream: Stream) -> None:
        if stream.noted is not None:
            raise EngineError("the host waits while a graph is captured")
        self.syncs += 1
        stream.work()

    def enqueue(self, stream: Stream, work: Callable[[], None]) -> None:
        stream.ask(work)

    def load(self) -> Callable[[str], str]:
        return str

    def launch(
        self,
        stream: Stream,
        kernel: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared: int,
        arguments: Sequence[Any],
    ) -> None:
        launches = [Launch(kernel, grid, block, tuple(arguments), shared)]
        stream.ask(lambda: self._emulator(launches))

    def capture(self, stream: Stream, work: Callable[[], None]) -> Callable[[], None]:
        stream.noted = noted = []
        try:
            work()
        finally:
            stream.noted = None
        self.graphs += 1

        def replay() -> None:
            self.replays += 1
            for each in noted:
                stream.ask(each)

        return replay

    def _known(self, pointer: int, count: int) -> None:
        inside = any(start <= pointer and pointer + count <= start + size for start, size in self.places.items())
        assert inside, f"{count} bytes at {pointer:#x} are nobody's"


class CapturedEngine(CudaOnnxEngine):
    """One that puts its work into the request's own stream, as TensorRT does, and may be captured."""

    def bind(self, *arguments: Any, **more: Any) -> Any:
        call, outputs = super().bind(*arguments, **more)
        call.capturable = True  # type: ignore[attr-defined]
        return call, outputs

    def _enqueue(self, binding: Any, device: Cuda, after: Callable[[], None] = lambda: None) -> None:
        self._driver.enqueue(device.stream, lambda: self._session.run_with_iobinding(binding, self._options))
        self._stream = device.stream
        after()


def load_captured(
    graph: str, spec: manifest.Graph, variant: manifest.Variant, bundle: Bundle, place: Place, threads: int
) -> Engine:
    """For `ENGINES`."""
    assert isinstance(place, Gpu)
    return CapturedEngine(graph, spec, bundle.onnx_file(variant.file), place)
