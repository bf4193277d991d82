"""transformers' decoders as graphs over caches that the caller owns: one graph for the prompt and for every step.

A decoder's own code runs unchanged. It meets a cache whose layers write with ONNX's `TensorScatter`, and a mask that
says which of the cache's places a token may look at. Arrays are named by layer: `key_0`, `value_0`, ... hold what was
written so far, `new_key_0`, ... the same with the newest; `cross_key_0`, ... belong to the source.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

from mmrt.export.recipe import Graph
from mmrt.runtime.errors import ExportError

OPSET = 24  # the first with TensorScatter


def names(prefix: str, layers: int) -> tuple[str, ...]:
    """The arrays of a cache: keys and values, layer by layer."""
    return tuple(f"{prefix}{kind}_{layer}" for layer in range(layers) for kind in ("key", "value"))


def new_names(layers: int) -> dict[str, str]:
    """The manifest's `caches`: which output is the new content of which input."""
    return dict(zip(names("", layers), names("new_", layers), strict=True))


def write(past: Any, new: Any, positions: Any) -> Any:
    """The buffer (rows, heads, capacity, width) with what is new, (rows, heads, sequence, width), at each position."""
    return torch.onnx.ops.symbolic(
        "TensorScatter",
        (past, new, positions),
        {"axis": -2, "mode": "linear"},
        dtype=past.dtype,
        shape=past.shape,
        version=OPSET,
    )


