"""Tokens of several codebooks, each of which comes late by its own delay (arXiv 2306.05284, section 2.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from mmrt.runtime.arrays import Float32, Int64
from mmrt.runtime.errors import RequestError
from mmrt.runtime.search import Completion, Rows, Rules


class Codes:
    """A `Search` whose tokens are those of each row's codebooks, one after the other: each is chosen as its own row.

    Of `rules.max_new_tokens`, codebook k has `frames` from its delay on, and reads the padding before and after. Raises
    `RequestError` where there are none.
    """

    def __init__(
        self, delays: Sequence[int], rules: Rules, prompts: Sequence[Int64], uniforms: Sequence[Callable[[], float]]
    ) -> None:
        """prompts: int64 (tokens, codebooks) each."""
        self._pad, self._delays = rules.pad, delays
        self._books, self._step = len(delays), 0
        self.frames = rules.max_new_tokens - max(delays)
        if self.frames < 1:
            raise RequestError(
                f"max_new_tokens is {rules.max_new_tokens}, wanted more than {max(delays)}, by which codebooks are late"
            )
        books = [book for prompt in prompts for _ in range(rules.returned) for book in prompt.T]
        drawn = [uniform for uniform in uniforms for _ in range(self._books)]
        self._rows = Rows(replace(rules, returned=1), books, drawn, None)
        self.tokens = self._rows.tokens
        self.done = False

    def follow(self, best: list[int]) -> bool:
        """See `Search.follow`."""
        followed = self._rows.follow(best)
        if followed:
            self._delay()
        return followed

    def advance(self, logits: Float32) -> None:
        """Choose by float32 (rows, codebooks, vocabulary), which is written over."""
        self._rows.advance(logits.reshape(-1, logits.shape[2]))
        self._delay()

    def _delay(self) -> None:
        there = [delay <= self._step < delay + self.frames for delay in self._delays]
        self.tokens = [token if there[row % self._books] else self._pad for row, token in enumerate(self._rows.tokens)]
        self._step += 1
        self.done = self._rows.done

    def certain(self) -> list[tuple[int, int]]:
        """Which results got which token of their first codebook."""
        found = self._rows.certain() if self._step <= self.frames else []
        return [(row // self._books, token) for row, token in found if row % self._books == 0]

    def results(self) -> list[Completion]:
        """When done: for every result its tokens, (frames, codebooks), those of one time together."""
        rows = [completion.tokens for completion in self._rows.results()]
        return [
            Completion(
                np.stack(
                    [tokens[delay : delay + self.frames] for tokens, delay in zip(each, self._delays, strict=True)], 1
                ),
                None,
                "length",
            )
            for each in (rows[start : start + self._books] for start in range(0, len(rows), self._books))
        ]
