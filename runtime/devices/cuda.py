"""An NVIDIA GPU: arrays in its memory, a stream for each request, and the kernels of the loops.

The operations have the names and arguments of their twins in `devices.cpu`, and do what `kernels.launch` says.
"""

from __future__ import annotations

import ctypes
import math
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mmrt.runtime.arrays import AnyArray, Int64, UInt8
from mmrt.runtime.devices import Kind
from mmrt.runtime.devices.driver import Driver
from mmrt.runtime.errors import EngineError, EngineWarning
from mmrt.runtime.kernels import launch
from mmrt.runtime.kernels.launch import Launch

DRIVER: Callable[[int], Driver] = Driver  # what drives a GPU; the tests have a double
_LEAST = 4096  # bytes of a block of pinned memory

_GPUS: dict[int, Gpu] = {}
_LOCK = threading.Lock()


def gpu(index: int) -> Gpu:
    """The GPU of this number, opened once for all pipelines. Raises `EngineError` with why it cannot be used."""
    with _LOCK:
        if index not in _GPUS:
            _GPUS[index] = Gpu(DRIVER(index))
        return _GPUS[index]


class DeviceArray:
    """A contiguous array in a GPU's memory, which stays while there is an `owner`; `device`'s stream has what wrote it.

    Other libraries take it without a copy: `torch.from_dlpack(array)`; `Cuda.borrow` takes theirs.
    """

    __slots__ = ("device", "dtype", "nbytes", "owner", "pointer", "shape")

    def __init__(self, pointer: int, shape: Sequence[int], dtype: npt.DTypeLike, owner: object, device: Cuda) -> None:
        self.pointer, self.shape, self.dtype = pointer, tuple(map(int, shape)), np.dtype(dtype)
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        self.owner, self.device = owner, device

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def strides(self) -> tuple[int, ...]:
        """In elements."""
        return tuple(math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))

    def __dlpack_device__(self) -> tuple[int, int]:
        """(kDLCUDA, number)."""
        return 2, self.device.place.driver.index

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> object:
        """A DLPack capsule; the `stream` that will read it goes on after what wrote it."""
        return self.device.place.driver.lend(self, self.device.stream, stream, options)


class Gpu:
    """A place: its memory's pool, the kernels, and pinned memory through which arrays come and go."""

    kind: Kind = "cuda"

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.name = f"cuda:{driver.index}"
        self._lock = threading.Lock()
        self._kernels: dict[str, Any] = {}
        self._find = driver.load()
        self._blocks: list[_Block] = []
        free, _ = driver.memory()
        self._free = self._least = free  # bytes, when it was opened and at the least since

    def __str__(self) -> str:
        return f"{self.name} ({self.driver.name})"

    def device(self) -> Cuda:
        """The GPU with a stream of its own."""
        return Cuda(self)

    def kernel(self, name: str) -> Any:
        """A kernel, from the code that is compiled for this GPU."""
        with self._lock:
            if name not in self._kernels:
                self._kernels[name] = self._find(name)
            return self._kernels[name]

    def look(self) -> int:
        """The most bytes that were in use, since it was opened, at any time that this was called."""
        free, _ = self.driver.memory()
        with self._lock:
            self._least = min(self._least, free)
            return self._free - self._least

    def block(self, count: int) -> _Block:
        """Pinned memory of `count` bytes or more; `give` it back."""
        with self._lock:
            for index, block in enumerate(self._blocks):
                if block.size >= count and (block.busy is None or self.driver.done(block.busy)):
                    return self._blocks.pop(index)
        return _Block(self.driver, max(_LEAST, 1 << (count - 1).bit_length()))

    def give(self, block: _Block, busy: Any) -> None:
        """Let others have the block, after the event `busy`."""
        block.busy = busy
        with self._lock:
            self._blocks.append(block)


class _Block:
    """Pinned memory, as bytes for NumPy."""

    def __init__(self, driver: Driver, size: int) -> None:
        self.size, self.busy = size, None
        self._memory = driver.pinned(size)
        self.pointer = driver.pointer(self._memory)
        self.bytes: UInt8 = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.pointer))


