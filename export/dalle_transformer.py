"""dalle-pytorch's transformer over caches that the caller owns: one graph for the prompt and for every code.

Its norms, projections and tables are the model's own. Attention, of whatever kind, is full attention with a mask that
follows from where tokens stand; shifted tokens are looked up in a cache of earlier states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

from mmrt.export.dalle_library import dalle_pytorch
from mmrt.export.decoder import visible, write


class Transformer(torch.nn.Module):  # type: ignore[misc]
    """tokens int64 (rows, sequence), positions int64 (rows,), caches -> logits float32 (rows, codes) after the last
    token, new caches: keys and values, and what later tokens take from earlier ones where tokens are shifted.
    """

    table: torch.Tensor  # (texts' and pictures' places, width), what is added to a token at its place; empty without
    angles: torch.Tensor  # (places, head width), of rotary positions; empty without

    def __init__(self, model: Any) -> None:
        super().__init__()
        layers, sequence = model.transformer.layers, model.transformer
        self.reversible = hasattr(layers, "blocks")
        halves = [(b.f.net, b.g.net) for b in layers.blocks] if self.reversible else [tuple(h) for h in layers.layers]
        self.codes, self.width = model.num_image_tokens, model.transformer.image_fmap_size
        self.start = model.text_seq_len + 1  # the place of the first code
        shifted = hasattr(halves[0][1].fn.fn, "fn")
        self.halves = torch.nn.ModuleList([_Half(half, shifted) for pair in halves for half in pair])
        self.text = torch.nn.Embedding.from_pretrained(model.text_emb(torch.arange(model.num_text_tokens)))
        self.image = torch.nn.Embedding.from_pretrained(model.image_emb(torch.arange(self.codes)))
        norm, head = model.to_logits
        self.norm, self.head = norm, torch.nn.Linear(head.in_features, self.codes)
        self.head.weight.data, self.head.bias.data = (each[-self.codes :].clone() for each in (head.weight, head.bias))
        self.by_max = model.norm_by_max if model.stable else torch.nn.Identity()
        rotary = sequence.pos_emb
        self.rotate = None if rotary is None else _rotation()
        self.register_buffer("angles", torch.zeros(0) if rotary is None else rotary[0].clone())
        self.register_buffer("table", _places(model) if rotary is None else torch.zeros(0))
        self.caches = self._caches()

    def _caches(self) -> dict[str, tuple[int, int]]:
        """The heads and the width of every cache."""
        found: dict[str, tuple[int, int]] = {}
        for place, half in enumerate(self.halves):
            layer, kind = place // 2, "feed" if place % 2 else "attention"
            if half.shifted:
                found[f"shift_{kind}_{layer}"] = 1, half.norm.normalized_shape[0] // 2
            if half.heads:
                width = half.fn.to_qkv.out_features // 3 // half.heads
                found |= {f"key_{layer}": (half.heads, width), f"value_{layer}": (half.heads, width)}
        return found

    def empty(self, rows: int, capacity: int) -> dict[str, torch.Tensor]:
        """Caches with nothing in them."""
        return {name: torch.zeros(rows, heads, capacity, width) for name, (heads, width) in self.caches.items()}

    def forward(self, tokens: Any, positions: Any, **past: Any) -> tuple[Any, ...]:
        at = positions[:, None] + torch.arange(tokens.shape[1])
        call = _Call(self, positions, at, past)
        states = self._embed(tokens, at)
        pair = [states, states] if self.reversible else [states]
        for place, half in enumerate(self.halves):
            target = place % len(pair)
            pair[target] = pair[target] + half(pair[target - 1], call, place // 2)
        states = self.by_max(torch.stack(pair).mean(dim=0)[:, -1])
        return (self.head(self.norm(states)), *(call.new[name] for name in self.caches))

    def _embed(self, tokens: Any, at: Any) -> Any:
        written = tokens < self.codes
        text = self.text(torch.where(written, 0, tokens - self.codes))
        states = torch.where(written[:, :, None], self.image(torch.where(written, tokens, 0)), text)
        return states + self.table[at] if len(self.table) else states


def _places(model: Any) -> Any:
    """The learnt embeddings of all places, (1 + text + codes, width)."""
    image = model.image_pos_emb(torch.zeros(1, model.image_seq_len, model.text_pos_emb.weight.shape[1]))
    return torch.cat([model.text_pos_emb.weight, image[0]])


def _rotation() -> Callable[[Any, Any], Any]:
    rotate: Callable[[Any, Any], Any] = dalle_pytorch().attention.apply_rotary_emb
    return rotate


class _Call:
    """One call: where its tokens stand, which places they see, the caches as they were and as they become."""

    def __init__(self, model: Transformer, positions: Any, at: Any, past: Mapping[str, Any]) -> None:
        self.model, self.positions, self.at, self.past = model, positions, at, past
        self.new: dict[str, Any] = {}
        self.capacity = past["key_0"].shape[2]
        for each in past.values():  # what torch cannot see by itself where caches are only indexed
            torch._check(each.shape[0] == at.shape[0])
            torch._check(each.shape[2] == self.capacity)
        self.angles = model.angles[at][:, None] if model.rotate else None

    def write(self, name: str, new: Any) -> Any:
        self.new[name] = write(self.past[name], new, self.positions)
        return self.new[name]

    def sees(self, kind: str, kernel: int, dilation: int) -> Any:
        """bool (rows, 1, sequence, capacity): all texts and, of the codes up to itself, those that the kind has."""
        causal = visible(self.positions, self.at.shape[1], self.capacity)
        if kind == "full":
            return causal
        start, width = self.model.start, self.model.width
        key = torch.arange(self.capacity)
        own, other = (self.at - start).clamp(min=0)[:, None, :, None], (key - start).clamp(min=0)
        rows, columns = own // width - other // width, own % width - other % width
        reach = kernel * dilation
        near = {
            "axial_row": rows == 0,
            "axial_col": columns == 0,
            "conv_like": (rows < reach) & (rows % dilation == 0)
            & (columns >= 0) & (columns < reach) & (columns % dilation == 0),
        }[kind]  # fmt: skip
        return causal & ((key < start) | near)

    def shift(self, name: str, states: Any) -> Any:
        """The first half of a text token's state from the token before; of a code's, the first quarter from the code
        above and the second from the left; 0 where there is none. arXiv 2102.07350 has the kind."""
        half = states.shape[-1] // 2
        kept = self.write(name, states[:, None, :, :half])[:, 0]
        start, width, at = self.model.start, self.model.width, self.at
        text, column = at < start, (at - start).clamp(min=0) % width
        above = self._taken(
            kept[:, :, : half // 2], torch.where(text, at - 1, at - width), text | (at >= start + width)
        )
        left = self._taken(kept[:, :, half // 2 :], at - 1, text | (column > 0))
        return torch.cat([above, left, states[:, :, half:]], dim=-1)

    @staticmethod
    def _taken(kept: Any, places: Any, there: Any) -> Any:
        found = kept[torch.arange(places.shape[0])[:, None], places.clamp(min=0)]
        return torch.where((there & (places >= 0))[:, :, None], found, 0.0)


class _Half(torch.nn.Module):  # type: ignore[misc]
    """An attention or a feed-forward net with what stands around it: norms, token shift, a scale."""

    def __init__(self, half: Any, shifted: bool) -> None:
        super().__init__()
        self.shifted, self.scale = shifted, half.scale
        self.norm, self.norm_out, self.fn = half.fn.norm, half.fn.norm_out, half.fn.fn
        while hasattr(self.fn, "fn"):
            self.fn = self.fn.fn
        self.heads = getattr(self.fn, "heads", 0)
        self.kernel, self.dilation = getattr(self.fn, "kernel_size", 1), getattr(self.fn, "dilation", 1)
        self.kind = _kind(self.fn)

    def forward(self, states: Any, call: _Call, layer: int) -> Any:
        states = self.norm(states)
        if self.shifted:
            states = call.shift(f"shift_{'attention' if self.heads else 'feed'}_{layer}", states)
        made = self._attend(states, call, layer) if self.heads else self.fn(states)
        return self.norm_out(made) * self.scale

    def _attend(self, states: Any, call: _Call, layer: int) -> Any:
        rows, length, _ = states.shape
        qkv = (
            each.reshape(rows, length, self.heads, -1).transpose(1, 2) for each in self.fn.to_qkv(states).chunk(3, -1)
        )
        rotate = call.model.rotate
        query, key, value = (rotate(call.angles, each) for each in qkv) if rotate else qkv
        made = functional.scaled_dot_product_attention(
            query,
            call.write(f"key_{layer}", key),
            call.write(f"value_{layer}", value),
            attn_mask=call.sees(self.kind, self.kernel, self.dilation),
            scale=self.fn.scale,
        )
        return self.fn.to_out(made.transpose(1, 2).reshape(rows, length, -1))


def _kind(module: Any) -> str:
    """Which of a picture's codes an attention sees, as `attn_types` says it."""
    if hasattr(module, "axis"):
        return "axial_col" if module.axis else "axial_row"
    if hasattr(module, "kernel_size"):
        return "conv_like"
    mask = getattr(module, "static_mask", None)
    if mask is None:
        return "full"
    return "axial_row" if mask[-1, -2] else "axial_col"  # made so by `optimize_for_inference`
