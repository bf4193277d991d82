"""The ONNX Runtime engine: what it takes, what it gives, and loops over bound arrays."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import bundles
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import mmrt
from mmrt.runtime import manifest
from mmrt.runtime.devices import CPU
from mmrt.runtime.engines import load_onnx
from mmrt.runtime.pipeline import Pipeline

CONTEXT = bundles.encode_ids(bundles.ids("a red heart", "blue car"))


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    latents = np.random.default_rng(1).normal(size=(2, 4, 3, 5)).astype(np.float32)
    return {"latents": latents, "timestep": np.array([1, 2], np.float32), "context": CONTEXT} | changes


def test_run_gives_what_the_graph_computes(pipeline: Pipeline) -> None:
    given = arrays()
    found = pipeline.engines["denoiser"].run(given | {"stranger": np.zeros(3)})
    assert found.keys() == {"prediction"}
    np.testing.assert_allclose(found["prediction"], bundles.denoise(**given), atol=1e-6)


def test_bind_reads_and_writes_in_place(pipeline: Pipeline) -> None:
    given = arrays()
    call, outputs = pipeline.engines["denoiser"].bind(given)
    address = outputs["prediction"].ctypes.data
    for number in range(3):
        given["latents"][:] = number
        given["timestep"][:] = 100 * number
        call()
        assert outputs["prediction"].ctypes.data == address
        np.testing.assert_allclose(outputs["prediction"], bundles.denoise(**given), atol=1e-6)


def test_two_bindings_of_an_engine_do_not_meet(pipeline: Pipeline) -> None:
    first, second = arrays(), arrays(timestep=np.array([900, 800], np.float32))
    call_first, found_first = pipeline.engines["denoiser"].bind(first)
    call_second, found_second = pipeline.engines["denoiser"].bind(second)
    call_first()
    call_second()
    np.testing.assert_allclose(found_first["prediction"], bundles.denoise(**first), atol=1e-6)
    np.testing.assert_allclose(found_second["prediction"], bundles.denoise(**second), atol=1e-6)


def test_a_binding_made_of_the_last_one(pipeline: Pipeline) -> None:
    """What changed is read from its new place, the rest from where it lay; the outputs stay where they fit."""
    engine, given = pipeline.engines["denoiser"], arrays()
    call, outputs = engine.bind(given)
    kept = outputs["prediction"]
    larger = {"latents": np.ones((2, 4, 6, 5), np.float32)}
    for changed in (arrays(timestep=np.array([900, 800], np.float32)), given | larger, given):
        call, outputs = engine.bind(changed, last=call)
        assert (outputs["prediction"] is kept) == (changed["latents"].shape == kept.shape)
        kept = outputs["prediction"]
        for context in (CONTEXT, -CONTEXT):
            changed["context"] = context.copy()
            call, outputs = engine.bind(changed, {"prediction": kept}, last=call)
            call()
            np.testing.assert_allclose(kept, bundles.denoise(**changed), atol=1e-6)
    with pytest.raises(mmrt.RequestError, match="'timestep' is float32"):
        engine.bind(arrays(timestep=np.zeros(3, np.float32)), last=call)


@pytest.mark.parametrize("way", ["run", "bind"])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"latents": np.zeros((2, 4, 3, 5), np.float16)},
            "denoiser: input 'latents' is float16(2, 4, 3, 5), wanted float32",
        ),
        (
            {"latents": np.zeros((2, 4, 3, 5), ">f4")},
            "denoiser: input 'latents' is float32(2, 4, 3, 5), wanted float32",
        ),
        ({"latents": np.zeros((2, 4, 3), np.float32)}, "denoiser: input 'latents' is float32(2, 4, 3), wanted float32"),
        ({"latents": np.zeros((2, 3, 3, 5), np.float32)}, "wanted float32(batch, 4, height, width)"),
        ({"timestep": np.zeros(3, np.float32)}, "'timestep' is float32(3,), wanted float32(batch) with batch 2"),
    ],
)
def test_what_does_not_fit_is_said_at_the_border(way: str, changes: dict, says: str, pipeline: Pipeline) -> None:
    with pytest.raises(mmrt.RequestError) as caught:
        getattr(pipeline.engines["denoiser"], way)(arrays(**changes))
    assert says in str(caught.value)


def test_a_missing_input_is_said_at_the_border(pipeline: Pipeline) -> None:
    with pytest.raises(mmrt.RequestError, match=r"denoiser: input 'context' is missing, wanted float32\(batch, 8, 4\)"):
        pipeline.engines["denoiser"].run({name: array for name, array in arrays().items() if name != "context"})


def test_half_precision_does_without_an_optimizer_that_crashes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Transpose", ["half"], ["turned"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["turned", "weights"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
    ]
    weights = {"weights": np.eye(32, dtype=np.float16)[::-1].copy()}
    shapes = {"x": (TensorProto.FLOAT, ["rows", 8, 32])}, {"y": (TensorProto.FLOAT, [8, "rows", 32])}
    onnx.save(bundles.model(nodes, *shapes, weights), tmp_path / "g.onnx")
    spec = manifest.Graph(
        inputs={"x": manifest.Array(dtype="float32", shape=("rows", 8, 32))},
        outputs={"y": manifest.Array(dtype="float32", shape=(8, "rows", 32))},
        variants=(variant := manifest.Variant(engine="onnx", precision="fp16", file="g.onnx"),),
    )
    bundle = SimpleNamespace(onnx_file=lambda name: tmp_path / name)
    x = np.arange(3 * 8 * 32, dtype=np.float32).reshape(3, 8, 32)
    found = load_onnx("g", spec, variant, bundle, CPU, 1).run({"x": x})
    np.testing.assert_array_equal(found["y"], x.swapaxes(0, 1)[..., ::-1])
