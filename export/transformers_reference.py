"""Golden data of models that write tokens, from transformers' own `generate`, its caches and logits."""

from __future__ import annotations

from collections.abc import Mapping
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
    arrays: dict[str, AnyArray] = {}
    cases, start = [], 0
    for name, case in CASES.items():
        case = case | {"max_new_tokens": min(case["max_new_tokens"], room)}
        with quiet(), torch.no_grad():
            found = model.generate(
                **encoded,
                **options,
                max_new_tokens=case["max_new_tokens"],
                num_beams=case["beams"],
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=case["beams"] == 1,
            )
        if case["beams"] == 1:  # the first case, which shows the prompt's length
            start = found.sequences.shape[1] - len(found.logits)
        arrays[f"run/{name}/out/sequences"] = _padded(_array(found.sequences[:, start:]), model.generation_config)
        arrays |= {f"run/{name}/in/{key}": array for key, array in given.items()}
        cases.append(Case(name=name, request={**request, **case}))
        if case["beams"] == 1:
            arrays |= _calls(found, start, encoder_inputs)
    source = f"transformers {transformers.__version__}, torch {torch.__version__}, fp32 on cpu"
    return Golden(source, arrays, tuple(cases))


def _calls(found: Any, start: int, encoder_inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    """The encoder's call, and the decoder's first and last step, as the source's cache and logits have them."""
    own, cross = found.past_key_values.self_attention_cache.layers, found.past_key_values.cross_attention_cache.layers
    layers = len(_flat(own)) // 2  # transformers makes as many as the encoder has, and leaves the rest empty
    cross_arrays = dict(zip(names("cross_", layers), _flat(cross), strict=True))
    arrays = {f"graph/encoder/0/in/{name}": array for name, array in encoder_inputs.items()}
    arrays |= {f"graph/encoder/0/out/{name}": array for name, array in cross_arrays.items()}
    mask = {name: array for name, array in encoder_inputs.items() if name == "source_mask"}
    tokens = _array(found.sequences)
    for call, step in enumerate((0, len(found.logits) - 1)):
        at = start - 1 + step
        inputs = {"tokens": tokens[:, at : at + 1], "positions": np.full(len(tokens), at), **mask, **cross_arrays}
        inputs |= dict(zip(names("", layers), (_filled(each, at) for each in _flat(own)), strict=True))
        outputs = dict(zip(names("new_", layers), (_filled(each, at + 1) for each in _flat(own)), strict=True))
        outputs["logits"] = _array(found.logits[step])
        arrays |= {f"graph/decoder/{call}/in/{name}": array for name, array in inputs.items()}
        arrays |= {f"graph/decoder/{call}/out/{name}": array for name, array in outputs.items()}
    return arrays


def _padded(sequences: AnyArray, config: Any) -> AnyArray:
    """Sequences with the padding token after their end: transformers fills beams with the end where that token is 0."""
    fields = generation.fields(config)
    ended = np.isin(sequences, fields["ends"]).cumsum(1) - np.isin(sequences, fields["ends"]) > 0
    return np.where(ended, fields["pad"], sequences)


def _flat(layers: Any) -> list[AnyArray]:
    return [_array(each) for layer in layers if layer.is_initialized for each in (layer.keys, layer.values)]


def _filled(cache: AnyArray, length: int) -> AnyArray:
    """The first `length` places of a cache in a buffer of our own kind."""
    capacity = max(_CAPACITY, cache.shape[2])
    whole = np.zeros((*cache.shape[:2], capacity, cache.shape[3]), cache.dtype)
    whole[:, :, :length] = cache[:, :, :length]
    return whole


def _array(tensor: Any) -> AnyArray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy().copy())
