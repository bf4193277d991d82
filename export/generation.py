"""What a checkpoint's generation config says of choosing tokens: the inputs of a bundle and fields of its stage."""

from __future__ import annotations

from typing import Any

from mmrt.runtime import manifest as m
from mmrt.runtime.errors import ExportError

_UNSUPPORTED: dict[
    str, tuple[Any, ...]
] = {  # fields that would change the tokens, and the values that leave them alone
    "num_beam_groups": (None, 1),
    "diversity_penalty": (None, 0.0),
    "encoder_repetition_penalty": (None, 1.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "exponential_decay_length_penalty": (None,),
    "sequence_bias": (None, {}),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "constraints": (None, []),
    "force_words_ids": (None, []),
    "penalty_alpha": (None, 0.0),
    "remove_invalid_values": (None, False),
    "renormalize_logits": (None, False),
    "guidance_scale": (None, 1.0),
    "dola_layers": (None,),
    "top_h": (None,),
}
_EARLY_STOPPING = {False: "no", True: "yes", "never": "never"}
_USUAL_LENGTH = 256  # new tokens where the checkpoint says nothing; transformers would stop after 20


def inputs(config: Any, room: int, prompt: int) -> dict[str, m.Input]:
    """The inputs that set how tokens are chosen, their defaults as in `config`.

    `room` is the most new tokens, after a prompt of `prompt` tokens. Temperature 0 is transformers' `do_sample=False`.
    Raises `ExportError` where the config asks for what mmrt has not.
    """
    for field, neutral in _UNSUPPORTED.items():
        if (value := getattr(config, field, None)) not in neutral:
            raise ExportError(f"generation_config.json: {field} is {value!r}, which is not supported")

    def setting(field: str, default: Any) -> Any:
        found = getattr(config, field, None)
        return default if found is None else found

    longest = setting("max_new_tokens", setting("max_length", _USUAL_LENGTH + prompt) - prompt)
    least = max(setting("min_new_tokens", setting("min_length", 0) - prompt), 0)
    sampled = setting("do_sample", False)
    return {
        "max_new_tokens": m.Int(default=min(max(longest, 1), room), min=1, max=room),
        "min_new_tokens": m.Int(default=min(least, room), min=0, max=room),
        "temperature": m.Float(default=setting("temperature", 1.0) if sampled else 0.0, min=0.0, max=100.0),
        "top_k": m.Int(default=setting("top_k", 50), min=0, max=2**31),
        "top_p": m.Float(default=setting("top_p", 1.0), min=0.0, max=1.0),
        "min_p": m.Float(default=setting("min_p", 0.0), min=0.0, max=1.0),
        "typical_p": m.Float(default=setting("typical_p", 1.0), min=0.0, max=1.0),
        "beams": m.Int(default=setting("num_beams", 1), min=1, max=64),
        "length_penalty": m.Float(default=setting("length_penalty", 1.0), min=-100.0, max=100.0),
        "early_stopping": m.Choice(
            default=_EARLY_STOPPING[setting("early_stopping", False)], choices=tuple(_EARLY_STOPPING.values())
        ),
        "repetition_penalty": m.Float(default=setting("repetition_penalty", 1.0), min=0.01, max=100.0),
        "no_repeat_ngram_size": m.Int(default=setting("no_repeat_ngram_size", 0), min=0, max=1000),
        "stop": m.Strings(),
        "num_texts": m.Count(max=64),
        "seed": m.Seed(),
    }


def options() -> dict[m.Option, str]:
    """Each option is set by the input of its own name."""
    return {
        "max_new_tokens": "max_new_tokens",
        "min_new_tokens": "min_new_tokens",
        "temperature": "temperature",
        "top_k": "top_k",
        "top_p": "top_p",
        "min_p": "min_p",
        "typical_p": "typical_p",
        "beams": "beams",
        "length_penalty": "length_penalty",
        "early_stopping": "early_stopping",
        "repetition_penalty": "repetition_penalty",
        "no_repeat_ngram_size": "no_repeat_ngram_size",
        "stop": "stop",
    }


def fields(config: Any) -> dict[str, Any]:
    """`ends`, `pad`, `forced_end`, `suppressed` and `begin_suppressed` of an `Autoregress` stage."""
    ends = _ids(config.eos_token_id)
    banned = config.bad_words_ids or []
    if any(len(word) != 1 for word in banned):
        raise ExportError("generation_config.json: bad_words_ids has words of several tokens, which is not supported")
    forced_end = _ids(config.forced_eos_token_id)
    pad = config.pad_token_id if config.pad_token_id is not None else (ends or (0,))[0]
    return {
        "ends": ends,
        "pad": pad,
        "forced_end": forced_end[0] if forced_end else None,
        "suppressed": (*(word[0] for word in banned), *(config.suppress_tokens or ())),
        "begin_suppressed": tuple(config.begin_suppress_tokens or ()),
    }


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    return () if value is None else (value,) if isinstance(value, int) else tuple(value)
