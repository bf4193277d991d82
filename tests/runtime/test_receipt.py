"""Receipts: the golden values are met by the bundle as it is, and missed by one that computes something else."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import bundles
import numpy as np
import pytest

import mmrt
from mmrt.runtime.pipeline import Pipeline
from mmrt.runtime.receipt import TOLERANCES, Check, compare, compare_beams, compare_tokens, replay

ALL = [
    "text_encoder 0: context",
    "denoiser 0: prediction",
    "decoder 0: pixels",
    "image_encoder 0: image_latents",
    "heart: latents",
    "heart: pixels",
]


def failed(bundle: Path) -> list[str]:
    return [check.what for check in replay(mmrt.load(bundle)) if not check.passed]


def test_every_graph_and_run_of_a_good_bundle_passes(pipeline: Pipeline) -> None:
    checks = list(replay(pipeline))
    assert [check.what for check in checks] == ALL
    assert all(check.passed for check in checks)
    assert all(check.relative_error is None or check.relative_error < 1e-5 for check in checks)


@pytest.mark.parametrize("what", ALL)
@pytest.mark.parametrize("change", ["noise", "nan", "shape", "dtype"])
def test_a_golden_value_that_is_not_met_is_named(what: str, change: str, damaged: Path) -> None:
    kind, name = what.split(": ")
    key = f"run/{kind}/out/{name}" if kind == "heart" else f"graph/{kind.replace(' ', '/')}/out/{name}"

    def perturb(arrays: dict[str, np.ndarray]) -> None:
        wanted = arrays[key]
        if change == "nan":
            arrays[key] = np.full_like(wanted, np.nan) if wanted.dtype != np.uint8 else 255 - wanted
        elif change == "shape":
            arrays[key] = wanted[..., :1]
        elif change == "dtype":
            arrays[key] = wanted.astype(np.float64)
        elif wanted.dtype == np.uint8:
            arrays[key] = wanted ^ 8
        else:
            arrays[key] = wanted + 0.01 * np.abs(wanted).max()

    bundles.regolden(damaged, perturb)
    assert failed(damaged) == [what]


@pytest.mark.parametrize(
    ("graph", "weights", "rows"),
    [
        ("text_encoder", "table", ["text_encoder 0: context", "heart: latents"]),
        ("decoder", "to_rgb", ["decoder 0: pixels", "heart: pixels"]),
        ("image_encoder", "from_rgb", ["image_encoder 0: image_latents"]),
    ],
)
def test_other_weights_are_found_where_they_are(graph: str, weights: str, rows: list[str], damaged: Path) -> None:
    def change(model: bundles.onnx.ModelProto) -> None:
        tensor = next(each for each in model.graph.initializer if each.name == weights)
        values = bundles.numpy_helper.to_array(tensor)
        tensor.CopyFrom(bundles.numpy_helper.from_array((values * 1.2).astype(values.dtype), weights))

    bundles.regraph(damaged, graph, change)
    found = failed(damaged)
    assert set(rows) <= set(found)
    assert all(what.startswith((graph, "heart")) for what in found)


def test_other_weights_beside_the_graph_are_found(damaged: Path) -> None:
    name = "graphs/denoiser.fp32.onnx.data"
    values = np.frombuffer((damaged / name).read_bytes(), np.float32)
    bundles.rewrite(damaged, name, (values * np.float32(1.05)).tobytes())
    assert "denoiser 0: prediction" in failed(damaged)


def test_a_model_that_gives_nan_fails(damaged: Path) -> None:
    name = "graphs/denoiser.fp32.onnx.data"
    bundles.rewrite(damaged, name, np.full(16, np.nan, np.float32).tobytes())
    assert {"denoiser 0: prediction", "heart: latents"} <= set(failed(damaged))


# ---------------------------------------------------------------- one comparison

ONES = np.ones(1000, np.float32)


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize(("share", "passes"), [(0.9, True), (1.1, False)])
def test_the_tolerance_of_floats_is_the_precisions(precision: str, share: float, passes: bool) -> None:
    found = compare("x", ONES * np.float32(1 + share * TOLERANCES[precision].relative), ONES, precision)
    assert found.passed is passes
    assert found.relative_error == pytest.approx(share * TOLERANCES[precision].relative, rel=1e-3)
    assert found.cosine == pytest.approx(1)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_fails(wrong: float) -> None:
    found = ONES.copy()
    found[500] = wrong
    assert not compare("x", found, ONES, "int8").passed
    assert not compare("x", ONES, found, "int8").passed
    assert not compare("x", found, found, "int8").passed


def test_pixels_are_compared_by_psnr() -> None:
    wanted = np.full((2, 8, 8, 3), 100, np.uint8)
    equal = compare("x", wanted, wanted, "fp32")
    assert (equal.passed, equal.psnr, equal.max_error) == (True, 100.0, 0.0)
    near = compare("x", wanted + np.uint8(2), wanted, "fp32")
    assert near.passed
    assert near.psnr == pytest.approx(20 * math.log10(255 / 2))
    assert not compare("x", wanted + np.uint8(3), wanted, "fp32").passed


@pytest.mark.parametrize("cast", [lambda a: a.reshape(10, 100), lambda a: a.astype(np.float64), lambda a: a[:0]])
def test_another_shape_or_dtype_fails(cast: Callable[[np.ndarray], np.ndarray]) -> None:
    check = compare("x", cast(ONES), ONES, "int8")
    assert isinstance(check, Check)
    assert (check.passed, check.max_error) == (False, math.inf)


# ---------------------------------------------------------------- tokens in a lower precision

TOKENS = np.array([[5, 6, 7, 2], [8, 9, 2, 0]])
MARGINS = np.array([[1.0, 0.1, 1.0, 1.0], [1.0, 1.0, 0.2, 1.0]], np.float32)


@pytest.mark.parametrize(
    ("found", "margin"),
    [
        ([[5, 6, 7, 2], [8, 9, 2, 0]], None),
        ([[5, 4, 4, 4], [8, 9, 2, 0]], 0.1),  # parts where it was close; what follows does not count
        ([[5, 4, 4, 4, 4], [8, 9, 2, 0, 0]], 0.1),
        ([[5, 4, 2], [8, 9, 2]], 0.1),
        ([[5, 6, 7, 3], [8, 9, 2, 0]], 1.0),
        ([[5, 6, 7, 2], [8, 9, 1, 2]], 0.2),
        ([[5, 4, 4, 4], [8, 9, 1, 2]], 0.2),
        ([[4, 6, 7, 2], [8, 9, 2, 0]], 1.0),
    ],
)
def test_tokens_part_only_where_the_choice_was_close(found: list[list[int]], margin: float | None) -> None:
    check = compare_tokens("x", np.array(found), TOKENS, MARGINS, "fp16")
    assert check.margin == (None if margin is None else pytest.approx(margin))
    assert check.passed is (margin is None or margin <= TOLERANCES["fp16"].margin)


@pytest.mark.parametrize("found", [TOKENS[:1], TOKENS[0], TOKENS.astype(np.int32)])
def test_tokens_of_another_kind_fail(found: np.ndarray) -> None:
    assert not compare_tokens("x", found, TOKENS, MARGINS, "fp16").passed
    assert not compare_beams("x", found, TOKENS, MARGINS[:, 0], MARGINS[:, 0], "fp16").passed


def test_margins_of_another_shape_are_a_damaged_receipt() -> None:
    with pytest.raises(mmrt.BundleError, match=r"margins are \(2, 3\), wanted \(2, 4\)"):
        compare_tokens("x", TOKENS + 1, TOKENS, MARGINS[:, :3], "fp16")


@pytest.mark.parametrize(("end", "passes"), [(0.1, True), (0.2, False), (None, False)])
def test_a_row_may_go_on_where_its_end_was_not_clear(end: float | None, passes: bool) -> None:
    found = np.pad(TOKENS, ((0, 0), (0, 2)))
    found[0, 4] = 7
    ends = np.zeros((2, 0 if end is None else 1), np.float32) + np.float32(end or 0)
    check = compare_tokens("x", found, TOKENS, np.concatenate([MARGINS, ends], axis=1), "fp16")
    assert check.passed is passes


@pytest.mark.parametrize(
    ("parted", "margin"),
    [
        ([(0, 1)], 1.0),
        ([(0, 1), (1, 0)], 1.0),  # chosen in the same step, and both have to be close
        ([(2, 0), (0, 1)], 1.0),
        ([(1, 0), (1, 1)], 0.1),  # the first came a step earlier
        ([(0, 0), (1, 1)], 0.05),
    ],
)
def test_of_codebooks_the_code_that_was_chosen_first_counts(parted: list[tuple[int, int]], margin: float) -> None:
    wanted = np.arange(6).reshape(1, 3, 2)
    margins = np.array([[[0.05, 1.0], [0.1, 1.0], [0.1, 1.0]]], np.float32)
    found = wanted.copy()
    for frame, book in parted:
        found[0, frame, book] += 1
    check = compare_tokens("x", found, wanted, margins, "fp16", delays=(0, 1))
    assert (check.margin, check.passed) == (pytest.approx(margin), margin < 0.12)


@pytest.mark.parametrize(("score", "passes"), [(-2.01, True), (-2.1, False), (np.nan, False)])
def test_beams_may_be_others_that_are_as_likely(score: float, passes: bool) -> None:
    scores, wanted = np.array([-1.0, score], np.float32), np.array([-1.0, -2.0], np.float32)
    assert compare_beams("x", TOKENS + 1, TOKENS, scores, wanted, "fp16").passed is passes
