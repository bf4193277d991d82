"""The loop over caches whose length an engine has fixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmrt.runtime import manifest as m
from mmrt.runtime.devices import cpu
from mmrt.runtime.stages.autoregress import _limit, _Loop

STAGE = m.Autoregress(graphs=("step",), caches={"key": "new_key"}, limit=200, prompt=(0,), pad=0, ends=(1,), options={})


class Engine:
    """Notes how long the caches are that it is bound to; its logits say how many tokens came before."""

    graph = "step"

    def __init__(self, capacity: int | str, sizes: Mapping[str, int] = MappingProxyType({})) -> None:
        self.sizes = sizes
        cache = m.Array(dtype="float32", shape=("rows", 1, capacity, 2))
        tokens = m.Array(dtype="int64", shape=("rows", "sequence"))
        self.inputs = {"tokens": tokens, "positions": m.Array(dtype="int64", shape=("rows",)), "key": cache}
        self.outputs = {"logits": m.Array(dtype="float32", shape=("rows", 8)), "new_key": cache}
        self.lengths: list[int] = []

    def bind(
        self, arrays: Mapping[str, Any], into: Mapping[str, Any], device: Any, last: Any
    ) -> tuple[Callable[[], None], dict[str, Any]]:
        self.lengths.append(arrays["key"].shape[2])
        logits = np.zeros((len(arrays["tokens"]), 8), np.float32)

        def call() -> None:
            logits[:] = arrays["positions"][:, None]

        return call, {"logits": logits, **into}


def loop(engine: Engine, prompt: int, new: int) -> _Loop:
    run: Any = SimpleNamespace(spread=lambda *_: {}, device=cpu, marks=[])
    return _Loop(STAGE, {"step": engine}, run, [np.zeros(prompt, np.int64)] * 2, copies=1, each=1, new=new)


@pytest.mark.parametrize(
    ("capacity", "new", "lengths"),
    [
        ("capacity", 1, [32, 32]),
        ("capacity", 13, [32, 32]),
        ("capacity", 14, [64, 64]),
        ("capacity", 170, [128, 128, 256]),  # so many may come, but most texts end before
        (64, 31, [64, 64]),
    ],
)
def test_caches_have_room_for_the_first_tokens_or_the_length_that_an_engine_fixed(
    capacity: int | str, new: int, lengths: list[int]
) -> None:
    engine = Engine(capacity)
    running = loop(engine, prompt=20, new=new)
    running.prefill()
    for before in range(19, 19 + new):
        assert running.step([0, 0]) is None
        assert (running.logits() == before).all()
    assert engine.lengths == lengths


def test_a_length_that_an_engine_is_for_is_the_first_and_not_the_last() -> None:
    engine = Engine("capacity", {"capacity": 64})
    running = loop(engine, prompt=20, new=60)
    running.prefill()
    for _ in range(60):
        running.step([0, 0])
    assert engine.lengths == [128, 128]
    assert _limit(STAGE, {"step": engine}) == 200  # type: ignore[dict-item]
    few = loop(engine, prompt=20, new=10)
    few.prefill()
    assert engine.lengths[2:] == [64]


@pytest.mark.parametrize(("capacity", "limit"), [("capacity", 200), (64, 64), (512, 200)])
def test_the_limit_is_the_models_and_the_engines(capacity: int | str, limit: int) -> None:
    assert _limit(STAGE, {"step": Engine(capacity)}) == limit  # type: ignore[dict-item]
