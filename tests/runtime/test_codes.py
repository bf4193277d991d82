"""Codes of several codebooks: delays, one codebook as the common case, and draws."""

from __future__ import annotations

import numpy as np
import pytest

from mmrt.runtime.codes import Codes
from mmrt.runtime.errors import RequestError
from mmrt.runtime.search import Rules, search

PAD, VOCABULARY = 99, 50


def run(
    delays: tuple[int, ...], rules: Rules, rows: int = 1, seed: int = 0
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What the model reads, step by step, and the results, of logits by chance."""
    random = np.random.default_rng(seed)
    prompts = [np.full((1, len(delays)), PAD)] * rows
    draws = [np.random.default_rng(each).random for each in range(rows * rules.returned)]
    found, read = Codes(delays, rules, prompts, draws), []
    while not found.done:
        read.append(np.array(found.tokens).reshape(-1, len(delays)))
        found.advance(random.normal(size=(rows * rules.returned, len(delays), VOCABULARY)).astype(np.float32))
    return read, [each.tokens for each in found.results()]


def test_codebooks_come_late() -> None:
    """As MusicGen's pattern has it: each codebook reads padding until its turn, and after its last code."""
    delays, new = (0, 1, 2), 6
    read, (result,) = run(delays, Rules(max_new_tokens=new, pad=PAD))
    pattern = np.stack([each[0] for each in read], axis=1) == PAD  # (codebooks, steps); the first is the prompt
    wanted = ["P....P", "PP....", "PPP..."]
    assert ["".join("P" if each else "." for each in row) for row in pattern] == wanted
    assert result.shape == (new - max(delays), len(delays))
    for book, delay in enumerate(delays):
        seen = [each[0, book] for each in read[delay + 1 : delay + 1 + len(result)]]
        assert result[: len(seen), book].tolist() == seen


def test_one_codebook_is_a_plain_search() -> None:
    rules = Rules(max_new_tokens=7, pad=PAD, temperature=1.0, top_k=5, returned=2)
    _, codes = run((0,), rules, rows=2, seed=3)
    random = np.random.default_rng(3)
    plain = search(rules, [np.array([PAD])] * 2, [np.random.default_rng(each).random for each in range(4)])
    while not plain.done:
        plain.advance(random.normal(size=(4, 1, VOCABULARY)).astype(np.float32)[:, 0])
    for ours, theirs in zip(codes, plain.results(), strict=True):
        np.testing.assert_array_equal(ours[:, 0], theirs.tokens)


def test_certain_tokens_are_those_of_the_first_codebook() -> None:
    rules, random = Rules(max_new_tokens=5, pad=PAD), np.random.default_rng(1)
    found, certain = Codes((0, 2), rules, [np.full((1, 2), PAD)] * 2, []), []
    while not found.done:
        found.advance(random.normal(size=(2, 2, VOCABULARY)).astype(np.float32))
        certain += found.certain()
    for row, result in enumerate(found.results()):
        assert [token for index, token in certain if index == row] == result.tokens[:, 0].tolist()


def test_delays_longer_than_all_are_refused() -> None:
    with pytest.raises(RequestError, match="max_new_tokens is 3, wanted more than 3"):
        Codes((0, 3), Rules(max_new_tokens=3), [np.full((1, 2), PAD)], [])
