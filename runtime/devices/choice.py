"""What `choose_token` goes by: a search's rules and rows as arrays, for a device that chooses where the logits are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmrt.runtime.arrays import AnyArray, Float64, Int64
from mmrt.runtime.search import Rules

ALWAYS = 2**31 - 1


def refusal(rules: Rules) -> str | None:
    """Which rule keeps `choose_token` from choosing, if one does: the host must then."""
    for name in ("no_repeat_ngram_size", "typical_p", "timestamps"):
        if getattr(rules, name) != getattr(Rules(1), name):
            return f"{name} is {getattr(rules, name)}"
    return f"beams is {rules.beams}" if rules.beams > 1 else None


def choice(
    rules: Rules, prompts: Sequence[Int64], uniforms: Float64, vocabulary: int, guidance: float = 1.0
) -> dict[str, AnyArray]:
    """The arrays of `choose_token` but for those of the model, for `rules.returned` rows of every prompt.

    uniforms: (rows, slots); of no use where nothing is drawn, but at least (rows, 1).
    """
    assert not refusal(rules)
    longest, rows = max(map(len, prompts)), len(prompts) * rules.returned
    history = np.zeros((rows, longest + rules.max_new_tokens), np.int64)
    starts = np.zeros(rows, np.int32)
    for row, prompt in enumerate(prompt for prompt in prompts for _ in range(rules.returned)):
        starts[row] = longest - len(prompt)
        history[row, starts[row] : longest] = prompt
    numbers = rules.temperature, rules.top_k, 1 - rules.top_p, rules.min_p, rules.repetition_penalty, guidance
    return {
        "scores": np.zeros((rows, vocabulary), np.float32),
        "history": history,
        "starts": starts,
        "rules": np.array(numbers, np.float32),
        "forbidden": _forbidden(rules),
        "forced": _forced(rules),
        "ends": np.array(rules.ends, np.int32),
        "uniforms": uniforms,
        "ended": np.zeros(rows, np.int32),
        "state": np.array([0, 0, longest, rules.pad], np.int32),
    }


def _forced(rules: Rules) -> AnyArray:
    forced = np.full(len(rules.forced) if rules.forced_end is None else rules.max_new_tokens, -1, np.int32)
    forced[: len(rules.forced)] = rules.forced[: len(forced)]
    if rules.forced_end is not None:
        forced[-1] = rules.forced_end
    return forced


def _forbidden(rules: Rules) -> AnyArray:
    """What the rules suppress comes after what they force, as in `logits.process`; what they end with, before."""
    begin = len(rules.forced)
    spans = [(token, 0, ALWAYS) for token in rules.suppressed]
    spans += [(token, begin, begin + 1) for token in rules.begin_suppressed]
    last = rules.max_new_tokens - (rules.forced_end is not None)
    spans += [(token, begin, min(rules.min_new_tokens, last)) for token in rules.ends]
    return np.array([(token, token + 1, *span) for token, *span in spans], np.int32).reshape(-1, 4)
