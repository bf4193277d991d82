"""Numbers that become arrays, one for each result, and pictures of a size that the graph itself says."""

from __future__ import annotations

import json
from typing import Any

import bundles
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import mmrt
from mmrt.runtime.manifest_file import decode
from mmrt.runtime.pipeline import Pipeline

SIDE = 8
PICTURE = np.arange(SIDE * SIDE * 3, dtype=np.uint8).reshape(SIDE, SIDE, 3)


def graph() -> onnx.ModelProto:
    """pixels = picture * strength + shift, between 0 and 255."""
    return bundles.model(
        [
            helper.make_node("Cast", ["picture"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["strength", "axes"], ["factor"]),
            helper.make_node("Cast", ["shift"], ["shift_float"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["shift_float", "axes"], ["summand"]),
            helper.make_node("Mul", ["floats", "factor"], ["scaled"]),
            helper.make_node("Add", ["scaled", "summand"], ["shifted"]),
            helper.make_node("Clip", ["shifted", "zero", "most"], ["clipped"]),
            helper.make_node("Cast", ["clipped"], ["pixels"], to=TensorProto.UINT8),
        ],
        {
            "picture": (TensorProto.UINT8, ["rows", SIDE, SIDE, 3]),
            "strength": (TensorProto.FLOAT, ["rows"]),
            "shift": (TensorProto.INT64, ["rows"]),
        },
        {"pixels": (TensorProto.UINT8, ["rows", SIDE, SIDE, 3])},
        {"axes": np.array([1, 2, 3]), "zero": np.float32(0), "most": np.float32(255)},
    )


def manifest() -> dict[str, Any]:
    """The manifest, without its files."""
    pixels = {"dtype": "uint8", "shape": ["rows", SIDE, SIDE, 3]}
    return {
        "format": 1,
        "task": "image-to-image",
        "name": "numbers",
        "source": {"family": "handmade", "checkpoint": {}, "versions": {}},
        "inputs": {
            "image": {
                "kind": "image",
                "array": "picture",
                "fit": {"width": SIDE, "height": SIDE, "resample": "nearest"},
                "required": True,
            },
            "strength": {"kind": "float", "default": 1.0, "min": 0.0, "max": 2.0, "array": "strength"},
            "shift": {"kind": "int", "default": 0, "min": -9, "max": 9, "array": "shift"},
        },
        "outputs": {"image": {"kind": "image", "from": "pixels"}},
        "graphs": {
            "change": {
                "inputs": {
                    "picture": pixels,
                    "strength": {"dtype": "float32", "shape": ["rows"]},
                    "shift": {"dtype": "int64", "shape": ["rows"]},
                },
                "outputs": {"pixels": pixels},
                "variants": [bundles.variant("change")],
            }
        },
        "program": [{"stage": "once", "graphs": ["change"]}],
    }


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A bundle of that graph, loaded."""
    folder = tmp_path_factory.mktemp("numbers") / "numbers.mmrt"
    (folder / "graphs").mkdir(parents=True)
    onnx.save_model(graph(), folder / "graphs/change.fp32.onnx")
    (folder / "manifest.json").write_text(json.dumps(manifest()))
    bundles.relist(folder)
    return mmrt.load(folder, threads=1)


def changed(strength: float, shift: int) -> np.ndarray:
    """The same in NumPy."""
    made = np.clip(PICTURE.astype(np.float32) * np.float32(strength) + shift, 0, 255)
    return made.astype(np.uint8)


def test_each_result_may_have_its_own(pipeline: Pipeline) -> None:
    found = pipeline.generate(image=PICTURE, strength=[0.5, 1.0, 2.0], shift=3)
    for picture, strength in zip(found.images, (0.5, 1.0, 2.0), strict=True):
        np.testing.assert_array_equal(picture, changed(strength, 3))
    assert [each["request"]["strength"] for each in found.provenance] == [0.5, 1.0, 2.0]
    assert [each["request"]["shift"] for each in found.provenance] == [3, 3, 3]


def test_without_they_have_their_defaults(pipeline: Pipeline) -> None:
    np.testing.assert_array_equal(pipeline.generate(image=PICTURE).image, PICTURE)


def test_pictures_and_numbers_go_together(pipeline: Pipeline) -> None:
    found = pipeline.generate(image=[PICTURE, 255 - PICTURE], shift=(-9, 9), strength=1)
    np.testing.assert_array_equal(found.images[0], changed(1, -9))
    np.testing.assert_array_equal(found.images[1], np.clip(264 - PICTURE.astype(int), 0, 255))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strength": [1.0, 2.5]}, "strength is 2.5, wanted a number from 0 to 2"),
        ({"strength": []}, "strength is an empty list, wanted at least one number"),
        ({"shift": [1, 2.0]}, "shift is 2.0, wanted a whole number from -9 to 9"),
        ({"shift": [1, 2], "strength": [1, 1, 2]}, "shift has 2 values, wanted 1 or 3"),
        ({"image": None, "strength": 1.0}, "image is missing: give a picture"),
    ],
)
def test_others_are_refused(pipeline: Pipeline, given: dict[str, Any], message: str) -> None:
    with pytest.raises(mmrt.RequestError, match=message):
        pipeline.generate(**({"image": PICTURE} | given))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"array": "picture"}, "'picture' is made twice"),
        ({"array": "other"}, "nothing makes 'strength' for graph 'change'"),
        ({"kind": "int", "default": 1, "min": 0, "max": 2}, r"'strength' is made as int64\(\?\), graph 'change' takes"),
        ({"kind": "int", "default": 1, "min": 0, "max": 2**70}, "manifest.json: "),
    ],
)
def test_a_wrong_manifest_is_refused(pipeline: Pipeline, change: dict[str, Any], message: str) -> None:
    document = json.loads((pipeline.bundle.path / "manifest.json").read_text())
    document["inputs"]["strength"] |= change
    with pytest.raises(mmrt.BundleError, match=message):
        decode(json.dumps(document).encode())
