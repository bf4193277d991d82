"""The CUDA kernels, by the emulator and on a GPU where there is one, against the operations in NumPy.

Sizes are odd, arrays lie anywhere, and whatever may hold NaN and infinity does. Writing beside an array is an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from emulation import COMPILER, Card, Emulator
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrt.runtime import samplers
from mmrt.runtime.devices import cpu, cuda, driver
from mmrt.runtime.devices.choice import choice, refusal
from mmrt.runtime.errors import EngineError
from mmrt.runtime.kernels import launch
from mmrt.runtime.logits import warp
from mmrt.runtime.noise import TorchCuda
from mmrt.runtime.samplers import COLUMNS
from mmrt.runtime.search import Rules, search

LIBRARY = driver._library  # before the tests are told that there is none
OPERATIONS = [
    name for name, each in inspect.getmembers(launch, inspect.isfunction) if each.__module__ == launch.__name__
]
FLOATS = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 65504, 65520, 3e38, -3e38, 1e-40, 6e-8, 2e-8, 1 + 2**-11])
GUARD = 64
seeds = st.integers(0, 2**63)
many = settings(max_examples=200, deadline=None)


@pytest.fixture(scope="module", params=["emulator", pytest.param("hardware", marks=pytest.mark.gpu)])
def emulator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator | Card]:
    """What carries out launches on NumPy arrays."""
    if request.param == "emulator":
        if COMPILER is None:
            pytest.skip("needs g++, which compiles the kernels' source here")
        yield Emulator(tmp_path_factory.mktemp("kernels"))
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_library", LIBRARY)
        try:
            yield Card(cuda.gpu(0))
        except EngineError as error:
            pytest.skip(str(error))


class Memory:
    """Copies of arrays at any place that their dtype allows, with bytes around them that nobody may touch."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._guarded: list[tuple[np.ndarray, int, int]] = []
        self.aligned = rng.random() < 0.5

    def __call__(self, array: np.ndarray) -> np.ndarray:
        whole = np.full(array.nbytes + 3 * GUARD, 0xA5, np.uint8)
        start = GUARD + -whole.ctypes.data % 16
        if not self.aligned:
            start += int(self._rng.integers(0, 16 // min(array.itemsize, 16))) * array.itemsize
        self._guarded.append((whole, start, array.nbytes))
        copied = whole[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        copied[...] = array
        return copied

    def check(self) -> None:
        for whole, start, size in self._guarded:
            assert (whole[:start] == 0xA5).all()
            assert (whole[start + size :] == 0xA5).all()


def numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """Normal ones; in half of the calls some that are special."""
    found = rng.normal(0, 2, shape).astype(np.float32)
    if rng.random() < 0.5:
        special = rng.random(shape) < 0.2
        found[special] = rng.choice(SPECIAL, special.sum())
    with np.errstate(all="ignore"):
        return found.astype(dtype)


def shape_of(rng: np.random.Generator, most: int) -> tuple[int, ...]:
    """One to three dimensions, with a size that 4 divides in half of the calls."""
    sizes = rng.integers(1, round(most ** (1 / 3)) + 1, rng.integers(1, 4))
    return (*map(int, sizes[:-1]), int(sizes[-1]) * (4 if rng.random() < 0.5 else 1))


def both(operation: str, emulator: Emulator | Card, rng: np.random.Generator, **arguments: Any) -> tuple[Any, Any]:
    """The arguments as NumPy and as the kernel leave them."""
    memory = Memory(rng)
    theirs = {name: each.copy() if isinstance(each, np.ndarray) else each for name, each in arguments.items()}
    ours = {name: memory(each) if isinstance(each, np.ndarray) else each for name, each in arguments.items()}
    with np.errstate(all="ignore"):
        getattr(cpu, operation)(**theirs)
    emulator(getattr(launch, operation)(**ours), int(rng.integers(2**32)))
    memory.check()
    return theirs, ours


def assert_same(wanted: dict[str, Any], found: dict[str, Any], loose: float = 0.0) -> None:
    """Equal, NaN to NaN; float32 up to `loose`, and what is made of it up to a rounding more."""
    for name, array in wanted.items():
        if not isinstance(array, np.ndarray):
            continue
        a, b = (each.astype(np.float64) if each.dtype.kind in "fV" else each for each in (array, found[name]))
        if loose:
            step = {2: 1e-2 if array.dtype == ml_dtypes.bfloat16 else 1e-3}.get(array.itemsize, 0.0)
            np.testing.assert_allclose(b, a, rtol=loose + step, atol=loose, err_msg=name)
        else:
            np.testing.assert_array_equal(b, a, name)


def table_of(rng: np.random.Generator, rows: int, depth: int) -> np.ndarray:
    """A sampler's table of any numbers, in which some are 0."""
    table = rng.normal(0, 1, (rows + 1, len(COLUMNS) + depth)).astype(np.float32)
    table[rng.random(table.shape) < 0.3] = 0
    for row in range(rows):
        table[row, len(COLUMNS) + row + 1 :] = 0  # there is no history yet
    drawn = np.cumsum(table[:, COLUMNS.index("s")] != 0)
    table[:, COLUMNS.index("draws")] = drawn - (table[:, COLUMNS.index("s")] != 0)
    return table


def test_every_operation_has_a_twin_of_the_same_arguments() -> None:
    operations = [name for name in OPERATIONS if not name.startswith("_")]
    assert len(operations) == 8
    for name in operations:
        if name != "take_rows":  # on the CPU it allocates
            ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (launch, cpu))
            assert list(ours) == list(theirs), name


# ---------------------------------------------------------------- diffuse


def step_arguments(rng: np.random.Generator, dtypes: tuple[Any, Any], copies: int, special: bool) -> dict[str, Any]:
    batch, depth, rows = (int(rng.integers(1, high)) for high in (4, 5, 5))
    shape = (batch, *shape_of(rng, 500))
    values = numbers if special else lambda rng, shape, dtype=np.float32: rng.normal(0, 2, shape).astype(dtype)
    return {
        "prediction": values(rng, (copies * batch, *shape[1:]), dtypes[0]),
        "latents": values(rng, shape),
        "history": values(rng, (depth, *shape)),
        "model_input": np.zeros((copies * batch, *shape[1:]), dtypes[1]),
        "timestep": np.zeros(copies * batch, np.float32),
        "table": table_of(rng, rows, depth),
        "step": np.array([rng.integers(-1, rows), 0], np.int32),
        "noise": values(rng, shape),
        "denoised": np.zeros(shape, np.float32) if rng.random() < 0.5 else None,
    }


@given(seed=seeds, dtypes=st.sampled_from(list(product(FLOATS, FLOATS))), copies=st.integers(1, 2))
@many
def test_guide_and_step(seed: int, dtypes: tuple[Any, Any], copies: int, emulator: Emulator | Card) -> None:
    """Every bit, as the arithmetic is the same, operation by operation."""
    rng = np.random.default_rng(seed)
    arguments = step_arguments(rng, dtypes, copies, special=True)
    if not arguments["table"][:, COLUMNS.index("s")].any():
        arguments["noise"] = None
    wanted, found = both("guide_and_step", emulator, rng, **arguments)
    if len(found["history"]) == 1:
        del wanted["history"]
    assert_same(wanted, found)


@given(seed=seeds, dtypes=st.sampled_from(list(product(FLOATS, FLOATS))))
@many
def test_guide_and_step_with_rescale(seed: int, dtypes: tuple[Any, Any], emulator: Emulator | Card) -> None:
    """Up to the order in which a standard deviation's terms are added up."""
    rng = np.random.default_rng(seed)
    arguments = step_arguments(rng, dtypes, 2, special=False)
    arguments["factor"] = np.zeros(len(arguments["latents"]), np.float32)
    wanted, found = both("guide_and_step", emulator, rng, **arguments)
    if len(found["history"]) == 1:
        del wanted["history"]
    if arguments["latents"][0].size == 1:  # has no standard deviation
        assert arguments["step"][0] < 0 or np.isnan(found["factor"]).all()
        return
    assert_same(wanted, found, loose=1e-4)


@pytest.mark.parametrize("kind", ["ddim", "pndm", "euler_ancestral", "dpmpp_2m_sde", "unipc", "lms"])
def test_one_launch_is_replayed_for_a_whole_table(kind: Any, emulator: Emulator | Card) -> None:
    """What a CUDA graph does: the same launch on the same arrays, for every row."""
    rng = np.random.default_rng(7)
    schedule = samplers.Schedule(
        train_steps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction="epsilon"
    )
    found = samplers.table(schedule, samplers.Sampler(kind=kind), 7)
    table = found.coefficients(guidance=5.0)
    shape, depth = (2, 4, 5, 5), len(found.rows[0].b)
    memory = Memory(rng)
    ours = {
        "prediction": memory(np.zeros((4, 4, 5, 5), np.float16)),
        "latents": memory(rng.normal(0, 1, shape).astype(np.float32)),
        "history": memory(np.full((depth, *shape), np.nan, np.float32)),
        "model_input": memory(np.zeros((4, 4, 5, 5), np.float16)),
        "timestep": memory(np.zeros(4, np.float32)),
        "table": memory(table),
        "step": memory(np.array([-1, 0], np.int32)),
        "noise": memory(np.zeros(shape, np.float32)),
    }
    theirs = {name: array.copy() for name, array in ours.items()}
    seeds = memory(np.array([3, 2**63 + 4], np.uint64))
    drawing = seeds, memory(np.array([2, 9], np.uint32)), 108 * 2048
    noise = launch.normal(ours["noise"], *drawing, ours["table"], ours["step"])
    step = launch.guide_and_step(**ours)
    for row in range(-1, len(found.rows)):
        for arrays in (ours, theirs):
            arrays["prediction"][:] = np.sin(arrays["model_input"].astype(np.float32) + arrays["timestep"][0])
        emulator([*noise, *step], row + 1)
        cpu.normal(theirs["noise"], *drawing, theirs["table"], theirs["step"])
        cpu.guide_and_step(**theirs)
        assert_same({name: theirs[name] for name in ("latents", "model_input", "timestep", "step")}, ours)
    assert np.isfinite(ours["latents"]).all()
    memory.check()


@given(seed=seeds, pictures=st.integers(1, 3), threads=st.sampled_from([256, 300, 512, 108 * 2048]))
@many
def test_normal(seed: int, pictures: int, threads: int, emulator: Emulator | Card) -> None:
    """The integers are torch's and the floats those of noise.py, every bit."""
    rng = np.random.default_rng(seed)
    arguments: dict[str, Any] = {
        "out": np.zeros((pictures, *shape_of(rng, 4000)), np.float32),
        "seeds": rng.integers(0, 2**64, pictures, np.uint64),
        "offsets": rng.integers(0, 2**31, pictures).astype(np.uint32),
        "max_threads": threads,
    }
    if rng.random() < 0.5:
        table = table_of(rng, 4, 1)
        arguments |= {"table": table, "step": np.array([rng.integers(-1, 4), 0], np.int32)}
    assert_same(*both("normal", emulator, rng, **arguments))


def test_normal_goes_on_where_the_generator_was(emulator: Emulator | Card) -> None:
    source = TorchCuda(11, 512)
    source.normal((4, 9, 9))
    out, offset = np.zeros((1, 3, 700), np.float32), np.array([source.offset], np.uint32)
    emulator(launch.normal(out, np.array([11], np.uint64), offset, 512))
    np.testing.assert_array_equal(out[0], source.normal((3, 700)))


@given(seed=seeds, dtype=st.sampled_from(FLOATS), copies=st.integers(1, 2))
@many
def test_blend(seed: int, dtype: Any, copies: int, emulator: Emulator | Card) -> None:
    rng = np.random.default_rng(seed)
    batch, channels, *rest = (int(rng.integers(1, 4)), int(rng.integers(1, 5)), *shape_of(rng, 200))
    shape = (batch, channels, *rest)
    arguments = {
        "latents": numbers(rng, shape),
        "mask": rng.choice([0, 1, 0.25, 0.7], (batch, 1, *rest)).astype(np.float32),
        "known": numbers(rng, shape),
        "noise": numbers(rng, shape),
        "model_input": np.zeros((copies * batch, channels, *rest), dtype),
        "table": table_of(rng, 4, 2),
        "step": np.array([rng.integers(0, 5), 0], np.int32),
    }
    assert_same(*both("blend", emulator, rng, **arguments))


# ---------------------------------------------------------------- autoregress


def choice_arguments(rng: np.random.Generator, dtype: Any, copies: int) -> dict[str, Any]:
    """Logits with equals, rules of any strength, and rows of which some ended."""
    vocabulary, rows = int(rng.choice([1, 2, 31, 50, 333, 1500])), int(rng.integers(1, 4))
    logits = rng.normal(0, 3, (copies * rows, vocabulary))
    if rng.random() < 0.5:
        logits = np.round(logits * 2) / 2
    if rng.random() < 0.5:
        logits[rng.random(logits.shape) < 0.3] = -np.inf
    if rng.random() < 0.2:
        logits = numbers(rng, logits.shape)
    rules = Rules(
        max_new_tokens=4,
        ends=tuple(rng.integers(0, vocabulary, 2).tolist()),
        pad=5,
        min_new_tokens=int(rng.integers(0, 3)),
        temperature=float(rng.choice([0, 1, 0.3, 1.7, 1e-3])),
        top_k=int(rng.choice([0, 1, 3, 50, 400])),
        top_p=float(rng.choice([1, 0, 0.5, 0.9, rng.random()])),
        min_p=float(rng.choice([0, 0, 1, 0.05, rng.random()])),
        repetition_penalty=float(rng.choice([1, 1.3, 0.8])),
        forced=tuple(rng.integers(0, vocabulary, rng.integers(0, 2)).tolist()),
        forced_end=int(rng.integers(0, vocabulary)) if rng.random() < 0.2 else None,
        suppressed=tuple(rng.integers(0, vocabulary + 9, rng.integers(0, 40)).tolist()),
        begin_suppressed=tuple(rng.integers(0, vocabulary, 2).tolist()),
    )
    prompts = [rng.integers(0, vocabulary + 3, rng.integers(1, 9)) for _ in range(rows)]
    uniforms = rng.choice([0, 0.5, 1 - 2**-53, *rng.random(5)], (rows, int(rng.integers(1, 5))))
    arguments: dict[str, Any] = choice(rules, prompts, uniforms, vocabulary, guidance=float(rng.choice([1, 3.5])))
    fresh = int(rng.integers(0, 4))
    arguments["state"][0] = fresh
    arguments["history"][:, -4:][:, :fresh] = rng.integers(0, vocabulary, (rows, fresh))
    arguments["ended"][:] = rng.random(rows) < 0.2
    if rng.random() < 0.3:  # a range, as of the tokens of pictures
        span = [int(rng.integers(-5, vocabulary)), int(rng.integers(0, vocabulary + 5)), 0, 9]
        arguments["forbidden"] = np.vstack([arguments["forbidden"], np.array(span, np.int32)])
    with np.errstate(all="ignore"):
        arguments["logits"] = logits.astype(dtype)
    tokens = np.zeros((copies * rows, 1), np.int64)
    return arguments | {"tokens": tokens, "positions": rng.integers(0, 99, copies * rows)}


def nearly(arguments: dict[str, Any], row: int, token: int) -> bool:
    """Whether a token would be drawn if the uniform or the rules lay a float32's last bits beside."""
    moved = {name: array.copy() for name, array in arguments.items()}
    with np.errstate(all="ignore"):
        cpu.choose_token(**moved)
    heat, count, dropped, share, *_ = arguments["rules"].tolist()
    uniform = arguments["uniforms"][row, arguments["state"][0] % arguments["uniforms"].shape[1]]
    for drop, more in product([-2e-6, 0, 2e-6], repeat=2):
        rules = Rules(
            1,
            temperature=heat,
            top_k=int(count),
            top_p=1 - min(max(dropped + drop, 0), 1) if dropped else 1,
            min_p=min(max(share + more, 0), 1) if share else 0,
        )
        weights = np.exp(warp(moved["scores"][row], rules).astype(np.float64))
        upto = np.cumsum(weights / weights.sum())
        if weights[token] and upto[token] - weights[token] / weights.sum() - 2e-6 <= uniform <= upto[token] + 2e-6:
            return True
    return False


@given(seed=seeds, dtype=st.sampled_from(FLOATS), copies=st.integers(1, 2))
@many
def test_choose_token(seed: int, dtype: Any, copies: int, emulator: Emulator | Card) -> None:
    rng = np.random.default_rng(seed)
    arguments = choice_arguments(rng, dtype, copies)
    wanted, found = both("choose_token", emulator, rng, **arguments)
    for row, token in enumerate(found["tokens"].ravel().tolist()):
        if token != wanted["tokens"].ravel()[row]:
            assert nearly(arguments, row % len(found["scores"]), token)
            return
    del wanted["scores"]
    assert_same(wanted, found)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_search_on_the_device_is_the_search_of_the_host(temperature: float, emulator: Emulator | Card) -> None:
    """Token for token, with all that choice.py translates, by one launch replayed."""
    rng = np.random.default_rng(5)
    rules = Rules(
        12, ends=(3, 9), pad=1, min_new_tokens=4, temperature=temperature, top_k=20, top_p=0.95, min_p=0.01, returned=2,
        repetition_penalty=1.2, forced=(7, 8), forced_end=9, suppressed=(0, 2), begin_suppressed=(4, 3),
    )  # fmt: skip
    vocabulary, prompts = 40, [np.array([5, 6, 39, 44]), np.array([11])]
    uniforms = rng.random((4, 12))
    draws = [iter(row) for row in uniforms.tolist()]
    host = search(rules, prompts, [lambda draw=draw: next(draw) for draw in draws])  # type: ignore[misc]
    arrays = choice(rules, prompts, uniforms, vocabulary)
    arrays |= {"tokens": np.zeros(4, np.int64), "positions": np.zeros(4, np.int64)}
    arrays["logits"] = np.zeros((4, vocabulary), np.float32)
    launches = launch.choose_token(**arrays)
    for number in range(12):
        logits = rng.normal(0, 2, (4, vocabulary)).astype(np.float32)
        logits[:, 3] += number / 3
        arrays["logits"][:] = logits
        emulator(launches, number)
        if not host.done:
            host.advance(logits.copy())
            np.testing.assert_array_equal(arrays["tokens"], host.tokens)
    assert host.done
    for row, completion in enumerate(host.results()):
        np.testing.assert_array_equal(arrays["history"][row, 4:][: len(completion.tokens)], completion.tokens)
    assert arrays["state"].tolist() == [12, 0, 4, 1]
    assert arrays["positions"].tolist() == [12] * 4


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size is 3"),
        ({"typical_p": 0.5}, "typical_p is 0.5"),
        ({"beams": 4}, "beams is 4"),
        ({"top_k": 4}, None),
    ],
)
def test_rules_that_the_host_must_follow(rule: dict[str, Any], said: str | None) -> None:
    assert refusal(Rules(9, **rule)) == said


