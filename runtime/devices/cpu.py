"""The operations of the loops on NumPy arrays. They are also what a GPU's kernels are compared with.

The module itself is a `Device`, whose methods are described there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mmrt.runtime.arrays import AnyArray, Float32, Int32, Int64, UInt8
from mmrt.runtime.samplers import COLUMNS

if TYPE_CHECKING:
    from mmrt.runtime.devices import Kind

kind: Kind = "cpu"
empty: Callable[[Sequence[int], npt.DTypeLike], AnyArray] = np.empty
zeros: Callable[[Sequence[int], npt.DTypeLike], AnyArray] = np.zeros


def put(array: AnyArray) -> AnyArray:
    return array


def get(array: AnyArray) -> AnyArray:
    return array


def write(array: AnyArray, values: AnyArray) -> None:
    array[...] = values


copy = write
cast: Callable[[AnyArray, npt.DTypeLike], AnyArray] = np.ndarray.astype


def enlarge(array: AnyArray, capacity: int, length: int) -> AnyArray:
    larger = np.zeros((*array.shape[:2], capacity, array.shape[3]), array.dtype)
    larger[:, :, :length] = array[:, :, :length]
    return larger


def reorder_rows(array: AnyArray, rows: Int64, group: int, length: int) -> None:
    written = array[:, :, :length]
    written[:] = written[rows]


def record(call: Callable[[], None]) -> None:
    return None


mark = time.perf_counter


def seconds(start: float, end: float) -> float:
    return end - start


def guide(prediction: Float32, scale: float) -> Float32:
    """Classifier-free guidance, (2 batch, ...) -> (batch, ...): u + scale (c - u), with `[u..., c...]` the rows."""
    unconditional, conditional = np.split(prediction, 2)
    guided = conditional - unconditional
    guided *= np.float32(scale)
    guided += unconditional
    return guided


def _spread(array: Float32) -> Float32:
    axes = tuple(range(1, array.ndim))
    spread: Float32 = array.std(axis=axes, ddof=1, keepdims=True, dtype=np.float32)
    return spread


def guide_and_step(
    prediction: AnyArray,
    latents: Float32,
    history: Float32,
    model_input: AnyArray,
    timestep: Float32,
    table: Float32,
    step: Int32,
    noise: Float32 | None = None,
    denoised: Float32 | None = None,
    factor: Float32 | None = None,
) -> None:
    """Go one row on in a sampler's table, and make the model's next input; at step -1 only that.

    prediction   float (copies batch, ...), with 2 copies the unconditional rows first; not read at step -1
    latents      float32 (batch, ...), x: taken from one row to the next
    history      float32 (depth, batch, ...), a ring: h_i is at i modulo depth; of no use between rows at depth 1
    model_input  float (copies batch, ...), becomes the next row's scale times x in every copy
    timestep     float32 (copies batch,), becomes the next row's
    table        float32, `Table.coefficients`
    step         int32 (2,), the number of the row to do, which becomes the next; then 0
    noise        float32 (slots, batch, ...), fresh noise: the n-th drawn is at n modulo slots; none where no row has s
    denoised     float32 (batch, ...), becomes what the model takes the clean sample to be
    factor       float32 (batch,), where the guidance has a rescale: becomes what it scaled by
    """
    number = int(step[0])
    if number >= 0:
        _update(_guided(prediction, latents, table[number], factor), latents, history, table, number, noise, denoised)
    following = dict(zip(COLUMNS, table[number + 1], strict=False))
    model_input.reshape(-1, *latents.shape)[:] = following["scale"] * latents
    timestep[:] = following["timestep"]
    step[0] += 1


def _guided(prediction: AnyArray, latents: Float32, row: Float32, factor: Float32 | None) -> Float32:
    prediction = prediction.astype(np.float32, copy=False)
    if len(prediction) == len(latents):
        return prediction
    coefficients = dict(zip(COLUMNS, row, strict=False))
    guided = guide(prediction, coefficients["guidance"])
    if factor is not None:
        factor[:] = (_spread(prediction[len(latents) :]) / _spread(guided)).ravel()
        mixed = coefficients["rescale"] * factor + coefficients["unscaled"]
        guided *= mixed.reshape(-1, *[1] * (guided.ndim - 1))
    return guided


def _update(
    guided: Float32,
    latents: Float32,
    history: Float32,
    table: Float32,
    number: int,
    noise: Float32 | None,
    denoised: Float32 | None,
) -> None:
    row = dict(zip(COLUMNS, table[number], strict=False))
    if denoised is not None:
        np.multiply(latents, row["denoised_x"], out=denoised)
        denoised += row["denoised_v"] * guided
    depth = len(history)
    entry = np.multiply(guided, row["q"], out=history[number % depth])
    if row["p"]:
        entry += row["p"] * latents
    latents *= row["a"]
    for back, weight in enumerate(table[number, len(COLUMNS) :]):
        if weight:
            latents += weight * history[(number - back) % depth]
    if row["s"]:
        assert noise is not None
        latents += row["s"] * noise[int(row["draws"]) % len(noise)]


def take_rows(array: AnyArray, rows: Int64) -> AnyArray:
    """array[rows], contiguous; the array itself where that is the same."""
    same = len(rows) == len(array) and bool((rows == np.arange(len(rows))).all())
    return array if same else np.take(array, rows, axis=0)


def linear_rgb(latents: Float32, matrix: Sequence[Sequence[float]]) -> UInt8:
    """(batch, channels, height, width) through a (channels + 1, 3) matrix to uint8 (batch, height, width, 3)."""
    *weights, constant = np.asarray(matrix, np.float32)
    rgb = np.einsum("bchw,cr->bhwr", latents, np.stack(weights)) + constant
    pixels: UInt8 = (np.clip(rgb * 0.5 + 0.5, 0, 1) * 255).round().astype(np.uint8)
    return pixels
