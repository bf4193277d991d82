"""Attention with less to move: the same numbers, on any engine."""

from __future__ import annotations

from inspect import signature
from typing import Any

import onnx_ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass

_SIGNATURE = signature(torch.nn.MultiheadAttention.forward)
_READ = ("query", "key", "value", "attn_mask", "key_padding_mask")  # of its arguments
_HEADS_FIRST = [0, 2, 1, 3]  # (batch, sequence, heads, size) -> (batch, heads, sequence, size), and back


def leave_heads_in_place(model: Any) -> None:
    """Give Attention its queries, keys and values as (batch, sequence, heads * size), which projections make and take,
    where they are only brought there for it: it reads heads where they lie, so nothing is transposed."""
    for node in model.graph:
        if node.op_type != "Attention" or len(node.outputs) > 1 or "q_num_heads" in node.attributes:
            continue
        found = [_with_heads_last(value) for value in node.inputs[:3]]
        joined = _joined(node.outputs[0])
        if joined is None or None in found or any(value is not None for value in node.inputs[4:6]):  # a past
            continue
        query, key, _ = node.inputs[:3]
        node.attributes.add(onnx_ir.AttrInt64("q_num_heads", query.shape[1]))
        node.attributes.add(onnx_ir.AttrInt64("kv_num_heads", key.shape[1]))
        for place, value in enumerate(found):
            node.replace_input_with(place, value)
        made = node.outputs[0]
        made.shape, made.type = joined.shape, joined.type
        made.name, joined.name = joined.name, made.name  # that of an output is asked for
        joined.replace_all_uses_with(made, replace_graph_outputs=True)
    RemoveUnusedNodesPass()(model)


def _with_heads_last(value: Any) -> Any:
    """What `value`, (batch, heads, sequence, size), is made of by a Reshape and a Transpose alone; else None."""
    transpose = value.producer()
    reshape = transpose and _turns(transpose) and transpose.inputs[0].producer()
    if not reshape or reshape.op_type != "Reshape":
        return None
    batch, heads, sequence, size = value.shape
    if not isinstance(heads, int) or not isinstance(size, int):
        return None
    whole = reshape.inputs[0]
    return whole if whole.shape is not None and [*whole.shape] == [batch, sequence, heads * size] else None


def _joined(value: Any) -> Any:
    """What a Transpose and a Reshape alone make of `value`, (batch, heads, sequence, size); else None."""
    for wanted in ("Transpose", "Reshape"):
        if len(value.uses()) != 1 or value.is_graph_output():
            return None
        [(node, _)] = value.uses()
        if node.op_type != wanted or (wanted == "Transpose" and not _turns(node)):
            return None
        batch_and_sequence = [*node.outputs[0].shape][:2]
        if wanted == "Reshape" and [*value.shape][:2] != batch_and_sequence:
            return None
        value = node.outputs[0]
    return value if len(value.shape) == 3 else None


def _turns(node: Any) -> bool:
    return node.op_type == "Transpose" and [*node.attributes["perm"].as_ints()] == _HEADS_FIRST


def _forward(layer: Any, query: Any, *args: Any, **options: Any) -> tuple[Any, Any]:
    """As `torch.nn.MultiheadAttention` is called. Its own keeps the sequence first: it would turn what it is given, and
    then again each of the queries, keys and values."""
    asked = _SIGNATURE.bind(layer, query, *args, **options)
    asked.apply_defaults()
    unusual = not layer._qkv_same_embed_dim or layer.bias_k is not None or layer.add_zero_attn or query.dim() != 3
    if unusual or asked.arguments["need_weights"]:
        return type(layer).forward(layer, query, *args, **options)  # type: ignore[no-any-return]
    return _attend(layer, **{name: asked.arguments[name] for name in _READ}), None


def _attend(layer: Any, query: Any, key: Any, value: Any, attn_mask: Any, key_padding_mask: Any) -> Any:
    functional, alike = torch.nn.functional, query is key and key is value
    query, key, value = (each if layer.batch_first else each.transpose(0, 1) for each in (query, key, value))
    weight, bias = layer.in_proj_weight, layer.in_proj_bias
    if alike:
        parts = functional.linear(query, weight, bias).chunk(3, dim=-1)
    else:
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        parts = [functional.linear(*each) for each in zip((query, key, value), weight.chunk(3), biases, strict=True)]
    heads = [each.unflatten(-1, (layer.num_heads, layer.head_dim)).transpose(1, 2) for each in parts]
    mask = _added(attn_mask, query.dtype)
    if mask is not None and mask.dim() == 3:
        mask = mask.unflatten(0, (-1, layer.num_heads))
    hidden = _added(key_padding_mask, query.dtype)
    if hidden is not None:
        hidden = hidden[:, None, None]
        mask = hidden if mask is None else mask + hidden
    found = functional.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).flatten(2)
    found = layer.out_proj(found)
    return found if layer.batch_first else found.transpose(0, 1)


def _added(mask: Any, dtype: torch.dtype) -> Any:
    """What is added to scores: of a mask of bools, in which True is not seen, minus infinity."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(mask, -torch.inf)


ATTENTION = {torch.nn.MultiheadAttention: _forward}  # for `forwards`
