"""Pictures of any size, one call or in tiles: a graph that doubles them, whose answer NumPy knows."""

from __future__ import annotations

import json
from typing import Any

import bundles
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import mmrt
from mmrt.runtime.events import Step
from mmrt.runtime.manifest_file import decode
from mmrt.runtime.pipeline import Pipeline


def graph() -> onnx.ModelProto:
    """pixels = picture, every pixel as a square of four."""
    return bundles.model(
        [helper.make_node("Resize", ["picture", "", "scales"], ["pixels"], mode="nearest", nearest_mode="floor",
                          coordinate_transformation_mode="asymmetric")],
        {"picture": (TensorProto.UINT8, ["rows", "height", "width", 3])},
        {"pixels": (TensorProto.UINT8, ["rows", "tall", "wide", 3])},
        {"scales": np.array([1, 2, 2, 1], np.float32)},
    )  # fmt: skip


def manifest() -> dict[str, Any]:
    """The manifest, without its files."""
    tiles = {"source": "picture", "made": "pixels", "size": "tile", "overlap": 4, "multiple": 2, "scale": 2}
    return {
        "format": 1,
        "task": "image-to-image",
        "name": "double",
        "source": {"family": "handmade", "checkpoint": {}, "versions": {}},
        "inputs": {
            "image": {"kind": "image", "array": "picture", "required": True},
            "tile": {"kind": "int", "default": 32, "min": 6, "max": 64},
        },
        "outputs": {"image": {"kind": "image", "from": "pixels"}},
        "graphs": {
            "double": {
                "inputs": {"picture": {"dtype": "uint8", "shape": ["rows", "height", "width", 3]}},
                "outputs": {"pixels": {"dtype": "uint8", "shape": ["rows", "tall", "wide", 3]}},
                "variants": [bundles.variant("double")],
            }
        },
        "program": [{"stage": "once", "graphs": ["double"], "tiles": tiles}],
    }


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("tiles") / "double.mmrt"
    (folder / "graphs").mkdir(parents=True)
    onnx.save_model(graph(), folder / "graphs/double.fp32.onnx")
    (folder / "manifest.json").write_text(json.dumps(manifest()))
    bundles.relist(folder)
    return mmrt.load(folder, threads=1)


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("width", "height"), [(32, 32), (1, 1), (33, 32), (100, 7), (70, 65)])
@pytest.mark.parametrize("tile", [6, 32, 64])
def test_any_size(pipeline: Pipeline, width: int, height: int, tile: int) -> None:
    given = picture(width, height)
    events = list(pipeline.stream(image=given, tile=tile))
    found = np.asarray(events[-1].result.image)  # type: ignore[union-attr]
    np.testing.assert_array_equal(found, given.repeat(2, axis=0).repeat(2, axis=1))
    steps = [event for event in events if isinstance(event, Step)]
    assert bool(steps) == (max(width, height) > tile)
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    assert {step.total for step in steps} <= {len(steps)}


def test_several(pipeline: Pipeline) -> None:
    given = [picture(40, 9, seed) for seed in (1, 2)]
    found = pipeline.generate(image=[*given, given[0]])
    for made, each in zip(found.images, [*given, given[0]], strict=True):
        np.testing.assert_array_equal(made, each.repeat(2, axis=0).repeat(2, axis=1))
    with pytest.raises(mmrt.RequestError, match="image has pictures of 40x9 and 9x40, wanted one size"):
        pipeline.generate(image=[picture(40, 9), picture(9, 40)])


def test_what_cannot_fit(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmrt.runtime.request._memory", lambda: 100_000)
    with pytest.raises(mmrt.RequestError, match="need at least"):
        pipeline.generate(image=picture(100, 100))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "pictures"}, "'pictures' is none of the graph's arrays"),
        ({"made": "picture"}, "'picture' is none of the graph's arrays"),
        ({"size": "image"}, "'image' is not an input of kind int"),
        ({"overlap": 5}, "'tile' can be 6, which leaves tiles of overlap 5 no way to go on"),
        ({"scale": 65}, "Expected `int` <= 64"),
        ({"multiple": 0}, "Expected `int` >= 1"),
        ({"more": 1}, "unknown field `more`"),
    ],
)
def test_a_wrong_manifest_is_refused(changes: dict[str, Any], message: str) -> None:
    document = manifest() | {"files": {"graphs/double.fp32.onnx": {"bytes": 1, "sha256": "0" * 64}}}
    document["program"][0]["tiles"] |= changes
    with pytest.raises(mmrt.BundleError, match=message):
        decode(json.dumps(document).encode())


def test_a_graph_that_makes_another_size(pipeline: Pipeline, tmp_path: Any) -> None:
    bundle = bundles.copy(pipeline.bundle.path, tmp_path)
    with bundles.edited(bundle) as document:
        document["program"][0]["tiles"]["scale"] = 3
    with pytest.raises(mmrt.BundleError, match=r"pixels is \(1, 8, 8, 3\) for picture \(1, 4, 4, 3\), wanted"):
        mmrt.load(bundle, threads=1).generate(image=picture(4, 4))
