"""How raw logits become the scores of the next token, in the order and with the numbers of transformers' generate().

Scores are float32; a token that cannot come has the score -inf. Rules for all rows write into the scores they are
given, as a copy of a whole vocabulary costs a token more than they do. Histories are the tokens of every row, prompt
and all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from mmrt.runtime.arrays import Float32, Int64

if TYPE_CHECKING:
    from mmrt.runtime.manifest import Timestamps
    from mmrt.runtime.search import Rules

LEAST = np.float32(-np.inf)


def process(scores: Float32, rules: Rules, histories: Callable[[], Sequence[Int64]], new: int) -> None:
    """Apply to scores (rows, vocabulary) the rules that hold however a token is chosen; `new` tokens came so far.

    The histories are asked for where a rule looks at them.
    """
    if rules.repetition_penalty != 1:
        repetition_penalty(scores, histories(), rules.repetition_penalty)
    if rules.no_repeat_ngram_size:
        no_repeat_ngram(scores, histories(), rules.no_repeat_ngram_size)
    if new < rules.min_new_tokens and rules.ends:
        forbid(scores, rules.ends)
    if new < len(rules.forced):
        force(scores, rules.forced[new])
    if new == rules.max_new_tokens - 1 and rules.forced_end is not None:
        force(scores, rules.forced_end)
    if suppressed := _suppressed(rules, new):
        forbid(scores, suppressed)
    if rules.timestamps is not None:
        written = [tokens[len(tokens) - new :] for tokens in histories()]
        timestamps(scores, rules.timestamps, rules.ends[0], written)


def forbidden(rules: Rules, new: int) -> frozenset[int] | None:
    """The tokens that `process` forbids, if that is all it does: any other that is the most likely then remains it."""
    if rules.repetition_penalty != 1 or rules.no_repeat_ngram_size or rules.timestamps is not None:
        return None
    if new < len(rules.forced) or (new == rules.max_new_tokens - 1 and rules.forced_end is not None):
        return None
    return frozenset(_suppressed(rules, new) + (rules.ends if new < rules.min_new_tokens else ()))


def changes(rules: Rules) -> frozenset[int]:
    """From how many new tokens on `forbidden` is another."""
    forced = len(rules.forced)
    return frozenset((0, forced, forced + 1, rules.min_new_tokens, rules.max_new_tokens - 1))


def _suppressed(rules: Rules, new: int) -> tuple[int, ...]:
    return rules.suppressed + rules.begin_suppressed if new == len(rules.forced) else rules.suppressed


def warp(scores: Float32, rules: Rules) -> Float32:
    """The scores (vocabulary,) of one row that a token is to be drawn from.

    Where the best of them is no finite number they are left, as `draw` then takes the best.
    """
    if rules.temperature != 1:
        scores = temperature(scores, rules.temperature)
    if not np.isfinite(scores.max()):
        return scores
    if rules.top_k:
        scores = top_k(scores, rules.top_k)
    if rules.top_p < 1:
        scores = top_p(scores, rules.top_p)
    if rules.min_p > 0:
        scores = min_p(scores, rules.min_p)
    if rules.typical_p < 1:
        scores = typical_p(scores, rules.typical_p)
    return scores


# ---------------------------------------------------------------- all rows at once, (rows, vocabulary)


def repetition_penalty(scores: Float32, histories: Sequence[Int64], penalty: float) -> None:
    """Every token that came before: a score below 0 times `penalty`, any other divided by it.

    Equal to `RepetitionPenaltyLogitsProcessor` (arXiv 1909.05858, section 4.1).
    """
    factor = np.float32(penalty)
    for row, tokens in zip(scores, histories, strict=True):
        seen = tokens[tokens < len(row)]  # a prompt may hold tokens that the model reads and never writes
        before = row[seen]
        row[seen] = np.where(before < 0, before * factor, before / factor)


def no_repeat_ngram(scores: Float32, histories: Sequence[Int64], size: int) -> None:
    """Forbid what would end a run of `size` tokens that came before. Equal to `NoRepeatNGramLogitsProcessor`."""
    for row, tokens in zip(scores, histories, strict=True):
        if len(tokens) >= size:
            runs = sliding_window_view(tokens, size)
            again = runs[(runs[:, :-1] == tokens[len(tokens) + 1 - size :]).all(axis=1), -1]
            row[again[again < len(row)]] = LEAST


def forbid(scores: Float32, tokens: Iterable[int]) -> None:
    """Forbid `tokens`; one that is not in the vocabulary is none of it.

    Equal to `SuppressTokensLogitsProcessor`, and while their time is to `SuppressTokensAtBeginLogitsProcessor` and
    `MinNewTokensLengthLogitsProcessor`.
    """
    scores[:, [token for token in tokens if 0 <= token < scores.shape[1]]] = LEAST


def force(scores: Float32, token: int) -> None:
    """Forbid all but `token`, whose score is 0.

    Equal, while their time is, to `ForcedBOSTokenLogitsProcessor` and `ForcedEOSTokenLogitsProcessor`.
    """
    scores[:] = LEAST
    scores[:, token] = 0


def timestamps(scores: Float32, times: Timestamps, end: int, written: Sequence[Int64]) -> None:
    """Let times come in pairs around segments, rising, one first of all, and none but `end` after a text's last.

    Where all times together are more likely than any other token, one comes. `written` are the new tokens of every row,
    equally many; `end` is the token after which there are only special ones. Equal to
    `WhisperTimeStampLogitsProcessor`.
    """
    first = times.first
    forbid(scores, (times.without,))
    for row, tokens in zip(scores, written, strict=True):
        closing = len(tokens) > 0 and tokens[-1] >= first
        paired = len(tokens) < 2 or tokens[-2] >= first
        if closing and paired:
            row[first:] = LEAST
        elif closing:
            row[:end] = LEAST
        if len(before := tokens[tokens >= first]):
            row[first : before[-1] + (0 if closing and not paired else 1)] = LEAST
    if not len(written[0]):
        scores[:, :first] = LEAST
        if times.initial is not None:
            scores[:, first + times.initial + 1 :] = LEAST
    probabilities = np.exp(log_softmax(scores))
    scores[probabilities[:, first:].sum(axis=1) > probabilities[:, :first].max(axis=1), :first] = LEAST


# ---------------------------------------------------------------- one row that is drawn from, (vocabulary,)


def temperature(scores: Float32, temperature: float) -> Float32:
    """Flatten (above 1) or sharpen (below 1). Equal to `TemperatureLogitsWarper`."""
    return scores / np.float32(temperature)


def top_k(scores: Float32, count: int) -> Float32:
    """Keep the `count` best, and their equals. Equal to `TopKLogitsWarper`."""
    last = top(scores, min(count, len(scores)))[-1]
    return _only(scores, np.flatnonzero(scores >= scores[last]))


def top_p(scores: Float32, mass: float) -> Float32:
    """Drop the least likely that have a probability of 1 - `mass` together at most, but never all.

    Equal to `TopPLogitsWarper` (arXiv 1904.09751, section 3.1).
    """
    possible, limit = np.flatnonzero(scores > LEAST), 1 - mass
    probabilities = _softmax(scores[possible])
    likely = probabilities >= limit / len(possible) / 2  # all the others together are below the limit
    few = possible[likely]
    order = np.argsort(scores[few], kind="stable")
    below = probabilities[~likely].sum(dtype=np.float64) + np.cumsum(probabilities[likely][order], dtype=np.float64)
    dropped = int(np.searchsorted(below.astype(np.float32), np.float32(limit), "right"))
    return _only(scores, few[order[min(dropped, len(order) - 1) :]])


def min_p(scores: Float32, share: float) -> Float32:
    """Drop what is less likely than `share` times the most likely. Equal to `MinPLogitsWarper` (arXiv 2407.01082)."""
    probabilities = _softmax(scores)
    return _only(scores, np.flatnonzero(probabilities >= np.float32(share) * probabilities.max()))


def typical_p(scores: Float32, mass: float) -> Float32:
    """Keep those whose information is nearest to the mean until they have `mass` together, and their equals.

    Equal to `TypicalLogitsWarper` (arXiv 2202.00666, equation 10).
    """
    possible = np.flatnonzero(scores > LEAST)
    information = -log_softmax(scores[possible])
    probabilities = np.exp(-information)
    away = np.abs(information - (information * probabilities).sum())
    order = np.argsort(away, kind="stable")
    together = np.cumsum(probabilities[order], dtype=np.float64).astype(np.float32)
    last = min(int(np.searchsorted(together, np.float32(mass))), len(order) - 1)
    return _only(scores, possible[away <= away[order[last]]])


def draw(scores: Float32, uniform: float) -> int:
    """The token at which the cumulative distribution, in the vocabulary's order, passes `uniform` of [0, 1).

    It never has the probability 0. Where a score is not a number, or every token is forbidden, it is argmax's.
    """
    best = int(scores.argmax())
    if not np.isfinite(scores[best]):
        return best
    possible = np.flatnonzero(scores > LEAST)
    total = np.cumsum(np.exp(scores[possible].astype(np.float64) - scores[best]))
    passes = np.searchsorted(total, uniform * total[-1], "right")
    last = np.searchsorted(total, total[-1])  # a uniform that is 1 but for rounding ends here
    return int(possible[min(passes, last)])


def _only(scores: Float32, kept: Int64) -> Float32:
    only = np.full_like(scores, LEAST)
    only[kept] = scores[kept]
    return only


def _softmax(scores: Float32) -> Float32:
    weights: Float32 = np.exp(scores - scores.max())
    weights /= weights.sum()
    return weights


# ---------------------------------------------------------------- either


def log_softmax(scores: Float32) -> Float32:
    """The logarithms of the probabilities, over the last axis."""
    shifted: Float32 = scores - scores.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def top(scores: Float32, count: int) -> Int64:
    """Where the `count` largest of (n,) are, falling, and of equals the first ones first.

    Equal to `torch.topk` but for equals. The largest of each of many columns bound the last of them from below, which
    leaves few to sort.
    """
    depth = max(1, min(64, len(scores) // (8 * count)))
    columns = scores[: len(scores) // depth * depth].reshape(depth, -1).max(axis=0)
    bound = np.partition(columns, -count)[-count]
    found = np.flatnonzero(~(scores < bound))
    return found[np.argsort(-scores[found], kind="stable")[:count]]
