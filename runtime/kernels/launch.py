"""Which kernels an operation launches, with which grid, block and arguments: pure functions of the arrays' shapes.

Each has the name and the arguments of its twin in `devices.cpu`, which says what it does. A device and the tests'
emulator carry out exactly these descriptions. All numbers that change from step to step or from request to request lie
in the arrays, so one description, captured in a CUDA graph, serves every step of every request of these shapes.

Arrays are anything contiguous with `shape` and `dtype`. Of wrong dtypes and shapes a `TypeError` or `ValueError` says
the operation, the array, what it is and what was wanted: they are the caller's bug, as requests are checked before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from mmrt.runtime.noise import TorchCuda
from mmrt.runtime.samplers import COLUMNS

FLOATS = ("float32", "float16", "bfloat16")
THREADS = 256
WIDE = 4  # elements that a thread takes at once: 16 bytes of float32
ROW_THREADS = 512  # of a block that looks at a whole row or picture
PARTS = 48 << 10  # bytes of shared memory that every card gives a block without asking


class Array(Protocol):
    """A contiguous array in a device's memory. `dtype` is a NumPy dtype, or its name."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...


Argument: TypeAlias = "Array | np.generic | None"  # an array is given as its address, None as the null address
Size: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: its name in the source, the grid's blocks, a block's threads, bytes of shared memory."""

    kernel: str
    grid: Size
    block: Size
    arguments: tuple[Argument, ...]
    shared: int = 0


def guide_and_step(
    prediction: Array,
    latents: Array,
    history: Array,
    model_input: Array,
    timestep: Array,
    table: Array,
    step: Array,
    noise: Array | None = None,
    denoised: Array | None = None,
    factor: Array | None = None,
) -> list[Launch]:
    """See `cpu.guide_and_step`."""
    need = _Need("guide_and_step")
    batch, *rest = latents.shape
    copies = prediction.shape[0] // max(batch, 1)
    need("latents", latents, "float32", (batch, *rest))
    need("prediction", prediction, FLOATS, (batch * (2 if copies == 2 else 1), *rest))
    need("model_input", model_input, FLOATS, prediction.shape)
    need("history", history, "float32", (None, batch, *rest))
    need("timestep", timestep, "float32", (copies * batch,))
    need("table", table, "float32", (None, len(COLUMNS) + history.shape[0]))
    need("step", step, "int32", (2,))
    need("noise", noise, "float32", latents.shape)
    need("denoised", denoised, "float32", latents.shape)
    need("factor", factor if copies == 2 else None, "float32", (batch,))
    each = math.prod(rest)
    launches = []
    if factor is not None and copies == 2:
        kernel = f"rescale_{_name(prediction)}"
        given = prediction, factor, table, step, *_ints(each, table.shape[1])
        launches = [Launch(kernel, (batch, 1, 1), (ROW_THREADS, 1, 1), given)]
    else:
        factor = None
    sizes = _ints(batch, each, copies, history.shape[0])
    arrays = (prediction, latents, history, model_input, timestep, table, step, noise, denoised, factor)
    kernel = f"guide_and_step_{_name(prediction)}_{_name(model_input)}"
    return [*launches, Launch(kernel, _blocks(batch * each, WIDE), (THREADS, 1, 1), (*arrays, *sizes))]


def normal(
    out: Array,
    seeds: Array,
    offsets: Array,
    max_threads: int,
    table: Array | None = None,
    step: Array | None = None,
) -> list[Launch]:
    """See `cpu.normal`."""
    need = _Need("normal")
    need("out", out, "float32", out.shape)
    need("seeds", seeds, "uint64", out.shape[:1])
    need("offsets", offsets, "uint32", out.shape[:1])
    need("table", table, "float32", (None, None))
    need("step", step, "int32", (2,))
    size = math.prod(out.shape[1:])
    threads, fours = TorchCuda.threads(size, max_threads), TorchCuda.fours(size, max_threads)
    width = table.shape[1] if table is not None else 0
    grid = (-(-threads // THREADS), fours, out.shape[0])
    return [
        Launch("normal", grid, (THREADS, 1, 1), (out, seeds, offsets, table, step, *_ints(size, threads, fours, width)))
    ]


def blend(
    latents: Array, mask: Array, known: Array, noise: Array, model_input: Array, table: Array, step: Array
) -> list[Launch]:
    """See `cpu.blend`."""
    need = _Need("blend")
    batch, channels, *rest = latents.shape
    copies = model_input.shape[0] // max(batch, 1)
    need("latents", latents, "float32", (batch, channels, *rest))
    need("mask", mask, "float32", (batch, 1, *rest))
    need("known", known, "float32", latents.shape)
    need("noise", noise, "float32", latents.shape)
    need("model_input", model_input, FLOATS, (batch * (2 if copies == 2 else 1), channels, *rest))
    need("table", table, "float32", (None, None))
    need("step", step, "int32", (2,))
    sizes = _ints(batch, channels, math.prod(rest), copies, table.shape[1])
    arrays = (latents, mask, known, noise, model_input, table, step)
    grid = _blocks(math.prod(latents.shape))
    return [Launch(f"blend_{_name(model_input)}", grid, (THREADS, 1, 1), (*arrays, *sizes))]


def choose_token(
    logits: Array,
    scores: Array,
    history: Array,
    starts: Array,
    rules: Array,
    forbidden: Array,
    forced: Array,
    ends: Array,
    uniforms: Array,
    tokens: Array,
    positions: Array,
    ended: Array,
    state: Array,
) -> list[Launch]:
    """See `cpu.choose_token`."""
    need = _Need("choose_token")
    rows, vocabulary = scores.shape
    copies = logits.shape[0] // max(rows, 1)
    if vocabulary > 2**23:
        raise ValueError(f"choose_token: the vocabulary is {vocabulary}, wanted at most {2**23}")
    need("logits", logits, FLOATS, (rows * (2 if copies == 2 else 1), vocabulary))
    need("scores", scores, "float32", (rows, vocabulary))
    need("history", history, "int64", (rows, None))
    need("starts", starts, "int32", (rows,))
    need("rules", rules, "float32", (6,))
    need("forbidden", forbidden, "int32", (None, 4))
    need("forced", forced, "int32", (None,))
    need("ends", ends, "int32", (None,))
    need("uniforms", uniforms, "float64", (rows, None))
    need("tokens", tokens, "int64", (rows * copies, *(1 for _ in tokens.shape[1:])))
    need("positions", positions, "int64", (rows * copies,))
    need("ended", ended, "int32", (rows,))
    need("state", state, "int32", (4,))
    given = logits, scores, history, starts, rules, forbidden, forced, ends
    arrays = (*given, uniforms, tokens, positions, ended, state)
    counts = (forbidden.shape[0], forced.shape[0], ends.shape[0], uniforms.shape[1])
    sizes = _ints(vocabulary, copies, history.shape[1], *counts)
    return [Launch(f"choose_token_{_name(logits)}", (rows, 1, 1), (ROW_THREADS, 1, 1), (*arrays, *sizes))]


def take_rows(out: Array, array: Array, rows: Array) -> list[Launch]:
    """out[:] = array[rows], for `cpu.take_rows`; rows are int32 of the array's."""
    need = _Need("take_rows")
    need("array", array, _SIZES, array.shape)
    need("rows", rows, "int32", out.shape[:1])
    need("out", out, _name(array), (None, *array.shape[1:]))
    bytes_ = math.prod(array.shape[1:]) * _SIZES[_name(array)]
    unit = _unit(bytes_)
    if not bytes_ * out.shape[0]:
        return []
    grid = (-(-bytes_ // unit // THREADS), 1, out.shape[0])
    return [Launch(f"take_rows_{unit}", grid, (THREADS, 1, 1), (out, array, rows, *_ints(bytes_ // unit)))]


def reorder_rows(array: Array, rows: Array, group: int, length: int) -> list[Launch]:
    """See `cpu.reorder_rows`."""
    need = _Need("reorder_rows")
    count, heads, capacity, width = array.shape
    need("array", array, _SIZES, array.shape)
    need("rows", rows, "int32", (count,))
    if group < 1 or count % group or not 0 <= length <= capacity:
        raise ValueError(f"reorder_rows: {count} rows of {capacity} places in groups of {group}, the first {length}")
    bytes_ = width * _SIZES[_name(array)]
    unit = _unit(bytes_)
    threads = next((each for each in (256, 128, 64, 32) if each * group * unit <= PARTS), 0)
    if not threads:
        raise ValueError(f"reorder_rows: groups of {group} rows, wanted at most {PARTS // 32 // unit}")
    units = length * bytes_ // unit
    if not units * count * heads:
        return []
    sizes = _ints(heads, units, capacity * bytes_ // unit, group)
    grid = (-(-units // threads), heads, count // group)
    return [Launch(f"reorder_rows_{unit}", grid, (threads, 1, 1), (array, rows, *sizes), threads * group * unit)]


def to_uint8(out: Array, pixels: Array) -> list[Launch]:
    """See `cpu.to_uint8`."""
    need = _Need("to_uint8")
    batch, channels, height, width = pixels.shape
    need("out", out, "uint8", (batch, height, width, channels))
    need("pixels", pixels, FLOATS, pixels.shape)
    return [_pixels(f"to_uint8_{_name(pixels)}", out, pixels, pixels.shape)]


def from_uint8(out: Array, pixels: Array) -> list[Launch]:
    """See `cpu.from_uint8`."""
    need = _Need("from_uint8")
    batch, channels, height, width = out.shape
    need("out", out, FLOATS, out.shape)
    need("pixels", pixels, "uint8", (batch, height, width, channels))
    return [_pixels(f"from_uint8_{_name(out)}", out, pixels, out.shape)]


_SIZES = {
    "float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "uint8": 1, "int8": 1, "bool": 1
}  # fmt: skip


def _unit(bytes_: int) -> int:
    """The most bytes a thread can take at once where rows have so many."""
    return next(size for size in (16, 8, 4, 2, 1) if bytes_ % size == 0)


def _pixels(kernel: str, out: Array, pixels: Array, shape: tuple[int, ...]) -> Launch:
    batch, channels, height, width = shape
    grid = _blocks(batch * height * width)
    return Launch(kernel, grid, (THREADS, 1, 1), (out, pixels, *_ints(batch, channels, height * width)))


def _blocks(count: int, each: int = 1) -> Size:
    return max(1, -(-count // (THREADS * each))), 1, 1


def _ints(*values: int) -> tuple[np.generic, ...]:
    for value in values:
        if value >= 2**31:
            raise ValueError(f"a kernel is given the size {value}, wanted less than 2**31")
    return tuple(map(np.int32, values))


def _name(array: Array) -> str:
    return str(getattr(array.dtype, "name", array.dtype))


class _Need:
    """The check of an operation's arrays; a size of None is any."""

    def __init__(self, operation: str) -> None:
        self._operation = operation

    def __call__(
        self, name: str, array: Array | None, dtypes: str | Sequence[str] | dict[str, int], shape: Sequence[int | None]
    ) -> None:
        if array is None:
            return
        found = _name(array)
        if found not in ((dtypes,) if isinstance(dtypes, str) else dtypes):
            wanted = dtypes if isinstance(dtypes, str) else ", ".join(dtypes)
            raise TypeError(f"{self._operation}: {name} is {found}, wanted {wanted}")
        fits = len(array.shape) == len(shape)
        if not fits or any(size not in (None, is_) for is_, size in zip(array.shape, shape, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(f"{self._operation}: {name} is {array.shape}, wanted ({wanted})")
