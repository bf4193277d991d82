"""mmrt.runtime.logits against plain loops over the vocabulary, and against what must hold of any scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrt.runtime import logits
from mmrt.runtime.search import Rules

INF = np.float32(np.inf)
PROBABILITIES = [0.5, 0.25, 0.125, 0.0625, 0.0625]

rows = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).normal(0, 3, (3, 1 + seed % 40)).astype(np.float32)
)


def scores_of(probabilities: list[float]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities, np.float32))


def left(scores: np.ndarray) -> list[int]:
    return np.flatnonzero(scores > -INF).tolist()


# all rows at once


def applied(rule: Callable[..., None], scores: np.ndarray, *rest: Any) -> np.ndarray:
    found = scores.copy()
    rule(found, *rest)
    return found


@given(scores=rows, seed=st.integers(0, 1000), penalty=st.sampled_from([0.5, 1.3, 5.0]))
@settings(max_examples=50, deadline=None)
def test_repetition_penalty(scores: np.ndarray, seed: int, penalty: float) -> None:
    histories = [np.random.default_rng(seed + row).integers(0, 50, seed % 30) for row in range(3)]
    expected = scores.copy()
    for row, tokens in zip(expected, histories, strict=True):
        for token in set(tokens.tolist()) & set(range(len(row))):
            row[token] = row[token] * np.float32(penalty) if row[token] < 0 else row[token] / np.float32(penalty)
    np.testing.assert_array_equal(applied(logits.repetition_penalty, scores, histories, penalty), expected)


@given(scores=rows, seed=st.integers(0, 1000), size=st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_no_repeat_ngram(scores: np.ndarray, seed: int, size: int) -> None:
    histories = [np.random.default_rng(seed + row).integers(0, 4, seed % 30) for row in range(3)]
    forbidden = applied(logits.no_repeat_ngram, scores, histories, size)
    for row, tokens, before in zip(forbidden, histories, scores, strict=True):
        runs = {tuple(tokens[i : i + size].tolist()) for i in range(len(tokens) - size + 1)}
        for token in range(len(row)):
            complete = len(tokens) >= size - 1
            repeats = complete and (*tokens[len(tokens) - size + 1 :].tolist(), token) in runs
            assert row[token] == (-INF if repeats else before[token])


def test_forbid_and_force() -> None:
    scores = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(
        applied(logits.forbid, scores, (1, 3, 4, -1)), [[0, -INF, 2, -INF], [4, -INF, 6, -INF]]
    )  # 4 and -1 are not of the vocabulary
    np.testing.assert_array_equal(applied(logits.force, scores, 2), [[-INF, -INF, 0, -INF]] * 2)


RULES = {
    "repetition_penalty": Rules(9, repetition_penalty=1.5),
    "no_repeat_ngram_size": Rules(9, no_repeat_ngram_size=1),
    "min_new_tokens": Rules(9, min_new_tokens=1, ends=(3,)),
    "forced": Rules(9, forced=(3,)),
    "forced_end": Rules(1, forced_end=3),
    "suppressed": Rules(9, suppressed=(3,)),
    "begin_suppressed": Rules(9, begin_suppressed=(3,)),
    "temperature": Rules(9, temperature=0.5),
    "top_k": Rules(9, top_k=1, temperature=1.0),
    "top_p": Rules(9, top_p=0.5, temperature=1.0),
    "min_p": Rules(9, min_p=0.5, temperature=1.0),
    "typical_p": Rules(9, typical_p=0.5, temperature=1.0),
}


@pytest.mark.parametrize("name", RULES)
def test_every_rule_says_something(name: str) -> None:
    scores = np.random.default_rng(0).normal(0, 3, (1, 6)).astype(np.float32)
    before, rules = scores.copy(), RULES[name]
    logits.process(scores, rules, lambda: [np.array([3, 4])], 0)
    assert (scores != before).any() == (not rules.temperature)
    if rules.temperature:
        scores.flags.writeable = False
        warped = logits.warp(scores[0], rules)
        assert warped.dtype == np.float32
        assert (warped != before[0]).any()


def test_without_a_rule_nothing_changes() -> None:
    scores = np.zeros((1, 4), np.float32)
    scores.flags.writeable = False
    rules = Rules(9, ends=(3,), min_new_tokens=2, forced=(1,), forced_end=3, begin_suppressed=(2,))
    logits.process(scores, rules, lambda: [np.array([3])], 2)
    assert logits.warp(scores[0], Rules(9, temperature=1.0)).base is scores


def test_times_of_the_rules() -> None:
    """Two forced tokens, then one that may not be 5, an end from the fourth on, and a forced end."""
    rules = Rules(6, ends=(3,), min_new_tokens=3, forced=(1, 2), forced_end=3, suppressed=(0,), begin_suppressed=(5,))
    scores = np.ones((1, 6), np.float32)
    allowed = [left(applied(logits.process, scores, rules, lambda: [np.array([0])], new)[0]) for new in range(6)]
    assert allowed == [[1], [2], [1, 2, 4], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [3]]


# one row


@pytest.mark.parametrize(
    ("probabilities", "kept"),
    [
        (
            PROBABILITIES,
            {0.5: [0], 0.51: [0, 1], 0.75: [0, 1], 0.8: [0, 1, 2], 0.9: [0, 1, 2, 4], 0.99: [0, 1, 2, 3, 4]},
        ),
        ([0.25] * 4, {0.0: [3], 0.25: [3], 0.3: [2, 3], 0.9: [0, 1, 2, 3]}),
        ([0.0, 0.5, 0.0, 0.5], {0.0: [3], 0.7: [1, 3]}),
    ],
)
def test_top_p_by_hand(probabilities: list[float], kept: dict[float, list[int]]) -> None:
    assert {mass: left(logits.top_p(scores_of(probabilities), mass)) for mass in kept} == kept


def test_min_p_by_hand() -> None:
    kept = {0.1: [0, 1, 2, 3, 4], 0.2: [0, 1, 2], 0.3: [0, 1], 1.0: [0]}
    assert {share: left(logits.min_p(scores_of(PROBABILITIES), share)) for share in kept} == kept


def test_typical_p_by_hand() -> None:
    """The mean information is 1.875 bits: 0.25 (2 bits) is nearest, then 0.5 (1), 0.125 (3) and 0.0625 (4)."""
    kept = {0.2: [1], 0.3: [0, 1], 0.7: [0, 1], 0.8: [0, 1, 2], 0.9: [0, 1, 2, 3, 4]}
    assert {mass: left(logits.typical_p(scores_of(PROBABILITIES), mass)) for mass in kept} == kept


def test_top_k_keeps_equals() -> None:
    scores = np.array([1, 3, 2, 2, 0], np.float32)
    kept = {1: [1], 2: [1, 2, 3], 3: [1, 2, 3], 4: [0, 1, 2, 3], 99: [0, 1, 2, 3, 4]}
    assert {count: left(logits.top_k(scores, count)) for count in kept} == kept


@given(scores=rows, mass=st.floats(0.01, 0.99))
@settings(max_examples=100, deadline=None)
def test_warpers_keep_the_scores_of_what_they_keep(scores: np.ndarray, mass: float) -> None:
    for row in scores:
        nucleus = logits.top_p(row, mass)
        for kept in (nucleus, logits.min_p(row, mass), logits.typical_p(row, mass), logits.top_k(row, 3)):
            assert left(kept)
            np.testing.assert_array_equal(kept[left(kept)], row[left(kept)])
        probabilities = np.exp(logits.log_softmax(row).astype(np.float64))
        assert probabilities[left(nucleus)].sum() > mass - 1e-5
        assert row.argmax() in left(nucleus)
        assert probabilities[left(nucleus)].sum() - probabilities[left(nucleus)].min() <= mass + 1e-5


# drawing


def test_draw_is_the_inverse_of_the_distribution() -> None:
    scores = scores_of([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    uniforms = [0, 0.2499, 0.2501, 0.7499, 0.7501, np.nextafter(1, 0), 1.0]
    assert [logits.draw(scores, uniform) for uniform in uniforms] == [1, 1, 3, 3, 4, 4, 4]


def test_draw_at_the_edge_of_a_token_takes_the_next() -> None:
    assert logits.draw(np.zeros(4, np.float32), 0.5) == 2
    assert logits.draw(np.array([-2000, 0], np.float32), 0.0) == 1  # the first has the probability 0 in doubles


@given(seed=st.integers(0, 2**32 - 1), uniform=st.floats(0, 1, exclude_max=True))
@settings(max_examples=200, deadline=None)
def test_draw_against_a_loop(seed: int, uniform: float) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 4, 1 + seed % 30).astype(np.float32)
    scores[rng.random(len(scores)) < 0.5] = -INF
    scores[rng.integers(len(scores))] = 1
    drawn = logits.draw(scores, uniform)
    assert scores[drawn] > -INF
    weights = [math.exp(score) for score in scores.tolist()]
    before, after = sum(weights[:drawn]), sum(weights[: drawn + 1])
    assert before <= uniform * sum(weights) * (1 + 1e-12)
    assert uniform * sum(weights) <= after * (1 + 1e-12)


def test_draw_is_distributed_as_the_scores_say() -> None:
    """Pearson's chi square of 20,000 draws from 8 tokens, one of them forbidden: 6 degrees of freedom, p > 0.1 %."""
    rng = np.random.default_rng(3)
    scores = rng.normal(0, 1, 8).astype(np.float32)
    scores[5] = -INF
    drawn = np.bincount([logits.draw(scores, uniform) for uniform in rng.random(20_000)], minlength=8)
    expected = np.exp(scores.astype(np.float64)) / np.exp(scores.astype(np.float64)).sum() * 20_000
    assert drawn[5] == 0
    assert np.sum((np.delete(drawn, 5) - np.delete(expected, 5)) ** 2 / np.delete(expected, 5)) < 22.46


