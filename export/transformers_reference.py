"""Golden data of models that write tokens, from transformers' own `generate`, its caches and logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import transformers

from mmrt.export import generation
from mmrt.export.decoder import names
from mmrt.export.quiet import quiet
from mmrt.export.recipe import Golden
from mmrt.runtime.arrays import AnyArray
from mmrt.runtime.receipt import Case

CASES: dict[str, dict[str, Any]] = {  # requests, in the manifest's words
    "greedy": {"beams": 1, "temperature": 0.0, "max_new_tokens": 40},
    "beams": {"beams": 4, "temperature": 0.0, "max_new_tokens": 12},
}
_CAPACITY = 64
CLEAR = 1e4  # a choice among one


def reference(
    model: Any,
    encoded: Mapping[str, torch.Tensor],
    encoder_inputs: Mapping[str, AnyArray],
    request: Mapping[str, Any],
    given: Mapping[str, AnyArray],
    room: int,
    **options: Any,
) -> Golden:
    """Run the cases. `encoded` is what `generate` takes, `encoder_inputs` the same as our encoder graph's inputs.

    `request` and `given` (pictures) are its words in the manifest's inputs; `options` go to `generate`; `room` is the
    most new tokens.
    """
    calls = partial(_calls, encoder_inputs=encoder_inputs)
    return _run(model, {**encoded, **options}, calls, request, given, room)


def causal_reference(
    model: Any,
    encoded: Mapping[str, torch.Tensor],
    prompt: AnyArray,
    features: Mapping[str, AnyArray],
    encoder_inputs: Mapping[str, AnyArray],
    request: Mapping[str, Any],
    given: Mapping[str, AnyArray],
    room: int,
    unseen: int = 0,
) -> Golden:
    """As `reference`, of a model without cross-attention.

    `prompt` has the tokens as our graph `decoder` reads them, int64 (rows, tokens), without padding; `features` is what
    it takes besides, made by our graph `encoder` of `encoder_inputs`. `unseen` is how many of the cache's first places
    have no tokens in transformers' sequences.
    """

    def calls(found: Any, start: int) -> dict[str, AnyArray]:
        arrays = {f"graph/encoder/0/in/{name}": array for name, array in encoder_inputs.items()}
        arrays |= {f"graph/encoder/0/out/{name}": array for name, array in features.items()}
        return arrays | _steps(found, flat(cache_of(found).layers), start, 0, prompt, features, unseen)

    return _run(model, encoded, calls, request, given, room)


def _run(
    model: Any,
    encoded: Mapping[str, Any],
    calls: Callable[[Any, int], dict[str, AnyArray]],
    request: Mapping[str, Any],
    given: Mapping[str, AnyArray],
    room: int,
) -> Golden:
    """The cases; `calls` makes golden calls of the graphs of what the first gave and where its new tokens start."""
    arrays: dict[str, AnyArray] = {}
    cases, start = [], 0
    for name, case in CASES.items():
        case = case | {"max_new_tokens": min(case["max_new_tokens"], room)}
        with quiet(), torch.no_grad():
            found = model.generate(
                **encoded,
                max_new_tokens=case["max_new_tokens"],
                num_beams=case["beams"],
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=case["beams"] == 1,
                output_scores=True,
            )
        if case["beams"] == 1:  # the first case, which shows the prompt's length
            start = found.sequences.shape[1] - len(found.logits)
        arrays[f"run/{name}/out/sequences"] = _padded(_array(found.sequences[:, start:]), model.generation_config)
        arrays |= {f"run/{name}/in/{key}": array for key, array in given.items()}
        cases.append(Case(name=name, request={**request, **case}))
        if case["beams"] == 1:
            arrays[f"run/{name}/margin/sequences"] = margins(found.scores, found.logits)
            arrays |= calls(found, start)
        else:
            arrays[f"run/{name}/score/sequences"] = _array(found.sequences_scores)
    source = f"transformers {transformers.__version__}, torch {torch.__version__}, fp32 on cpu"
    return Golden(source, arrays, tuple(cases))


def margins(scores: Sequence[torch.Tensor], logits: Sequence[torch.Tensor]) -> AnyArray:
    """float32 (rows, new tokens): how far the best score was above the second, in standard deviations of the logits.

    scores and logits: one of each new token, (rows, vocabulary) or (vocabulary,).
    """
    best = torch.stack([step.topk(2).values for step in scores], dim=-2)
    spread = torch.stack([step.std(dim=-1) for step in logits], dim=-1)
    return _array(((best[..., 0] - best[..., 1]) / spread).nan_to_num(nan=CLEAR).clamp(max=CLEAR))


def _calls(found: Any, start: int, encoder_inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    """The encoder's call, and the decoder's first and last step, as the source's cache and logits have them."""
    caches = cache_of(found)
    own, cross = caches.self_attention_cache.layers, caches.cross_attention_cache.layers
    layers = len(flat(own)) // 2  # transformers makes as many as the encoder has, and leaves the rest empty
    cross_arrays = dict(zip(names("cross_", layers), flat(cross), strict=True))
    arrays = {f"graph/encoder/0/in/{name}": array for name, array in encoder_inputs.items()}
    arrays |= {f"graph/encoder/0/out/{name}": array for name, array in cross_arrays.items()}
    mask = {name: array for name, array in encoder_inputs.items() if name == "source_mask"}
    first = _array(found.sequences[:, start - 1 : start])
    return arrays | _steps(found, flat(own), start, start - 1, first, mask | cross_arrays)


