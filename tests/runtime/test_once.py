"""Texts of like length are computed together."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmrt.runtime.stages.once import buckets


@given(st.lists(st.integers(0, 60), min_size=1, max_size=200))
def test_every_row_is_in_one_bucket(lengths: list[int]) -> None:
    found = buckets(np.array(lengths))
    assert sorted(np.concatenate(found).tolist()) == list(range(len(lengths)))
    assert all(len(rows) >= 8 for rows in found[:-1])
    for before, after in itertools.pairwise(found):
        assert np.array(lengths)[before].max() <= np.array(lengths)[after].min()


def test_few_or_alike_texts_stay_together() -> None:
    assert len(buckets(np.array([3, 60, 7, 20]))) == 1
    assert len(buckets(np.array([20, 22, 24, 26, 28] * 8))) == 1
    assert [len(rows) for rows in buckets(np.array([5] * 10 + [30] * 10))] == [10, 10]