class Cuda:
    """A GPU as one request uses it: see `Device`. What is asked happens in the order of its `stream`."""

    kind: Kind = "cuda"

    def __init__(self, place: Gpu) -> None:
        self.place, self._driver = place, place.driver
        self.stream = self._driver.stream()

    @property
    def handle(self) -> int:
        """The stream as engines take it."""
        return self._driver.handle(self.stream)

    # ---------------------------------------------------------------- arrays

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> DeviceArray:
        array = DeviceArray(0, shape, dtype, None, self)
        if array.nbytes:
            array.owner = self._driver.allocate(array.nbytes, self.stream)
            array.pointer = self._driver.pointer(array.owner)
        return array

    def zeros(self, shape: Sequence[int], dtype: npt.DTypeLike) -> DeviceArray:
        array = self.empty(shape, dtype)
        if array.nbytes:
            self._driver.clear(array.pointer, array.nbytes, self.stream)
        return array

    def put(self, array: AnyArray) -> DeviceArray:
        made = self.empty(array.shape, array.dtype)
        self.write(made, array)
        return made

    def get(self, array: DeviceArray) -> AnyArray:
        found: AnyArray = np.empty(array.shape, array.dtype)
        if array.nbytes:
            block = self.place.block(array.nbytes)
            self._driver.copy(block.pointer, array.pointer, array.nbytes, self.stream)
            self._driver.sync(self.stream)
            found.reshape(-1).view(np.uint8)[:] = block.bytes[: array.nbytes]
            self.place.give(block, None)
        return found

    def write(self, array: DeviceArray, values: AnyArray) -> None:
        assert (array.shape, array.dtype) == (values.shape, values.dtype)
        if array.nbytes:
            block = self.place.block(array.nbytes)
            block.bytes[: array.nbytes] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
            self._driver.copy(array.pointer, block.pointer, array.nbytes, self.stream)
            self.place.give(block, self._driver.record(self.stream))

    def numbers(self, array: DeviceArray) -> _Numbers:
        return _Numbers(self, array)

    def copy(self, array: DeviceArray, values: DeviceArray) -> None:
        assert (array.shape, array.dtype) == (values.shape, values.dtype)
        if array.nbytes:
            self._driver.copy(array.pointer, values.pointer, array.nbytes, self.stream)

    def cast(self, array: DeviceArray, dtype: npt.DTypeLike) -> DeviceArray:
        return self.put(self.get(array).astype(dtype))

    def borrow(self, array: Any) -> DeviceArray:
        """An array of another library that has `__dlpack__`, where it lies; it is this GPU's, and contiguous."""
        return self._driver.borrow(array, self)

    # ---------------------------------------------------------------- operations

    def take_rows(self, array: DeviceArray, rows: Int64) -> DeviceArray:
        if len(rows) == len(array) and bool((rows == np.arange(len(rows))).all()):
            return array
        taken = self.empty((len(rows), *array.shape[1:]), array.dtype)
        self._launch(launch.take_rows(taken, array, self.put(rows.astype(np.int32))))
        return taken

    def enlarge(self, array: DeviceArray, capacity: int, length: int) -> DeviceArray:
        rows, heads, before, width = array.shape
        larger = self.zeros((rows, heads, capacity, width), array.dtype)
        if place := length * width * array.dtype.itemsize:
            strides = (capacity * place // length, before * place // length)
            self._driver.copy_rows(larger.pointer, array.pointer, strides, place, rows * heads, self.stream)
        return larger

    def reorder_rows(self, array: DeviceArray, rows: Int64, group: int, length: int) -> None:
        self._launch(launch.reorder_rows(array, self.put(rows.astype(np.int32)), group, length))

    def normal(
        self,
        out: DeviceArray,
        seeds: DeviceArray,
        offsets: DeviceArray,
        max_threads: int,
        table: DeviceArray | None = None,
        step: DeviceArray | None = None,
    ) -> None:
        self._launch(launch.normal(out, seeds, offsets, max_threads, table, step))

    def guide_and_step(self, *arrays: DeviceArray | None) -> None:
        self._launch(launch.guide_and_step(*arrays))  # type: ignore[arg-type]

    def choose_token(self, **arrays: DeviceArray) -> None:
        self._launch(launch.choose_token(**arrays))

    def _launch(self, launches: Iterable[Launch]) -> None:
        for each in launches:
            arguments = [_argument(argument) for argument in each.arguments]
            kernel = self.place.kernel(each.kernel)
            self._driver.launch(self.stream, kernel, each.grid, each.block, each.shared, arguments)

    # ---------------------------------------------------------------- time

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        return _Recorded(self, call)

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph of the call, or where it cannot be captured, the call."""
        try:
            return self._driver.capture(self.stream, call)
        except EngineError as error:
            warnings.warn(f"{error}; it goes on without one", EngineWarning, stacklevel=2)
            return call

    def mark(self) -> Any:
        return self._driver.record(self.stream)

    def seconds(self, start: Any, end: Any) -> float:
        return self._driver.seconds(start, end)


class _Numbers:
    """A small array's values, which go through pinned memory."""

    def __init__(self, device: Cuda, array: DeviceArray) -> None:
        self._device, self._array = device, array

    def write(self, values: list[int]) -> None:
        self._device.write(self._array, np.array(values, np.int64).reshape(self._array.shape))

    def read(self) -> list[int]:
        found: list[int] = self._device.get(self._array).ravel().tolist()
        return found


class _Recorded:
    """A call that is done as it is the first time, when libraries set up what they need, and then as a CUDA graph."""

    def __init__(self, device: Cuda, call: Callable[[], None]) -> None:
        self._device, self._call = device, call
        self._replay: Callable[[], None] | None = None
        self._first = True

    def __call__(self) -> None:
        if self._first:
            self._first = False
            self._call()
            return
        if self._replay is None:
            self._replay = self._device.capture(self._call)
        self._replay()


def _argument(argument: Any) -> Any:
    if argument is None:
        return 0
    return argument.pointer if isinstance(argument, DeviceArray) else argument
