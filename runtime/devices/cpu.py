"""The operations of the loops on NumPy arrays. They are also what a GPU's kernels are compared with.

The module itself is a `Device`, whose methods are described there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mmrt.runtime import logits as rule
from mmrt.runtime.arrays import AnyArray, Float32, Float64, Int32, Int64, UInt8, UInt32, UInt64
from mmrt.runtime.noise import TorchCuda
from mmrt.runtime.samplers import Coefficients
from mmrt.runtime.search import Rules

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


class Numbers:
    """Single numbers are read and written without NumPy, which takes longer for them where the caches are cold."""

    def __init__(self, array: Int64) -> None:
        self._cells = array.reshape(-1).data

    def write(self, values: list[int]) -> None:
        cells = self._cells
        for place, value in enumerate(values):
            cells[place] = value

    def read(self) -> list[int]:
        return self._cells.tolist()


numbers = Numbers

copy = write
cast: Callable[[AnyArray, npt.DTypeLike], AnyArray] = np.ndarray.astype


def enlarge(array: AnyArray, capacity: int, length: int) -> AnyArray:
    larger = np.zeros((*array.shape[:2], capacity, array.shape[3]), array.dtype)
    larger[:, :, :length] = array[:, :, :length]
    return larger


def reorder_rows(array: AnyArray, rows: Int64 | Int32, group: int, length: int) -> None:
    written = array[:, :, :length]
    written[:] = written[rows]


def record(call: Callable[[], None]) -> None:
    return None


mark = time.perf_counter


def seconds(start: float, end: float) -> float:
    return end - start


def guide(prediction: Float32, scale: float, out: Float32 | None = None) -> Float32:
    """Classifier-free guidance, (2 batch, ...) -> (batch, ...): u + scale (c - u), with `[u..., c...]` the rows."""
    batch = len(prediction) // 2
    unconditional, conditional = prediction[:batch], prediction[batch:]
    guided = np.subtract(conditional, unconditional, out=out)
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
    noise        float32 (batch, ...), fresh noise for this row; none where no row has s
    denoised     float32 (batch, ...), becomes what the model takes the clean sample to be
    factor       float32 (batch,), where the guidance has a rescale: becomes what it scaled by
    """
    number, inputs = int(step[0]), model_input.reshape(-1, *latents.shape)
    part = inputs[0] if inputs.dtype == np.float32 else np.empty_like(latents)  # nothing is allocated where it can be
    if number >= 0:
        row, weights = Coefficients.of(table, number)
        entry = history[number % len(history)]
        guided = _guided(prediction, row, factor, entry)
        if denoised is not None:
            np.multiply(latents, row.denoised_x, out=denoised)
            denoised += np.multiply(guided, row.denoised_v, out=part)
        np.multiply(guided, row.q, out=entry)
        if row.p:
            entry += np.multiply(latents, row.p, out=part)
        latents *= row.a
        for back, weight in enumerate(weights):
            if weight:
                latents += np.multiply(history[(number - back) % len(history)], weight, out=part)
        if row.s:
            assert noise is not None
            latents += np.multiply(noise, row.s, out=part)
    following, _ = Coefficients.of(table, number + 1)
    inputs[0] = np.multiply(latents, following.scale, out=part)
    inputs[1:] = inputs[0]
    timestep[:] = following.timestep
    step[0] += 1


def _guided(prediction: AnyArray, row: Coefficients, factor: Float32 | None, out: Float32) -> Float32:
    """The prediction itself, or what guidance makes of it, in `out`."""
    prediction = prediction.astype(np.float32, copy=False)
    if len(prediction) == len(out):
        return prediction
    guide(prediction, row.guidance, out)
    if factor is not None:
        factor[:] = (_spread(prediction[len(out) :]) / _spread(out)).ravel()
        mixed = row.rescale * factor + row.unscaled
        out *= mixed.reshape(-1, *[1] * (out.ndim - 1))
    return out


def take_rows(array: AnyArray, rows: Int64) -> AnyArray:
    """array[rows], contiguous; the array itself where that is the same."""
    same = len(rows) == len(array) and bool((rows == np.arange(len(rows))).all())
    return array if same else np.take(array, rows, axis=0)


def normal(
    out: Float32,
    seeds: UInt64,
    offsets: UInt32,
    max_threads: int,
    table: Float32 | None = None,
    step: Int32 | None = None,
) -> None:
    """Draw float32 (pictures, ...), what `noise.TorchCuda` draws from each seed at its offset.

    With a sampler's table, what its row `step` needs, where it needs noise and the rows before it drew theirs.

    seeds    uint64 (pictures,)
    offsets  uint32 (pictures,): `TorchCuda.offset`
    table    float32, `Table.coefficients`
    step     int32 (2,), as in `guide_and_step`
    """
    before = 0
    if table is not None:
        assert step is not None
        row, _ = Coefficients.of(table, int(step[0]))
        if step[0] < 0 or row.s == 0:
            return
        before = int(row.draws) * TorchCuda.fours(out[0].size, max_threads)
    for picture, seed, offset in zip(out, seeds.tolist(), offsets.tolist(), strict=True):
        picture[:] = TorchCuda(seed, max_threads, offset + before).normal(picture.shape)