def test_choosing_from_a_large_vocabulary(emulator: Emulator | Card) -> None:
    """One as large as there are, where all sums are long."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (1, 256_206)).astype(np.float32)
    for rules in (Rules(1, temperature=1.0, top_k=50, top_p=0.9), Rules(1, temperature=0.9, top_p=0.95)):
        for uniform in (0.1, 0.9999):
            arrays = choice(rules, [np.array([2])], np.array([[uniform]]), logits.shape[1])
            arrays |= {"logits": logits, "tokens": np.zeros(1, np.int64), "positions": np.zeros(1, np.int64)}
            wanted, found = both("choose_token", emulator, rng, **arrays)
            assert found["tokens"] == wanted["tokens"]


@given(
    seed=seeds,
    dtype=st.sampled_from([*FLOATS, np.dtype(np.uint8), np.dtype(np.int64)]),
    group=st.integers(1, 9),
    groups=st.integers(1, 3),
)
@many
def test_reorder_rows(seed: int, dtype: Any, group: int, groups: int, emulator: Emulator | Card) -> None:
    rng = np.random.default_rng(seed)
    heads, capacity, width = (int(rng.integers(1, high)) for high in (4, 20, 33))
    memory = Memory(rng)
    memory.aligned = True  # as a device's own arrays are
    array = rng.integers(0, 256, (group * groups, heads, capacity, width * dtype.itemsize)).astype(np.uint8).view(dtype)
    rows = (rng.integers(0, group, (groups, group)) + group * np.arange(groups)[:, None]).ravel().astype(np.int32)
    length = int(rng.integers(0, capacity + 1))
    wanted, found = array.copy(), memory(array)
    cpu.reorder_rows(wanted, rows, group, length)
    emulator(launch.reorder_rows(found, rows, group, length), seed)
    np.testing.assert_array_equal(found.view(np.uint8), wanted.view(np.uint8))
    memory.check()


@given(seed=seeds, dtype=st.sampled_from([*FLOATS, np.dtype(np.bool_), np.dtype(np.int64)]))
@many
def test_take_rows(seed: int, dtype: Any, emulator: Emulator | Card) -> None:
    rng = np.random.default_rng(seed)
    memory = Memory(rng)
    memory.aligned = True
    array = memory(rng.normal(0, 9, (int(rng.integers(1, 5)), *shape_of(rng, 600))).astype(dtype))
    rows = rng.integers(0, len(array), rng.integers(1, 7))
    out = memory(np.zeros((len(rows), *array.shape[1:]), dtype))
    emulator(launch.take_rows(out, array, rows.astype(np.int32)), seed)
    np.testing.assert_array_equal(out.view(np.uint8), cpu.take_rows(array, rows).view(np.uint8))
    memory.check()


# ---------------------------------------------------------------- pictures


@given(seed=seeds, dtype=st.sampled_from(FLOATS))
@many
def test_pixels(seed: int, dtype: Any, emulator: Emulator | Card) -> None:
    rng = np.random.default_rng(seed)
    batch, channels, height, width = (int(rng.integers(1, high)) for high in (4, 5, 12, 12))
    floats = numbers(rng, (batch, channels, height, width), dtype)
    pixels = rng.integers(0, 256, (batch, height, width, channels)).astype(np.uint8)
    assert_same(*both("to_uint8", emulator, rng, out=np.zeros_like(pixels), pixels=floats))
    wanted, found = both("from_uint8", emulator, rng, out=np.zeros_like(floats), pixels=pixels)
    assert_same(wanted, found)
    back = both("to_uint8", emulator, rng, out=np.zeros_like(pixels), pixels=found["out"])[1]["out"]
    if dtype != ml_dtypes.bfloat16:  # whose steps are wider than a level
        np.testing.assert_array_equal(back, pixels)


# ---------------------------------------------------------------- what is refused, and rounding


def test_wrong_arrays_are_named() -> None:
    arguments = step_arguments(np.random.default_rng(0), (np.float32, np.float16), 2, special=False)
    with pytest.raises(TypeError, match="guide_and_step: prediction is int64, wanted float32, float16, bfloat16"):
        launch.guide_and_step(**arguments | {"prediction": arguments["prediction"].astype(np.int64)})
    with pytest.raises(ValueError, match=r"guide_and_step: timestep is \(1,\), wanted \(\d\)"):
        launch.guide_and_step(**arguments | {"timestep": np.zeros(1, np.float32)})
    with pytest.raises(ValueError, match=r"guide_and_step: step is \(3,\)"):
        launch.guide_and_step(**arguments | {"step": np.zeros(3, np.int32)})
    with pytest.raises(ValueError, match="groups of 4"):
        launch.reorder_rows(np.zeros((6, 1, 1, 1), np.float32), np.zeros(6, np.int32), 4, 1)
    with pytest.raises(ValueError, match="wanted at most 96"):
        launch.reorder_rows(np.zeros((97, 1, 1, 8), np.float16), np.zeros(97, np.int32), 97, 1)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_halves_are_rounded_as_ieee_754_says(dtype: Any, emulator: Emulator | Card) -> None:
    """All numbers of 16 bits, the middles between two of them, and what lies just beside."""
    every = np.arange(2**16, dtype=np.uint16).view(dtype)
    with np.errstate(all="ignore"):
        exact = every.astype(np.float32)
        middles = ((exact[:-1].astype(np.float64) + exact[1:]) / 2).astype(np.float32)
        values = np.concatenate([exact, middles, np.nextafter(middles, np.inf), np.nextafter(middles, -np.inf)])
        values = values[: len(values) // 4 * 4]
        wanted = values.astype(dtype)
    table = np.zeros((2, len(COLUMNS) + 1), np.float32)
    table[0, COLUMNS.index("scale")] = 1
    found = np.zeros((1, len(values)), dtype)
    emulator(
        launch.guide_and_step(
            np.zeros_like(found), values[None].copy(), np.zeros((1, 1, len(values)), np.float32), found,
            np.zeros(1, np.float32), table, np.array([-1, 0], np.int32),
        )
    )  # fmt: skip
    np.testing.assert_array_equal(found[0].astype(np.float32), wanted.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(found[0])[~np.isnan(values)], np.signbit(values)[~np.isnan(values)])
