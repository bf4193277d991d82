"""Which tokens come: one row after its own likelihood, or the best of several beams. Both as transformers' generate().

The caller runs the model and hands over its logits; a search hands back the next token of every row.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np

from mmrt.runtime.arrays import AnyArray, Float32, Int64
from mmrt.runtime.errors import RequestError
from mmrt.runtime.logits import changes, draw, forbidden, log_softmax, process, top, warp
from mmrt.runtime.manifest import Timestamps

Stopped: TypeAlias = Literal["end", "stop", "length"]
Stops: TypeAlias = Callable[[int, Int64], bool]
NEVER, ZERO = np.float32(-1e9), np.float32(0)  # the score of a beam that is not there; what leaves a score alone


@dataclass(frozen=True)
class Rules:
    """How tokens are chosen. The defaults take the most likely token, up to `max_new_tokens`.

    max_new_tokens        1 or more
    ends                  tokens that end a row
    pad                   what a row gets that has ended
    min_new_tokens        before so many, none of `ends` comes
    temperature           0: always the most likely token, nothing is drawn
    top_k                 drawn from so many of the most likely; 0: from all
    top_p, min_p          see `logits.top_p` and `logits.min_p`; 1 and 0 do nothing
    typical_p             see `logits.typical_p`; 1 does nothing
    repetition_penalty    see `logits.repetition_penalty`; 1 does nothing
    no_repeat_ngram_size  no run of so many tokens comes twice; 0: any may
    forced                the first new tokens
    forced_end            the last new token where `max_new_tokens` is reached
    suppressed            tokens that never come
    begin_suppressed      tokens that do not come as the first after `forced`
    beams                 more than 1: beam search, which needs the temperature 0
    returned              results a prompt; of beams at most all
    length_penalty        a beam's score is its log probability / length ** length_penalty
    timestamps            where times are written: how, see `logits.timestamps`
    early_stopping        beams end when: True, there are enough; False, no better one is likely; "never", possible

    Raises `RequestError` naming the field and its value.
    """

    max_new_tokens: int
    ends: tuple[int, ...] = ()
    pad: int = 0
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    forced: tuple[int, ...] = ()
    forced_end: int | None = None
    suppressed: tuple[int, ...] = ()
    begin_suppressed: tuple[int, ...] = ()
    beams: int = 1
    returned: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    timestamps: Timestamps | None = None

    def __post_init__(self) -> None:
        for field in ("max_new_tokens", "beams", "returned"):
            _need(getattr(self, field) >= 1, field, getattr(self, field), "1 or more")
        for field in ("min_new_tokens", "top_k", "no_repeat_ngram_size"):
            _need(getattr(self, field) >= 0, field, getattr(self, field), "0 or more")
        for field in ("top_p", "min_p"):
            _need(0 <= getattr(self, field) <= 1, field, getattr(self, field), "0 to 1")
        _need(0 < self.typical_p <= 1, "typical_p", self.typical_p, "more than 0, to 1")
        _need(0 <= self.temperature < math.inf, "temperature", self.temperature, "0 or more")
        _need(0 < self.repetition_penalty < math.inf, "repetition_penalty", self.repetition_penalty, "more than 0")
        _need(math.isfinite(self.length_penalty), "length_penalty", self.length_penalty, "a finite number")
        if self.beams > 1:
            _need(self.temperature == 0, "temperature", self.temperature, f"0 with beams {self.beams}")
            _need(self.returned <= self.beams, "returned", self.returned, f"at most beams, which is {self.beams}")


def _need(fits: bool, field: str, value: object, wanted: str) -> None:
    if not fits:
        raise RequestError(f"{field} is {value}, wanted {wanted}")


@dataclass(frozen=True)
class Completion:
    """One result: its new tokens, with the one that ended it; a beam's score; and why it ended.

    stopped: "end" for one of `ends`, else "stop" for a stop string, else "length".
    """

    tokens: Int64
    score: float | None
    stopped: Stopped


class Search(Protocol):
    """The rows of one request, in step. `advance` until `done`, or `follow` where that will do.

    tokens: the newest token of every row, which the model reads next; at first the prompts' last.
    """

    tokens: list[int]
    done: bool

    def follow(self, best: list[int]) -> bool:
        """Choose every row's most likely token, `best`, if it is what `advance` would choose; whether it was so."""

    def advance(self, logits: Float32) -> Int64 | None:
        """Choose by float32 (rows, vocabulary), which is written over.

        Returns which row every row goes on from, (rows,), or None where all stay.
        """

    def certain(self) -> list[tuple[int, int]]:
        """Which results got which tokens for good in the last step, in order."""

    def results(self) -> list[Completion]:
        """When done: `returned` for every prompt, consecutive."""


def search(
    rules: Rules, prompts: Sequence[Int64], uniforms: Sequence[Callable[[], float]] = (), stops: Stops | None = None
) -> Search:
    """A search from every prompt, of one token or more; `beams` rows for each if that is over 1, else `returned` rows.

    Rows and results are consecutive by prompt. uniforms: for every result that is drawn, where it takes a number of
    [0, 1) for every new token. stops: given a result and its new tokens, whether their text holds a stop string; beams
    name the first result of their prompt.
    """
    if rules.beams > 1:
        return Beams(rules, prompts, stops)
    return Rows(rules, prompts, uniforms, stops)


