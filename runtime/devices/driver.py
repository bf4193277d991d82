"""The thin part of NVIDIA's cuda-core that a GPU is driven by: memory, streams, copies, events, kernels and graphs.

Nothing else in mmrt calls CUDA, so this file is what only a machine with a GPU can show, and what the tests put a
double in the place of. Streams and events are cuda-core's own; pointers are whole numbers.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from mmrt.runtime.errors import EngineError, MmrtError, RequestError

if TYPE_CHECKING:
    from mmrt.runtime.devices.cuda import Cuda, DeviceArray

_NEEDED = "pip install 'mmrt[cuda]'"
_OLDEST = 75  # the compute capability that the kernels are compiled for, times ten
_MEMORY = Path("/proc/meminfo")
Method = TypeVar("Method", bound=Callable[..., Any])


def expected() -> bool:
    """Whether this machine looks as if a GPU should be used: it has a driver, or the packages for one."""
    return _library() is not None or bool(importlib.util.find_spec("cuda") and importlib.util.find_spec("cuda.core"))


def _library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None


def _check(index: int) -> None:
    """Raises `EngineError` with the first reason why a GPU cannot be used; CUDA's packages are not imported before."""
    library = _library()
    if library is None:
        raise EngineError("no NVIDIA driver is installed")
    if code := library.cuInit(0):
        raise EngineError(f"the NVIDIA driver finds no GPU that it can use (cuInit gives {code})")
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    library.cuDeviceGetCount(ctypes.byref(count))
    if index >= count.value:
        raise EngineError(f"there is no GPU {index}: the NVIDIA driver has {count.value}, counted from 0")
    try:
        from cuda import bindings, core
    except ImportError as error:
        what = f"{error.name} is not installed" if isinstance(error, ModuleNotFoundError) else str(error)
        raise EngineError(f"a GPU is here, but {what}: {_NEEDED}") from None
    wanted = int(bindings.__version__.split(".")[0])
    if version.value // 1000 < wanted:
        has = f"{version.value // 1000}.{version.value % 1000 // 10}"
        raise EngineError(
            f"the NVIDIA driver is for CUDA {has}, cuda-bindings {bindings.__version__} need one for {wanted} or later"
        )
    capability = core.Device(index).compute_capability
    if 10 * capability.major + capability.minor < _OLDEST:
        raise EngineError(
            f"the GPU {core.Device(index).name} has compute capability {capability.major}.{capability.minor}, wanted "
            f"{_OLDEST // 10}.{_OLDEST % 10} or later"
        )


def _told(method: Method) -> Method:
    """The method, of which `EngineError` tells what cuda-core raises: its exceptions share no base but `Exception`."""

    @wraps(method)
    def call(self: Driver, *arguments: Any) -> Any:
        try:
            return method(self, *arguments)
        except MmrtError:
            raise
        except Exception as error:
            raise EngineError(f"{self.name}: {error}") from None

    return cast("Method", call)


def _available() -> int:
    """Bytes of the host's memory that programs may still take, as Linux counts them; 0 elsewhere."""
    try:
        lines = dict(line.split(":", 1) for line in _MEMORY.read_text("ascii").splitlines())
        return int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, ValueError, KeyError):
        return 0


def _contiguous(array: DeviceArray, strides: Sequence[int] | None) -> bool:
    """Whether these are an array's strides; of a dimension of size 1, libraries say what they like."""
    sizes = zip(array.shape, array.strides, strides or array.strides, strict=True)
    return all(size == 1 or stride == own for size, own, stride in sizes)