class _Written(DynamicLayer):  # type: ignore[misc]
    """A layer whose buffers (rows, heads, capacity, width) take new keys and values at each row's position."""

    def __init__(self, keys: Any, values: Any, positions: Any) -> None:
        super().__init__()
        self.keys, self.values, self.positions = keys, values, positions
        self.is_initialized = True

    def update(self, keys: Any, values: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
        self.keys, self.values = write(self.keys, keys, self.positions), write(self.values, values, self.positions)
        return self.keys, self.values

    def get_seq_length(self) -> Any:
        return self.positions[0]  # for models that count positions themselves, whose rows go in step


class _Given(DynamicLayer):  # type: ignore[misc]
    """A layer of cross-attention, computed before."""

    def __init__(self, keys: Any, values: Any) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True

    def get_seq_length(self) -> int:
        return 1  # anything but 0: it is filled


def _pairs(arrays: dict[str, Any], prefix: str) -> list[tuple[Any, Any]]:
    layers = sum(name.startswith(f"{prefix}key_") for name in arrays)
    return [(arrays[f"{prefix}key_{layer}"], arrays[f"{prefix}value_{layer}"]) for layer in range(layers)]


def visible(positions: Any, length: int, capacity: int) -> Any:
    """bool (rows, 1, length, capacity): a token sees what was written up to itself."""
    at = positions[:, None] + torch.arange(length)
    return (torch.arange(capacity)[None, None, :] <= at[:, :, None])[:, None]


def spread(mask: Any, length: int) -> Any:
    """bool (rows, source) -> (rows, 1, length, source): every one of `length` tokens sees the same."""
    return mask[:, None, None, :].expand(-1, 1, length, -1)


def _outputs(logits: Any, cache: Any) -> tuple[Any, ...]:
    arrays = (array for layer in cache.layers for array in (layer.keys, layer.values))
    return (logits, logits.argmax(dim=-1), *arrays)


def _output_names(layers: int) -> tuple[str, ...]:
    return ("logits", "likeliest", *names("new_", layers))


def mask_for(model: Any, allowed: Any) -> Any:
    """`allowed` (bool) as the model's attention takes it: as it is, or, where that adds masks to its scores, 0 or less.

    transformers hands bool masks to PyTorch's own attention, which not all of its models use.
    """
    if model._supports_sdpa:
        return allowed
    return torch.where(allowed, 0.0, torch.finfo(torch.float32).min)


def with_cache(model: Any, cache: Any) -> dict[str, Any]:
    """The cache as `model.forward` takes it: transformers 5 calls it `cache`, what came before `past_key_values`."""
    new = "cache" in inspect.signature(model.forward).parameters
    return {"cache" if new else "past_key_values": cache}


class Seq2Seq(torch.nn.Module):  # type: ignore[misc]
    """An encoder-decoder model called as a language model with cross-attention is."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._supports_sdpa = model._supports_sdpa

    def forward(
        self,
        input_ids: Any,
        attention_mask: Any,
        encoder_hidden_states: Any,
        encoder_attention_mask: Any,
        cache: Any,
        use_cache: bool,
    ) -> Any:
        return self.model(
            decoder_input_ids=input_ids,
            decoder_attention_mask=attention_mask,
            encoder_outputs=(encoder_hidden_states,),
            attention_mask=encoder_attention_mask,
            use_cache=use_cache,
            **with_cache(self.model, cache),
        )


def cross_attention(decoder: Any, states: Any) -> tuple[Any, ...]:
    """Encoder states (rows, source, width) -> each layer's keys and values of them, (rows, heads, source, head width).

    The decoder runs on one token and fills its own cache; of that run only the projections remain in a graph.
    """
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    decoder(
        input_ids=torch.zeros(states.shape[0], 1, dtype=torch.int64),
        attention_mask=mask_for(decoder, torch.ones(states.shape[0], 1, 1, 1, dtype=torch.bool)),
        encoder_hidden_states=states,
        encoder_attention_mask=mask_for(decoder, torch.ones(states.shape[0], 1, 1, states.shape[1], dtype=torch.bool)),
        use_cache=True,
        **with_cache(decoder, cache),
    )
    return tuple(array for layer in cache.cross_attention_cache.layers for array in (layer.keys, layer.values))


class Decoder(torch.nn.Module):  # type: ignore[misc]
    """tokens int64 (rows, sequence), positions int64 (rows,), source_mask bool (rows, source) where sources differ in
    length, cross keys and values, caches -> logits float32 (rows, vocabulary) after the last token, the likeliest next
    token int64 (rows,), new caches.
    """

    def __init__(self, decoder: Any, states_width: int) -> None:
        super().__init__()
        self.decoder, self.states_width = decoder, states_width

    def forward(self, tokens: Any, positions: Any, **arrays: Any) -> tuple[Any, ...]:
        rows, length = tokens.shape[:2]
        past, cross = _pairs(arrays, ""), _pairs(arrays, "cross_")
        source, capacity = cross[0][0].shape[2], past[0][0].shape[2]
        written = Cache(layers=[_Written(keys, values, positions) for keys, values in past])
        given = Cache(layers=[_Given(keys, values) for keys, values in cross])
        mask = arrays["source_mask"] if "source_mask" in arrays else torch.ones(rows, source, dtype=torch.bool)
        logits = self.decoder(
            input_ids=tokens,
            attention_mask=mask_for(self.decoder, visible(positions, length, capacity)),
            encoder_hidden_states=torch.zeros(rows, 1, self.states_width),  # not looked at: its keys are given
            encoder_attention_mask=mask_for(self.decoder, spread(mask, length)),
            use_cache=True,
            **with_cache(self.decoder, EncoderDecoderCache(written, given)),
        ).logits
        return _outputs(logits[:, -1], written)


class Causal(torch.nn.Module):  # type: ignore[misc]
    """tokens int64 (rows, sequence), positions int64 (rows,), what `embed` takes besides, caches -> logits float32
    (rows, vocabulary) after the last token, the likeliest next token int64 (rows,), new caches. Each row has its own
    positions.

    `embed` makes float32 (rows, sequence, width) of tokens, `model` is a transformers decoder without a head, `head`
    makes logits of its states. Layers may have fewer heads of keys than of queries.
    """

    def __init__(self, embed: torch.nn.Module, model: Any, head: torch.nn.Module) -> None:
        super().__init__()
        self.embed, self.model, self.head = embed, model, head

    def forward(self, tokens: Any, positions: Any, **arrays: Any) -> tuple[Any, ...]:
        past = _pairs(arrays, "")
        own = {name: array for name, array in arrays.items() if not name.startswith(("key_", "value_"))}
        length, capacity = tokens.shape[1], past[0][0].shape[2]
        written = Cache(layers=[_Written(keys, values, positions) for keys, values in past])
        states = self.model(
            inputs_embeds=self.embed(tokens, **own),
            attention_mask=mask_for(self.model, visible(positions, length, capacity)),
            position_ids=positions[:, None] + torch.arange(length),
            use_cache=True,
            **with_cache(self.model, written),
        ).last_hidden_state
        return _outputs(self.head(states[:, -1]), written)


class Embed(torch.nn.Module):  # type: ignore[misc]
    """tokens int64 (rows, sequence) and a table `features` float32 (rows, places, width) -> (rows, sequence, width).

    Tokens of the vocabulary's size and above are places in the row's features.
    """

    def __init__(self, embedding: torch.nn.Module, vocabulary: int) -> None:
        super().__init__()
        self.embedding, self.vocabulary = embedding, vocabulary

    def forward(self, tokens: Any, features: Any) -> Any:
        given = tokens >= self.vocabulary
        known = self.embedding(torch.where(given, 0, tokens))
        places = torch.where(given, tokens - self.vocabulary, 0)
        looked_up = features.gather(1, places[:, :, None].expand(-1, -1, features.shape[2]))
        return torch.where(given[:, :, None], looked_up, known)


class LookUp(torch.nn.Module):  # type: ignore[misc]
    """As `Embed`, of a table of the whole request, float32 (tiles, places, width), whose places are counted on."""

    def __init__(self, embedding: torch.nn.Module, vocabulary: int) -> None:
        super().__init__()
        self.embedding, self.vocabulary = embedding, vocabulary

    def forward(self, tokens: Any, features: Any) -> Any:
        given = tokens >= self.vocabulary
        known = self.embedding(torch.where(given, 0, tokens))
        looked_up = features.flatten(0, 1)[torch.where(given, tokens - self.vocabulary, 0)]
        return torch.where(given[:, :, None], looked_up, known)


_ROPE = ("default", "linear", "yarn", "llama3")  # the others' frequencies follow from the length so far


def causal_graph(
    embed: torch.nn.Module, model: Any, head: torch.nn.Module, extra: dict[str, torch.Tensor], of: str = "rows"
) -> tuple[Graph, int]:
    """The graph of a decoder without cross-attention, and the number of its layers.

    `extra` are examples of what `embed` takes beside tokens, 2 or more each of what `of` says. Raises `ExportError` for
    what is not supported: windows of attention, and rotary positions that change with the length.
    """
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "use_sliding_window", False):
        raise ExportError(f"config.json: layers with {', '.join(sorted(kinds))}; supported is full attention only")
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in _ROPE:
        raise ExportError(f"config.json: rope_type is {rope!r}, supported are {', '.join(_ROPE)}")
    with torch.no_grad():
        cache = DynamicCache()
        model(inputs_embeds=torch.zeros(1, 1, config.hidden_size), use_cache=True, **with_cache(model, cache))
    (_, heads, _, width), layers = cache.layers[0].keys.shape, len(cache.layers)
    rows, capacity = 2, 32
    past = {name: torch.zeros(rows, heads, capacity, width) for name in names("", layers)}
    free: dict[str, dict[int, str]] = {"tokens": {0: "rows", 1: "sequence"}, "positions": {0: "rows"}}
    free |= {"logits": {0: "rows"}, "likeliest": {0: "rows"}, **{name: {0: of} for name in extra}}
    free |= {name: {0: "rows", 2: "capacity"} for old in past for name in (old, f"new_{old}")}
    tokens, positions = torch.zeros(rows, 3, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)
    inputs = {"tokens": tokens, "positions": positions, **extra, **past}
    return Graph(Causal(embed, model, head), inputs, _output_names(layers), free, opset=OPSET), layers


def decoder_graph(decoder: Any, states_width: int, masked: bool, codebooks: int = 0) -> tuple[Graph, int]:
    """The graph of a decoder with cross-attention to states of that width, and the number of its layers.

    With `codebooks`, its tokens are vectors of as many codes, and so are the logits: (rows, codebooks, vocabulary).
    """
    with torch.no_grad():
        probe = cross_attention(decoder, torch.zeros(1, 2, states_width))
    layers, (_, heads, _, head_width) = len(probe) // 2, probe[0].shape
    rows, source, capacity = 2, 7, 32
    cross = {name: torch.zeros(rows, heads, source, head_width) for name in names("cross_", layers)}
    past = {name: torch.zeros(rows, heads, capacity, head_width) for name in names("", layers)}
    mask = {"source_mask": torch.ones(rows, source, dtype=torch.bool)} if masked else {}
    free: dict[str, dict[int, str]] = {
        "tokens": {0: "rows", 1: "sequence"},
        "positions": {0: "rows"},
        "source_mask": {0: "rows", 1: "source"},
        "logits": {0: "rows"},
        "likeliest": {0: "rows"},
    }
    free |= {name: {0: "rows", 2: "source"} for name in cross}
    free |= {name: {0: "rows", 2: "capacity"} for old in past for name in (old, f"new_{old}")}
    tokens = torch.zeros(rows, 3, *([codebooks] if codebooks else []), dtype=torch.int64)
    inputs = {"tokens": tokens, "positions": torch.zeros(rows, dtype=torch.int64), **mask, **cross, **past}
    return Graph(Decoder(decoder, states_width), inputs, _output_names(layers), free, opset=OPSET), layers
