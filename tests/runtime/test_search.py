"""mmrt.runtime.search on a language whose next token depends on the last one, so that the best can be counted out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrt.runtime.errors import RequestError
from mmrt.runtime.search import Completion, Rules, Search, search

END = 0


def language(seed: int, size: int) -> np.ndarray:
    """Logits (size, size) of what follows each token."""
    return np.random.default_rng(seed).normal(0, 2, (size, size)).astype(np.float32)


def run(found: Search, table: np.ndarray, follow: bool = True) -> list[Completion]:
    """To the end. What was certain on the way are the results, and rows went on from those that they were told to.

    The most likely tokens are enough where the search says so, unless it may not `follow`.
    """
    certain: dict[int, list[int]] = {}
    texts: list[tuple[int, ...]] = [()] * len(found.tokens)
    followed = {*texts}
    while not found.done:
        logits = table[found.tokens]
        followed_best = follow and found.follow(logits.argmax(axis=1).tolist())
        rows = None if followed_best else found.advance(logits)
        origins = range(len(texts)) if rows is None else rows.tolist()
        texts = [(*texts[row], int(token)) for row, token in zip(origins, found.tokens, strict=True)]
        followed |= {*texts}
        for index, token in found.certain():
            certain.setdefault(index, []).append(token)
    results = found.results()
    assert [certain.get(index, []) for index in range(len(results))] == [each.tokens.tolist() for each in results]
    assert {tuple(each.tokens[:-1].tolist()) for each in results} <= followed
    return results


def told(results: Sequence[Completion]) -> list[tuple[list[int], str]]:
    return [(result.tokens.tolist(), result.stopped) for result in results]


def prompts(*texts: Sequence[int]) -> list[np.ndarray]:
    return [np.array(text, np.int64) for text in texts]


def cycle(*tokens: int) -> np.ndarray:
    """The language in which each of `tokens` follows the one before it."""
    table = np.zeros((max(tokens) + 1, max(tokens) + 1), np.float32)
    table[list(tokens), [*tokens[1:], tokens[0]]] = 5
    return table


# rows on their own


def test_greedy_takes_the_most_likely() -> None:
    found = search(Rules(5, ends=(END,), pad=9), prompts([3, 4, 1]))
    assert found.tokens == [1]
    assert told(run(found, cycle(1, 2, 3, END))) == [([2, 3, END], "end")]


def test_rows_end_on_their_own_and_are_padded() -> None:
    found = search(Rules(4, ends=(END, 5), pad=7), prompts([3], [4, 1], [5, 5, 2]))
    table = cycle(1, 2, 3, END, 4, 5)
    table[2] = table[1][[0, 1, 3, 2, 4, 5]]  # 2 is followed by 3, as it was
    steps = []
    while not found.done:
        assert found.advance(table[np.minimum(found.tokens, 5)]) is None
        steps.append((found.tokens, found.certain()))
    assert steps == [
        ([END, 2, 3], [(0, END), (1, 2), (2, 3)]),
        ([7, 3, END], [(1, 3), (2, END)]),
        ([7, END, 7], [(1, END)]),
    ]
    assert told(found.results()) == [([END], "end"), ([2, 3, END], "end"), ([3, END], "end")]
    assert [result.score for result in found.results()] == [None] * 3


def test_length_is_the_last_of_the_reasons() -> None:
    table = cycle(1, 2, END)
    assert told(run(search(Rules(2, ends=(END,)), prompts([1])), table)) == [([2, END], "end")]
    assert told(run(search(Rules(2), prompts([1])), table)) == [([2, END], "length")]
    ends = search(Rules(2), prompts([1]), stops=lambda row, tokens: len(tokens) == 2)
    assert told(run(ends, table)) == [([2, END], "stop")]


def test_stop_strings_see_each_result() -> None:
    seen = []

    def stops(row: int, tokens: np.ndarray) -> bool:
        seen.append((row, tokens.tolist()))
        return tokens.tolist()[-2:] == [2, 3]

    found = search(Rules(5, ends=(END,)), prompts([1], [3]), stops=stops)
    assert told(run(found, cycle(1, 2, 3, END))) == [([2, 3], "stop"), ([END], "end")]
    assert seen == [(0, [2]), (0, [2, 3])]


def test_the_defaults_of_rules_do_nothing_to_greedy() -> None:
    table, start = language(5, 30), prompts([3])
    text = [3]
    for _ in range(12):
        text.append(int(table[text[-1]].argmax()))
    assert told(run(search(Rules(12), start), table)) == [(text[1:], "length")]


RULES = st.fixed_dictionaries(
    {
        "ends": st.sampled_from([(), (0,), (0, 5)]),
        "min_new_tokens": st.integers(0, 6),
        "suppressed": st.sampled_from([(), (2,), (2, 9, 11)]),
        "begin_suppressed": st.sampled_from([(), (4,)]),
        "forced": st.sampled_from([(), (3,), (3, 2)]),
        "forced_end": st.sampled_from([None, 0]),
        "repetition_penalty": st.sampled_from([1.0, 1.0, 1.3]),
        "no_repeat_ngram_size": st.sampled_from([0, 0, 2]),
    }
)


@given(RULES, st.integers(0, 1000))
@settings(max_examples=300, deadline=None)
def test_the_most_likely_tokens_are_enough_where_it_says_so(given: dict[str, Any], seed: int) -> None:
    table, rules = language(seed, 12), Rules(8, **given)
    starts = prompts([3, 4, 1], [2])
    assert told(run(search(rules, starts), table)) == told(run(search(rules, starts), table, follow=False))


@pytest.mark.parametrize(
    "given", [{}, {"suppressed": (5,), "begin_suppressed": (7,)}, {"ends": (5,), "min_new_tokens": 3}]
)
def test_forbidding_others_leaves_the_most_likely(given: dict[str, Any]) -> None:
    assert search(Rules(4, **given), prompts([1])).follow([3])
    assert not given or not search(Rules(4, **given), prompts([1])).follow([5])


@pytest.mark.parametrize("given", [{"temperature": 1.0}, {"beams": 2}, {"repetition_penalty": 2.0}, {"forced": (1,)}])
def test_what_must_see_the_logits(given: dict[str, Any]) -> None:
    assert not search(Rules(4, **given), prompts([1])).follow([3])


def test_histories_start_with_the_prompt_of_their_row() -> None:
    """No pair comes twice: 1 2 came in the first prompt, not in the second, which is shorter."""
    table = cycle(1, 2)
    found = search(Rules(1, no_repeat_ngram_size=2), prompts([1, 2, 0, 1], [2, 1]))
    assert [tokens for tokens, _ in told(run(found, table))] == [[0], [2]]


@pytest.mark.parametrize("returned", [1, 3])
def test_drawn_results_take_a_number_a_token_each_from_its_own(returned: int) -> None:
    """Half a step into each probability: the number picks the token; a row that ended takes none any more."""
    probabilities = np.array([0.125, 0.25, 0.125, 0.5])
    table = np.log(probabilities, dtype=np.float32)[None].repeat(4, 0)
    wanted = [[1, 3, END], [2, 2, 3, 1], [3, END]]
    numbers = [iter(np.cumsum(probabilities)[text] - 0.06) for text in wanted]
    uniforms: list[Callable[[], float]] = [lambda it=it: next(it) for it in numbers]
    rules = Rules(4, ends=(END,), temperature=1.0, returned=returned)
    starts = prompts(*[[3]] * (3 // returned))
    assert [tokens for tokens, _ in told(run(search(rules, starts, uniforms), table))] == wanted
    assert [list(it) for it in numbers] == [[]] * 3


def test_the_same_numbers_give_the_same_texts_in_any_batch() -> None:
    table = language(2, 20)
    rules = Rules(8, ends=(END,), temperature=1.5, top_k=9, top_p=0.9)

    def texts(seeds: Sequence[int]) -> list[tuple[list[int], str]]:
        uniforms = [np.random.default_rng(seed).random for seed in seeds]
        return told(run(search(rules, prompts(*[[4]] * len(seeds)), uniforms), table))

    assert texts([1, 2, 3]) == [*texts([1]), *texts([2]), *texts([3])]
    assert texts([1]) != texts([2])


# beams


def counted(table: np.ndarray, start: int, length: int, penalty: float) -> dict[tuple[int, ...], float]:
    """Every text that ends or has `length` tokens, and its score."""
    likelihood = table.astype(np.float64)
    likelihood -= np.log(np.exp(likelihood).sum(axis=1, keepdims=True))
    found = {}
    for text in itertools.product(range(len(table)), repeat=length):
        whole = text[: text.index(END) + 1] if END in text else text
        chance = sum(likelihood[a, b] for a, b in itertools.pairwise((start, *whole)))
        found[whole] = chance / len(whole) ** penalty
    return found


@given(seed=st.integers(0, 10_000), penalty=st.sampled_from([0.5, 1.0, 2.0]))
@settings(max_examples=60, deadline=None)
def test_enough_beams_find_the_best(seed: int, penalty: float) -> None:
    table = language(seed, 4)
    rules = Rules(3, ends=(END,), beams=16, returned=3, early_stopping="never", length_penalty=penalty)
    results = run(search(rules, prompts([1], [2, 3]), ()), table)
    for start, found in ((1, results[:3]), (3, results[3:])):
        scores = counted(table, start, 3, penalty)
        best = sorted(scores.values(), reverse=True)[:3]  # the same steps in another order score the same
        np.testing.assert_allclose([result.score for result in found], best, atol=1e-5)
        np.testing.assert_allclose([scores[tuple(result.tokens.tolist())] for result in found], best, atol=1e-5)


def test_beams_see_past_the_first_token() -> None:
    """1 is the likelier start, but only 2 has a likely second."""
    table = np.log(np.array([[1, 1, 1], [3, 3, 3], [98, 1, 1]], np.float32))
    table = np.vstack([table, np.log(np.array([[1, 55, 44]], np.float32))])  # after token 3
    table = np.pad(table, ((0, 0), (0, 1)), constant_values=-20)
    assert told(run(search(Rules(2), prompts([3])), table))[0][0][0] == 1
    assert told(run(search(Rules(2, beams=2), prompts([3])), table))[0][0] == [2, 0]


@given(seed=st.integers(0, 10_000), beams=st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_results_of_beams(seed: int, beams: int) -> None:
    """In falling order, all different, within the length, ended by an end or by the length, and unpadded."""
    rules = Rules(6, ends=(END, 1), pad=3, beams=beams, returned=beams)
    results = run(search(rules, prompts([4], [5])), language(seed, 12))
    for found in (results[:beams], results[beams:]):
        scores = [result.score or 0.0 for result in found]
        assert scores == sorted(scores, reverse=True)
        assert len({tuple(result.tokens) for result in found}) == beams
        for tokens, stopped in told(found):
            ended = tokens[-1] in rules.ends
            assert stopped == ("end" if ended else "length")
            assert ended or len(tokens) == 6
            assert not set(tokens[:-1]) & set(rules.ends)


def test_enough_candidates_for_every_end() -> None:
    """Each beam's two best tokens end it, and yet both beams go on to the longest texts, which score best."""
    table = np.log(np.array([[40, 41, 10, 9]] * 4, np.float32))
    rules = Rules(4, ends=(0, 1), beams=2, returned=2, length_penalty=3.0, early_stopping="never")
    assert [tokens[:3] for tokens, _ in told(run(search(rules, prompts([2])), table))] == [[2, 2, 2]] * 2