class Driver:
    """One GPU. What takes a stream happens in that stream's order, and returns before it is done."""

    name = "the GPU"

    @_told
    def __init__(self, index: int) -> None:
        """Raises `EngineError` with the reason where this GPU cannot be used."""
        _check(index)
        from cuda import core
        from cuda.bindings import driver as bindings

        self.index = index
        self._core, self._bindings, self._utils = core, bindings, core.utils
        self._thread, self._context = threading.local(), 0
        self.here()
        self._context = self._current()
        device = core.Device(index)
        self._held = device.context  # what cuda-core has of it goes with this thread, and the last one ends it
        self._memory = device.memory_resource  # the GPU's own stream-ordered pool, where it has one
        self._integrated = bool(device.properties.integrated)
        self._pinned = core.LegacyPinnedMemoryResource()
        self._timed = core.EventOptions(timing_enabled=True)
        capability = device.compute_capability
        self.name = device.name
        self.capability = capability.major, capability.minor

    def providers(self, stream: Any) -> tuple[str, list[Any]]:
        """ONNX Runtime's name for this device's memory, and the provider that works in `stream`."""
        options = {
            "device_id": str(self.index),
            "user_compute_stream": str(int(stream.handle)),
            "use_tf32": "0",  # a variant in fp32 is one: those in fp16 are for speed
        }
        return "cuda", [("CUDAExecutionProvider", options), "CPUExecutionProvider"]

    def here(self) -> None:
        """Make the GPU the current one of this thread, where it is not: other libraries may have made theirs so."""
        if self._current() != self._context or not getattr(self._thread, "known", False):
            self._core.Device(self.index).set_current()
            self._thread.known = True  # to cuda-core, whose devices are other objects in each thread

    def memory(self) -> tuple[int, int]:
        """Bytes that are free, and bytes that there are."""
        self.here()
        free, total = map(int, self._done(self._bindings.cuMemGetInfo()))
        # of memory that is the host's too, CUDA counts what the system keeps of files as used: not so the system
        return min(max(free, _available()), total) if self._integrated else free, total

    def trim(self) -> None:
        """Let others have what the pool keeps of memory that was let go."""
        self.here()
        if isinstance(self._memory, self._core.DeviceMemoryResource):
            self._done(self._bindings.cuMemPoolTrimTo(self._memory.handle, 0))

    @_told
    def stream(self) -> Any:
        """A new stream."""
        self.here()
        return self._core.Device(self.index).create_stream()  # which is another object in each thread

    def handle(self, stream: Any) -> int:
        """The stream as other libraries take it."""
        return int(stream.handle)

    def allocate(self, count: int, stream: Any) -> Any:
        """Bytes of the GPU's memory, from its pool; they go back in the stream's order when let go. `pointer` of it."""
        self.here()
        try:
            return self._memory.allocate(count, stream=stream)
        except Exception as error:
            free, total = self.memory()
            raise EngineError(
                f"{self.name} has no {count:,} bytes for an array, {free:,} of {total:,} are free ({error})"
            ) from None

    @_told
    def pinned(self, count: int) -> Any:
        """Bytes of the host's memory that the GPU reads and writes without a copy in between."""
        self.here()
        return self._pinned.allocate(count)

    def pointer(self, memory: Any) -> int:
        """Where memory begins."""
        return int(memory.handle)

    def copy(self, target: int, source: int, count: int, stream: Any) -> None:
        """Bytes from one place to another, each on the GPU or in the host's pinned memory."""
        self.here()
        self._done(self._bindings.cuMemcpyAsync(target, source, count, stream.handle))

    def copy_rows(self, target: int, source: int, stride: tuple[int, int], width: int, count: int, stream: Any) -> None:
        """`count` runs of `width` bytes on the GPU, those of target and source `stride` bytes apart."""
        self.here()
        copy = self._bindings.CUDA_MEMCPY2D()
        copy.dstMemoryType = copy.srcMemoryType = self._bindings.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.dstDevice, copy.srcDevice = target, source
        copy.dstPitch, copy.srcPitch = stride
        copy.WidthInBytes, copy.Height = width, count
        self._done(self._bindings.cuMemcpy2DAsync(copy, stream.handle))

    def clear(self, target: int, count: int, stream: Any) -> None:
        """Bytes on the GPU become 0."""
        self.here()
        self._done(self._bindings.cuMemsetD8Async(target, 0, count, stream.handle))

    @_told
    def record(self, stream: Any) -> Any:
        """An event after all that the stream was asked so far."""
        self.here()
        return stream.record(options=self._timed)

    @_told
    def done(self, event: Any) -> bool:
        """Whether the event has passed."""
        return bool(event.is_done)

    @_told
    def wait(self, stream: Any, event: Any) -> None:
        """Let the stream go on after the event."""
        stream.wait(event)

    @_told
    def seconds(self, start: Any, end: Any) -> float:
        """The time between two events that have passed."""
        end.sync()
        return float(end - start) / 1000

    @_told
    def sync(self, stream: Any) -> None:
        """Wait until the stream is done. Raises `EngineError` where something in it failed."""
        stream.sync()

    def enqueue(self, stream: Any, work: Callable[[], None]) -> None:
        """Work of another library that puts itself into the stream."""
        self.here()
        work()

    @_told
    def load(self) -> Callable[[str], Any]:
        """The kernels, compiled for this GPU, by their names. Raises `EngineError` where the driver refuses them."""
        from mmrt.runtime.kernels.compiled import binary

        self.here()
        code = self._core.ObjectCode.from_fatbin(binary(self.capability), name="mmrt")
        code.get_kernel("normal")  # loads them all: until then the driver has not seen them
        find: Callable[[str], Any] = code.get_kernel
        return find

    @_told
    def launch(
        self, stream: Any, kernel: Any, grid: Sequence[int], block: Sequence[int], shared: int, arguments: Sequence[Any]
    ) -> None:
        """Run a kernel. Arguments are pointers, which are ints, and NumPy numbers."""
        self.here()
        config = self._core.LaunchConfig(grid=tuple(grid), block=tuple(block), shmem_size=shared)
        self._core.launch(stream, config, kernel, *arguments)

    def capture(self, stream: Any, work: Callable[[], None]) -> Callable[[], None]:
        """Note what `work` asks the stream, without doing it; the call returned does it, in the stream, as one.

        Raises `EngineError` where something in it cannot be noted.
        """
        self.here()
        relaxed = self._bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED  # others mind what is freed too
        try:
            self._done(self._bindings.cuStreamBeginCapture(stream.handle, relaxed))
            try:
                work()
            except BaseException:
                _, graph = self._bindings.cuStreamEndCapture(stream.handle)
                if graph is not None:
                    self._bindings.cuGraphDestroy(graph)
                raise
            (graph,) = self._done(self._bindings.cuStreamEndCapture(stream.handle))
            return _Graph(self, graph, stream)
        except Exception as error:
            raise EngineError(f"{self.name}: a CUDA graph cannot be captured: {error}") from None

    @_told
    def lend(self, array: DeviceArray, stream: Any, reader: int | None, options: dict[str, Any]) -> object:
        """A DLPack capsule of the array, for the stream `reader` of another library: 1 is the default stream."""
        self.here()
        if reader is not None and reader > 2:
            self.wait(self._core.Stream.from_handle(reader), self.record(stream))
        elif reader != -1:
            self.sync(stream)
        buffer = self._core.Buffer.from_handle(array.pointer, array.nbytes, owner=array)
        view = self._utils.StridedMemoryView.from_buffer(buffer, array.shape, dtype=array.dtype)
        return view.__dlpack__(stream=-1, **options)

    @_told
    def borrow(self, array: Any, device: Cuda) -> DeviceArray:
        """An array of another library, after what that asked so far. Raises `RequestError`."""
        from mmrt.runtime.devices.cuda import DeviceArray

        self.here()
        view = self._utils.StridedMemoryView.from_dlpack(array, stream_ptr=self.handle(device.stream))
        made = DeviceArray(view.ptr, view.shape, view.dtype, view, device)
        if view.device_id != self.index or not _contiguous(made, view.strides):
            raise RequestError(
                f"an array with the strides {view.strides} of GPU {view.device_id} is given, wanted one of "
                f"GPU {self.index} with {made.strides}"
            )
        return made

    def _current(self) -> int:
        (context,) = self._done(self._bindings.cuCtxGetCurrent())
        return int(context)

    def _done(self, result: Any) -> Any:
        code, *values = result
        if int(code):
            self._failed(code)
        return values

    def _failed(self, code: Any) -> NoReturn:
        _, text = self._bindings.cuGetErrorString(code)
        raise EngineError(f"{self.name}: {text.decode() if text else code}")


class _Graph:
    """A CUDA graph, launched into its stream.

    Not cuda-core's, whose builder ends the process where a capture failed: it destroys a graph that is no more.
    """

    def __init__(self, driver: Driver, graph: Any, stream: Any) -> None:
        self._driver, self._stream, self._own = driver, stream, None
        bindings = driver._bindings
        try:
            (self._own,) = driver._done(bindings.cuGraphInstantiate(graph, 0))
            driver._done(bindings.cuGraphUpload(self._own, stream.handle))
        finally:
            bindings.cuGraphDestroy(graph)

    def __call__(self) -> None:
        self._driver.here()
        self._driver._done(self._driver._bindings.cuGraphLaunch(self._own, self._stream.handle))

    def __del__(self) -> None:
        with suppress(Exception):  # at the interpreter's end there may be no driver left
            if self._own is not None:
                self._driver._bindings.cuGraphExecDestroy(self._own)
