"""Tiles of arrays (rows, height, width, ...): where they lie, and how what was made of them becomes one again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from mmrt.runtime.arrays import AnyArray, Float32


class Span(NamedTuple):
    """Places of an axis, from `start` to before `stop`."""

    start: int
    stop: int


def spans(length: int, size: int, overlap: int, multiple: int) -> list[Span]:
    """At most `size` places each, `length` all together; each next one begins at a multiple of `multiple` and has at
    least `overlap` places in common with the one before, where there are so many."""
    found = [Span(0, min(size, length))]
    step = (size - overlap) // multiple * multiple
    while found[-1].stop < length:
        start = found[-1].start + step
        found.append(Span(start, min(start + size, length)))
    return found


def joined(parts: Iterable[tuple[Span, AnyArray]], length: int, scale: int, axis: int) -> AnyArray:
    """One array of parts, `scale` times as long on `axis` as their spans of `length`; each fades into the next."""
    whole, end = np.empty(0), 0
    for span, part in parts:
        if not end:
            whole = np.empty((*part.shape[:axis], length * scale, *part.shape[axis + 1 :]), part.dtype)
        into, new = np.moveaxis(whole, axis, 0), np.moveaxis(part, axis, 0)
        common = max(end - span.start, 0) * scale
        first = span.start * scale
        if common:
            weights = _fade(common).reshape(-1, *[1] * (new.ndim - 1))
            mixed = into[first : first + common] * (1 - weights) + new[:common] * weights
            into[first : first + common] = np.rint(mixed) if part.dtype.kind in "ui" else mixed
        into[first + common : span.stop * scale] = new[common:]
        end = span.stop
    return whole


def _fade(length: int) -> Float32:
    """Weights of what comes: 0 in the first three eighths and 1 in the last, as tiles know the less of their
    surroundings the nearer their border is."""
    edge = 3 * length // 8
    place = (np.arange(length, dtype=np.float32) + np.float32(0.5) - edge) / (length - 2 * edge)
    return place.clip(0, 1)
