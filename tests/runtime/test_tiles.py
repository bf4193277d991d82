"""Tiles cover an axis, and what is joined of equal parts is what was cut."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrt.runtime.tiles import Span, joined, spans


@given(st.integers(1, 700), st.integers(0, 80), st.integers(1, 40), st.integers(1, 16))
def test_spans_cover(length: int, more: int, overlap: int, multiple: int) -> None:
    size = overlap + multiple + more
    found = spans(length, size, overlap, multiple)
    assert found[0].start == 0
    assert found[-1].stop == length
    assert all(span.start % multiple == 0 and 0 < span.stop - span.start <= size for span in found)
    for before, after in itertools.pairwise(found):
        assert before.start < after.start
        assert before.stop - after.start >= overlap or after.stop == length
        assert before.stop - after.start >= min(overlap, length - after.start)


def test_spans() -> None:
    assert spans(100, 100, 32, 8) == [Span(0, 100)]
    assert spans(200, 100, 32, 8) == [Span(0, 100), Span(64, 164), Span(128, 200)]


@given(st.integers(1, 60), st.integers(1, 4), st.sampled_from([np.uint8, np.float32]), st.integers(0, 2))
def test_equal_parts(length: int, scale: int, dtype: type, axis: int) -> None:
    shape = [2, 3, 4]
    shape[axis] = length * scale
    whole = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    found = spans(length, 17, 5, 3)
    parts = [(span, whole.take(range(span.start * scale, span.stop * scale), axis)) for span in found]
    again = joined(parts, length, scale, axis)
    assert again.dtype == dtype
    np.testing.assert_allclose(again, whole, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_one_fades_into_the_next(dtype: type) -> None:
    parts = [(Span(0, 10), np.full((1, 10), 10, dtype)), (Span(2, 12), np.full((1, 10), 50, dtype))]
    found = joined(parts, 12, 1, axis=1)[0]
    assert found[:5].tolist() == [10] * 5
    assert found[5:7].tolist() == [20, 40]
    assert found[7:].tolist() == [50] * 5