def test_only_the_best_candidates_end() -> None:
    """The end is the third best of the first step, too low for two beams to keep it."""
    table = np.log(np.array([[20, 41, 39]] * 3, np.float32))
    rules = Rules(2, ends=(END,), beams=2, returned=2, length_penalty=0.0)
    assert [tokens for tokens, _ in told(run(search(rules, prompts([1])), table))] == [[1, 1], [1, 2]]


def test_prompts_do_not_touch_each_other() -> None:
    table, rules = language(7, 12), Rules(6, ends=(END,), beams=3, returned=2, early_stopping=True)
    together = told(run(search(rules, prompts([4], [5], [6])), table))
    assert together == [each for start in (4, 5, 6) for each in told(run(search(rules, prompts([start])), table))]


def test_a_beam_stops_at_its_stop_string() -> None:
    seen = set()

    def stops(result: int, tokens: np.ndarray) -> bool:
        seen.add(result)
        return tokens.tolist()[-2:] == [2, 3]

    table = cycle(1, 2, 3, END)
    rules = Rules(6, ends=(END,), beams=2, returned=1)
    assert told(run(search(rules, prompts([1], [2]), stops=stops), table))[0] == ([2, 3], "stop")
    rules = Rules(6, ends=(END,), beams=2, returned=2)
    run(search(rules, prompts([1], [2]), stops=stops), table)
    assert seen == {0, 1, 2}