def test_draw_where_nothing_can_be_drawn() -> None:
    assert logits.draw(np.full(4, -INF), 0.9) == 0
    assert logits.draw(np.array([0, INF, 0], np.float32), 0.9) == 1


# either


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 12), kinds=st.integers(1, 1000))
@settings(max_examples=200, deadline=None)
def test_top_is_a_stable_sort(seed: int, count: int, kinds: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-kinds, kinds, rng.integers(count, 5000)).astype(np.float32)
    scores[rng.random(len(scores)) < 0.3] = -INF
    expected = np.argsort(-scores, kind="stable")[:count]
    np.testing.assert_array_equal(logits.top(scores, count), expected)


def test_log_softmax() -> None:
    scores = np.array([[1000, 1000, -1000], [0, math.log(3), -INF]], np.float32)
    expected = [[-math.log(2), -math.log(2), -2000 - math.log(2)], [-math.log(4), math.log(0.75), -INF]]
    np.testing.assert_allclose(logits.log_softmax(scores), expected, rtol=1e-6)


def test_temperature_orders_the_certainty() -> None:
    """The colder, the likelier is the likeliest."""
    scores = np.array([0, 1, 2], np.float32)
    best = [np.exp(logits.log_softmax(logits.temperature(scores, t)))[2] for t in (0.1, 0.5, 1.0, 2.0, 10.0)]
    assert all(colder > warmer for colder, warmer in pairwise(best))