def _steps(
    found: Any,
    own: list[AnyArray],
    start: int,
    at: int,
    first: AnyArray,
    given: Mapping[str, AnyArray],
    unseen: int = 0,
) -> dict[str, AnyArray]:
    """The decoder's first step, which reads the tokens `first` at the place `at`, and its last."""
    arrays: dict[str, AnyArray] = {}
    end = start + len(found.logits) - 2
    last = _array(found.sequences[:, end : end + 1])
    calls = (at, first, found.logits[0]), (unseen + end, last, found.logits[-1])
    for call, (place, tokens, logits) in enumerate(calls):
        arrays |= step(f"graph/decoder/{call}", own, place, tokens, _array(logits), given)
    return arrays


def step(
    call: str,
    own: list[AnyArray],
    place: int,
    tokens: AnyArray,
    logits: AnyArray,
    given: Mapping[str, AnyArray] = MappingProxyType({}),
) -> dict[str, AnyArray]:
    """Golden data of a call that reads `tokens` (rows, sequence) at the place `place` of the caches `own`.

    own: keys and values (rows, heads, places, width), layer by layer, as they are at the end of the whole run.
    """
    layers, written = len(own) // 2, place + tokens.shape[1]
    inputs = {"tokens": tokens, "positions": np.full(len(tokens), place), **given}
    inputs |= dict(zip(names("", layers), (_filled(each, place) for each in own), strict=True))
    outputs = dict(zip(names("new_", layers), (_filled(each, written) for each in own), strict=True))
    outputs["logits"] = logits
    arrays = {f"{call}/in/{name}": array for name, array in inputs.items()}
    return arrays | {f"{call}/out/{name}": array for name, array in outputs.items()}


def _padded(sequences: AnyArray, config: Any) -> AnyArray:
    """Sequences with the padding token after their end: transformers fills beams with the end where that token is 0."""
    fields = generation.fields(config)
    ended = np.isin(sequences, fields["ends"]).cumsum(1) - np.isin(sequences, fields["ends"]) > 0
    return np.where(ended, fields["pad"], sequences)


def cache_of(found: Any) -> Any:
    """The cache of what a model or `generate` gives, by the name that transformers 5 gives it, or that of before."""
    return found["cache"] if "cache" in found else found["past_key_values"]


def flat(layers: Any) -> list[AnyArray]:
    """Keys and values of a cache's layers, one after the other."""
    return [_array(each) for layer in layers if layer.is_initialized for each in (layer.keys, layer.values)]


def _filled(cache: AnyArray, length: int) -> AnyArray:
    """The first `length` places of a cache in a buffer of our own kind."""
    capacity = max(_CAPACITY, cache.shape[2])
    whole = np.zeros((*cache.shape[:2], capacity, cache.shape[3]), cache.dtype)
    whole[:, :, :length] = cache[:, :, :length]
    return whole


def _array(tensor: Any) -> AnyArray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy().copy())