def test_forced_tokens_of_beams() -> None:
    rules = Rules(5, ends=(END,), forced=(3, 2), forced_end=END, suppressed=(4,), beams=3, returned=3, min_new_tokens=5)
    for tokens, _ in told(run(search(rules, prompts([1])), language(1, 9))):
        assert tokens[:2] == [3, 2]
        assert tokens[-1] == END
        assert len(tokens) == 5
        assert 4 not in tokens


# rules


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 4, "temperature": 0.7}, "temperature is 0.7, wanted 0 with beams 4"),
        ({"beams": 2, "returned": 3}, "returned is 3, wanted at most beams, which is 2"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, wanted 1 or more"),
        ({"beams": 0}, "beams is 0, wanted 1 or more"),
        ({"top_k": -1}, "top_k is -1, wanted 0 or more"),
        ({"top_p": 1.5}, "top_p is 1.5, wanted 0 to 1"),
        ({"typical_p": 0.0}, "typical_p is 0.0, wanted more than 0, to 1"),
        ({"temperature": -1.0}, "temperature is -1.0, wanted 0 or more"),
        ({"temperature": math.nan}, "temperature is nan, wanted 0 or more"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0, wanted more than 0"),
        ({"length_penalty": math.inf}, "length_penalty is inf, wanted a finite number"),
    ],
)
def test_rules_refuse(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as refused:
        Rules(**{"max_new_tokens": 5, **options})
    assert str(refused.value) == message