def blend(
    latents: Float32, mask: Float32, known: Float32, noise: Float32, model_input: AnyArray, table: Float32, step: Int32
) -> None:
    """Inpainting: put a known picture where the mask is 0, at the noise of the row that comes next, and input it anew.

    latents      float32 (batch, channels, ...), as the row before made them
    mask         float32 (batch, 1, ...): 1 where the picture is painted, 0 where it is known
    known        float32 (batch, channels, ...), its latents
    noise        float32, like it
    model_input  float (copies batch, channels, ...), as in `guide_and_step`, as are table and step
    """
    row, _ = Coefficients.of(table, int(step[0]))
    latents[:] = mask * latents + (1 - mask) * (row.signal * known + row.noise * noise)
    model_input.reshape(-1, *latents.shape)[:] = row.scale * latents


def choose_token(
    logits: AnyArray,
    scores: Float32,
    history: Int64,
    starts: Int32,
    rules: Float32,
    forbidden: Int32,
    forced: Int32,
    ends: Int32,
    uniforms: Float64,
    tokens: Int64,
    positions: Int64,
    ended: Int32,
    state: Int32,
) -> None:
    """Choose every row's next token, by the rules of `logits`, and make the loop's next inputs. `choice` makes these:

    logits     float (copies rows, vocabulary), with 2 copies the unconditional rows first; not changed
    scores     float32 (rows, vocabulary), is written over
    history    int64 (rows, places), the rows' tokens, prompts aligned to the right; takes the new ones
    starts     int32 (rows,), where a row's own tokens begin
    rules      float32: temperature; top_k; 1 - top_p; min_p; repetition penalty; guidance scale
    forbidden  int32 (n, 4): tokens low <= t < high cannot come while since <= new < until
    forced     int32: as the n-th new token this one comes, where it is not -1
    ends       int32: tokens that end a row
    uniforms   float64 (rows, slots): the n-th new token is drawn by the one at n modulo slots
    tokens     int64 (copies rows, ...), become the new ones
    positions  int64 (copies rows,), go on by one
    ended      int32 (rows,), becomes 1 where a row ends
    state      int32 (4,): new tokens so far, which go on by one; 0; the longest prompt; what a row gets that has ended
    """
    fresh, _, longest, pad = state.tolist()
    place = longest + fresh
    heat, count, dropped, share, penalty, scale = rules.tolist()
    raw = logits.astype(np.float32, copy=False)
    scores[:] = raw if len(raw) == len(scores) else guide(raw, scale)
    if fresh < len(forced) and forced[fresh] >= 0:
        rule.force(scores, int(forced[fresh]))
    elif penalty != 1:
        rule.repetition_penalty(scores, [row[start:place] for row, start in zip(history, starts, strict=True)], penalty)
    for low, high, since, until in forbidden.tolist():
        if since <= fresh < until:
            scores[:, max(low, 0) : max(high, 0)] = rule.LEAST
    warping = Rules(1, temperature=heat, top_k=int(count), top_p=1 - dropped, min_p=share)
    for row, uniform in enumerate(uniforms[:, fresh % uniforms.shape[1]].tolist()):
        if ended[row]:
            token = pad
        else:
            token = rule.draw(rule.warp(scores[row], warping), uniform) if heat else int(scores[row].argmax())
        ended[row] |= token in ends
        history[row, place : place + 1] = token
        tokens.reshape(-1, len(scores))[:, row] = token
    positions += 1
    state[0] += 1


def linear_rgb(latents: Float32, matrix: Sequence[Sequence[float]]) -> UInt8:
    """(batch, channels, height, width) through a (channels + 1, 3) matrix to uint8 (batch, height, width, 3)."""
    *weights, constant = np.asarray(matrix, np.float32)
    return _to_bytes(np.einsum("bchw,cr->bhwr", latents, np.stack(weights)) + constant)


def to_uint8(out: UInt8, pixels: AnyArray) -> None:
    """Float (batch, channels, height, width) of -1 .. 1 to uint8 (batch, height, width, channels); NaN to 0."""
    out[:] = _to_bytes(np.moveaxis(pixels.astype(np.float32, copy=False), 1, -1))


def from_uint8(out: AnyArray, pixels: UInt8) -> None:
    """uint8 (batch, height, width, channels) to float (batch, channels, height, width) of -1 .. 1."""
    out[:] = np.moveaxis(pixels, -1, 1) / np.float32(255) * np.float32(2) - np.float32(1)


def _to_bytes(values: Float32) -> UInt8:
    shares = np.clip(values * np.float32(0.5) + np.float32(0.5), 0, 1) * np.float32(255)
    pixels: UInt8 = np.nan_to_num(shares).round().astype(np.uint8)
    return pixels
