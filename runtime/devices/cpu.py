"""The operations of the loops on NumPy arrays. They are also what a GPU's kernels are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmrt.runtime.arrays import AnyArray, Float32, Int64, UInt8
from mmrt.runtime.samplers import Row


def guide(prediction: Float32, scale: float, rescale: float) -> Float32:
    """Classifier-free guidance, (2 batch, ...) -> (batch, ...): u + scale (c - u), with `[u..., c...]` the rows.

    With `rescale` r > 0 the result is brought towards c's standard deviation a picture: v (r std(c) / std(v) + 1 - r)
    (Lin et al., arXiv 2305.08891, equations 15 and 16).
    """
    unconditional, conditional = np.split(prediction, 2)
    guided = conditional - unconditional
    guided *= np.float32(scale)
    guided += unconditional
    if rescale > 0:
        factor = _spread(conditional) / _spread(guided)
        guided *= np.float32(rescale) * factor + np.float32(1 - rescale)
    return guided


def _spread(array: Float32) -> Float32:
    axes = tuple(range(1, array.ndim))
    spread: Float32 = array.std(axis=axes, ddof=1, keepdims=True, dtype=np.float32)
    return spread


def step(guided: Float32, latents: Float32, history: list[Float32], row: Row, noise: Float32 | None) -> Float32:
    """One row of a sampler's table (see `samplers`); `history`, newest first, takes the new entry, drops the oldest."""
    entry = np.float32(row.q) * guided
    if row.p:
        entry += np.float32(row.p) * latents
    history.insert(0, entry)
    del history[len(row.b) :]
    latents = np.float32(row.a) * latents
    for weight, past in zip(row.b, history, strict=False):
        if weight:
            latents += np.float32(weight) * past
    if noise is not None:
        latents += np.float32(row.s) * noise
    return latents


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