class Rows:
    """Every row on its own, greedy or drawn: transformers' `_sample`.

    Where the most likely tokens are known without the logits, a step touches no array: the caches are cold after the
    model's weights went through them, and an operation of NumPy's on one number then takes as long as all the rest.
    """

    def __init__(
        self, rules: Rules, prompts: Sequence[Int64], uniforms: Sequence[Callable[[], float]], stops: Stops | None
    ) -> None:
        self._rules, self._uniforms, self._stops = rules, uniforms, stops
        self._texts = [array("q", prompt.tolist()) for prompt in prompts for _ in range(rules.returned)]
        self._new = 0
        self._results: dict[int, Completion] = {}
        self._running = list(range(len(self._texts)))
        self._certain: list[tuple[int, int]] = []
        self._ends, self._changes = frozenset(rules.ends), changes(rules)
        self._forbidden: frozenset[int] | None = None  # by which the most likely token may not be followed
        self.tokens = [text[-1] for text in self._texts]
        self.done = False

    def follow(self, best: list[int]) -> bool:
        if self._new in self._changes and self._rules.temperature == 0:
            self._forbidden = forbidden(self._rules, self._new)
        if self._forbidden is None or not self._forbidden.isdisjoint(best):
            return False
        self.take(best)
        return True

    def advance(self, logits: Float32) -> None:
        """Take the most likely token of every row, or draw one."""
        process(logits, self._rules, self._histories, self._new)
        self.take(logits.argmax(axis=1).tolist() if self._rules.temperature == 0 else self._draw(logits))

    def _histories(self) -> list[Int64]:
        """The tokens of every row, as views that must be gone before it grows."""
        return [np.frombuffer(text, np.int64) for text in self._texts]

    def take(self, chosen: list[int]) -> None:
        """Go on with these tokens, which others chose by the rules; those of rows that have ended do not count."""
        for row in self._results:
            chosen[row] = self._rules.pad
        for text, token in zip(self._texts, chosen, strict=True):
            text.append(token)
        self._new += 1
        self._certain = [(row, chosen[row]) for row in self._running]
        self.tokens = chosen
        last = self._new == self._rules.max_new_tokens
        if last or self._stops is not None or not self._ends.isdisjoint(chosen):
            self._end()

    def _end(self) -> None:
        """Let the rows go that end with their newest token."""
        histories = self._histories()
        for row, _ in self._certain:
            new = histories[row][-self._new :]
            stopped = _stopped(self._rules, self._stops, row, new)
            if stopped is not None:
                self._results[row] = Completion(new.copy(), None, stopped)
                self._running.remove(row)
        self.done = not self._running

    def _draw(self, scores: Float32) -> list[int]:
        chosen = [0] * len(scores)
        for row in self._running:
            chosen[row] = draw(warp(scores[row], self._rules), self._uniforms[row]())
        return chosen

    def certain(self) -> list[tuple[int, int]]:
        return self._certain

    def results(self) -> list[Completion]:
        assert self.done
        return [self._results[row] for row in sorted(self._results)]


