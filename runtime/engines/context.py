"""What runs a TensorRT engine: execution contexts, bound to a request's arrays.

A loop that is bound has a context of its own, whose shapes and addresses are set once; between two calls of it the host
does nothing but enqueue. The memory for activations is one block for all engines of a request, for they run one after
the other in its stream.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from mmrt.runtime.devices import Array

if TYPE_CHECKING:
    from mmrt.runtime.engines.tensorrt import TensorRtEngine


class Context:
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


class Bound:
    """A call of a context, which goes back when this is let go."""

    capturable = True

    def __init__(self, engine: TensorRtEngine, context: Context, device: Any) -> None:
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
            self._engine.must(placed, f"has no {name!r}")
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
