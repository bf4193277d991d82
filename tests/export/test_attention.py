"""Attention that moves less gives the numbers that torch gives."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from mmrt.export.attention import ATTENTION  # noqa: E402
from mmrt.export.forwards import forwards  # noqa: E402
from mmrt.export.graph import write_onnx  # noqa: E402
from mmrt.export.recipe import Graph  # noqa: E402

HEADS, SIZE, WIDTH = 4, 8, 32


class Attention(torch.nn.Module):  # type: ignore[misc]
    """Attention of heads (queries, keys), as transformers and diffusers write it; `turned`: with rotated queries."""

    def __init__(self, queries: int = HEADS, keys: int = HEADS, turned: bool = False, shown: bool = False) -> None:
        super().__init__()
        self.queries, self.keys, self.turned, self.shown = queries, keys, turned, shown
        self.to_q = torch.nn.Linear(WIDTH, queries * SIZE)
        self.to_k, self.to_v = (torch.nn.Linear(WIDTH, keys * SIZE) for _ in "kv")

    def forward(self, states: Any, context: Any, mask: Any) -> Any:
        query = self.to_q(states).view(*states.shape[:2], self.queries, SIZE).transpose(1, 2)
        key, value = (
            project(context).view(*context.shape[:2], self.keys, SIZE).transpose(1, 2)
            for project in (self.to_k, self.to_v)
        )
        if self.turned:
            query = torch.cat([-query[..., SIZE // 2 :], query[..., : SIZE // 2]], dim=-1)
        made = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, enable_gqa=self.keys != self.queries
        )
        joined = made.transpose(1, 2).reshape(*states.shape[:2], -1)
        return (joined, made) if self.shown else joined


def graph(module: Any) -> Graph:
    torch.manual_seed(0)
    inputs = {
        "states": torch.randn(2, 5, WIDTH),
        "context": torch.randn(2, 7, WIDTH),
        "mask": torch.rand(2, 1, 5, 7) < 0.7,
    }
    inputs["mask"][..., 0] = True
    free = {"states": {0: "batch", 1: "sequence"}, "context": {0: "batch", 1: "tokens"}}
    free["mask"] = {0: "batch", 2: "sequence", 3: "tokens"}
    outputs = ("joined", "made")[: 1 + module.shown]
    return Graph(module, inputs, outputs, free | {"joined": free["states"], "made": {0: "batch", 2: "sequence"}})


@pytest.mark.parametrize(("queries", "keys"), [(4, 4), (4, 2)])
def test_attention_reads_heads_where_they_lie(tmp_path: Path, queries: int, keys: int) -> None:
    made = graph(Attention(queries, keys))
    operators = exported(made, tmp_path)
    assert operators["Attention"] == 1
    assert operators["Transpose"] == operators["Reshape"] == 0


@pytest.mark.parametrize("module", [Attention(turned=True), Attention(shown=True)], ids=["turned", "shown"])
def test_attention_keeps_what_others_need(tmp_path: Path, module: Attention) -> None:
    assert exported(graph(module), tmp_path)["Transpose"] >= 3


def exported(made: Graph, folder: Path) -> Counter[str]:
    """The operators of the graph, which computes at other sizes what torch does."""
    write_onnx("graph", made, folder / "graph.onnx")
    session = onnxruntime.InferenceSession(folder / "graph.onnx")
    for batch, sequence, tokens in ((2, 5, 7), (1, 1, 1), (3, 9, 4)):
        chance = np.random.default_rng(0)
        states, context = (chance.standard_normal((batch, n, WIDTH), np.float32) for n in (sequence, tokens))
        mask = chance.random((batch, 1, sequence, tokens)) < 0.7
        mask[..., 0] = True
        with torch.no_grad():
            wanted = made.module(*map(torch.from_numpy, (states, context, mask)))
        found = session.run(None, {"states": states, "context": context, "mask": mask})
        for one, other in zip(found, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
            np.testing.assert_allclose(one, other.numpy(), atol=1e-5)
    return Counter(node.op_type for node in onnx.load(folder / "graph.onnx").graph.node)


MASKS = {
    None: lambda *_: None,
    "bool": lambda queries, keys: torch.triu(torch.ones(queries, keys, dtype=torch.bool), 1),
    "float": lambda queries, keys: torch.randn(queries, keys),
    "of each head": lambda queries, keys: torch.randn(3 * HEADS, queries, keys),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("hidden", [None, "bool", "float"])
def test_multihead_attention_with_the_batch_first_is_torchs(mask: str | None, hidden: str | None) -> None:
    torch.manual_seed(0)
    for batch_first, alike, bias in product((True, False), repeat=3):
        module = torch.nn.MultiheadAttention(WIDTH, HEADS, bias=bias, batch_first=batch_first).eval()
        keys = 5 if alike else 7
        query, key = torch.randn(3, 5, WIDTH), torch.randn(3, keys, WIDTH)
        if not batch_first:
            query, key = query.transpose(0, 1), key.transpose(0, 1)
        key = query if alike else key
        padding = torch.arange(keys) >= torch.tensor([[keys], [3], [4]]) if hidden else None
        if hidden == "float":
            padding = torch.zeros(3, keys).masked_fill(padding, -1e4)
        options = {"attn_mask": MASKS[mask](5, keys), "key_padding_mask": padding, "need_weights": False}
        with torch.no_grad():
            wanted, _ = module(query, key, key, **options)
            with forwards(module, ATTENTION):
                found, _ = module(query, key, key, **options)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_multihead_attention_that_gives_its_weights_is_left_alone() -> None:
    module = torch.nn.MultiheadAttention(WIDTH, HEADS, add_zero_attn=True, kdim=16).eval()
    query, key, value = torch.randn(5, 2, WIDTH), torch.randn(7, 2, 16), torch.randn(7, 2, WIDTH)
    with torch.no_grad():
        wanted = module(query, key, value)
        with forwards(module, ATTENTION):
            found = module(query, key, value)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


def test_a_transformer_of_torchs_has_no_more_transposes_than_its_borders(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(WIDTH, HEADS, 64, batch_first=True)
    made = Graph(
        torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        {"src": torch.randn(2, 5, WIDTH)},
        ("states",),
        {name: {0: "batch", 1: "sequence"} for name in ("src", "states")},
    )
    write_onnx("graph", made, tmp_path / "graph.onnx")
    assert "Transpose" not in {node.op_type for node in onnx.load(tmp_path / "graph.onnx").graph.node}
    states = np.random.default_rng(0).standard_normal((3, 9, WIDTH), np.float32)
    found = onnxruntime.InferenceSession(tmp_path / "graph.onnx").run(None, {"src": states})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, made.module(torch.from_numpy(states)).numpy(), atol=1e-5)