class Beams:
    """Beam search: transformers' `_beam_search`, step by step.

    Of every prompt, `beams` run, and the best `beams` that ended are kept; each step's candidates are enough that as
    many go on even if all others end.
    """

    def __init__(self, rules: Rules, prompts: Sequence[Int64], stops: Stops | None) -> None:
        self._rules, self._stops = rules, stops
        self._history = _History(prompts, rules.beams, rules.max_new_tokens)
        shape = len(prompts), rules.beams
        self._scores = np.full(shape, NEVER)  # of the running beams, falling
        self._scores[:, 0] = 0  # all beams start alike, so only one counts
        self._ended = np.full((*shape, rules.max_new_tokens), rules.pad, np.int64)
        self._ended_scores = np.full(shape, NEVER)  # falling
        self._ended_lengths = np.zeros(shape, np.int64)  # 0: not there yet
        self._improvable = np.ones((len(prompts), 1), np.bool_)
        self.tokens = self._history.last()
        self.done = False

    def follow(self, best: list[int]) -> bool:
        return False

    def advance(self, logits: Float32) -> Int64 | None:
        """Let every beam go on with its best tokens, and keep the best of all of a prompt."""
        history, rules = self._history, self._rules
        beams, size = rules.beams, logits.shape[1]
        sums = log_softmax(logits)
        process(sums, rules, history.rows, history.new)
        sums += self._scores.reshape(-1, 1)
        sums = sums.reshape(-1, beams * size)
        count = min(max(2, 1 + len(rules.ends)) * beams, beams * size)
        best = np.stack([top(row, count) for row in sums])  # (prompts, count), of one prompt's beams * vocabulary
        sums = np.take_along_axis(sums, best, 1)
        origins = best // size + beams * np.arange(len(best))[:, None]

        candidates = history.tokens[origins, : history.end + 1]  # (prompts, count, length)
        candidates[:, :, -1] = best % size
        history.new += 1
        candidates_new = candidates[:, :, -history.new :]
        ending = self._ending(candidates_new)
        self._keep_ended(candidates_new, sums, ending)

        sums = sums + np.where(ending, NEVER, ZERO)
        running = _best(sums, beams)
        self._scores = np.take_along_axis(sums, running, 1)
        history.tokens[:, : history.end] = _pick(candidates, running).reshape(len(logits), -1)
        self.tokens = history.last()
        self._improvable = self._improvable & self._improves()
        full = rules.early_stopping is True and bool(self._ended_lengths.all())
        self.done = full or bool(ending.all()) or not self._improvable.any()
        rows = np.take_along_axis(origins, running, 1).ravel()
        return None if (rows == np.arange(len(rows))).all() else rows

    def _ending(self, candidates: Int64) -> AnyArray:
        """Which candidates (prompts, count, new) end, (prompts, count)."""
        ending = [
            [_stopped(self._rules, self._stops, prompt * self._rules.returned, row) is not None for row in rows]
            for prompt, rows in enumerate(candidates)
        ]
        return np.array(ending)

    def _keep_ended(self, candidates: Int64, sums: Float32, ending: AnyArray) -> None:
        """Put the candidates that end, if they are of the best `beams`, among those that ended before."""
        beams, new = self._rules.beams, candidates.shape[-1]
        ending = ending & (np.arange(ending.shape[1]) < beams)
        closed = ~self._improvable
        if self._rules.early_stopping is True:
            closed = closed | self._ended_lengths.all(axis=1, keepdims=True)
        scores = sums / np.float32(new**self._rules.length_penalty)
        scores = scores + np.where(closed, NEVER, ZERO) + np.where(ending, ZERO, NEVER)
        every = np.concatenate([self._ended_scores, scores], 1)
        kept = _best(every, beams)
        padded = np.full((*ending.shape, self._ended.shape[-1]), self._rules.pad, np.int64)
        padded[:, :, :new] = candidates
        self._ended = _pick(np.concatenate([self._ended, padded], 1), kept)
        self._ended_scores = np.take_along_axis(every, kept, 1)
        self._ended_lengths = np.take_along_axis(np.concatenate([self._ended_lengths, new * ending], 1), kept, 1)

    def _improves(self) -> AnyArray:
        """Whether the best running beam may come before one that ended, (prompts, 1)."""
        rules = self._rules
        far = rules.early_stopping == "never" and rules.length_penalty > 0
        length = rules.max_new_tokens if far else self._history.new
        best = self._scores[:, :1] / np.float32(length**rules.length_penalty)
        worst = np.where(self._ended_lengths > 0, self._ended_scores.min(axis=1, keepdims=True), NEVER)
        improves: AnyArray = np.any(best > worst, axis=1, keepdims=True)
        return improves

    def certain(self) -> list[tuple[int, int]]:
        found = self.results() if self.done else []
        return [(index, token) for index, result in enumerate(found) for token in result.tokens.tolist()]

    def results(self) -> list[Completion]:
        """The best that ended; one that the rules made impossible is empty."""
        assert self.done
        rules, found = self._rules, []
        for prompt, lengths in enumerate(self._ended_lengths):
            for beam, length in enumerate(lengths[: rules.returned].tolist()):
                tokens = self._ended[prompt, beam, :length].copy()
                stopped = _stopped(rules, self._stops, prompt * rules.returned, tokens) if length else None
                found.append(Completion(tokens, float(self._ended_scores[prompt, beam]), stopped or "length"))
        return found


class _History:
    """The tokens of all beams: prompts, aligned to the right, then `new` ones."""

    def __init__(self, prompts: Sequence[Int64], copies: int, room: int) -> None:
        self.new, self._longest = 0, max(map(len, prompts))
        self._starts = [self._longest - len(prompt) for prompt in prompts for _ in range(copies)]
        self.tokens = np.zeros((len(self._starts), self._longest + room), np.int64)
        for row, start in enumerate(self._starts):
            self.tokens[row, start : self._longest] = prompts[row // copies]

    @property
    def end(self) -> int:
        return self._longest + self.new

    def last(self) -> list[int]:
        """The newest token of every row."""
        newest: list[int] = self.tokens[:, self.end - 1].tolist()
        return newest

    def rows(self) -> list[Int64]:
        """The tokens of every row, as views."""
        return [row[start : self.end] for row, start in zip(self.tokens, self._starts, strict=True)]


def _stopped(rules: Rules, stops: Stops | None, result: int, tokens: Int64) -> Stopped | None:
    """Why new tokens are the last, if they are."""
    if int(tokens[-1]) in rules.ends:
        return "end"
    if stops is not None and stops(result, tokens):
        return "stop"
    return "length" if len(tokens) == rules.max_new_tokens else None


def _best(scores: Float32, count: int) -> Int64:
    """Where the `count` largest of each row are, falling, and of equals the first ones first."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def _pick(sequences: Int64, rows: Int64) -> Int64:
    return np.take_along_axis(sequences, rows[:, :, None], 1)
