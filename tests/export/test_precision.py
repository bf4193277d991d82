"""Variants in fp16 and bf16: what stays in fp32 and why, where casts stand, and that numbers hold with every step
rounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from bundles import model
from onnx import TensorProto, helper

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import diffusers
import torch

from mmrt.export import casts, precision
from mmrt.export.casts import FORMATS
from mmrt.export.families.stable_diffusion import Decoder
from mmrt.export.graph import write_onnx
from mmrt.export.precision import halve, rounded_engine
from mmrt.export.recipe import Graph
from mmrt.runtime import manifest as m
from mmrt.runtime.arrays import AnyArray, fitted
from mmrt.runtime.receipt import compare

ROWS, WIDTH = 2, 8
X = {"x": (TensorProto.FLOAT, ["rows", WIDTH])}
Y = {"y": (TensorProto.FLOAT, ["rows", WIDTH])}
Arrays = Mapping[str, AnyArray]


def draw(*shape: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=output, **attributes)


class Made:
    """A graph by hand, and its variant in 16 bits."""

    def __init__(
        self,
        folder: Path,
        proto: onnx.ModelProto,
        *calls: Arrays,
        carried: Sequence[str] = (),
        exact: Sequence[str] = (),
        opset: int = 24,
        format: str = "fp16",
    ) -> None:
        proto.opset_import[0].version = opset
        proto.ir_version = 11
        onnx.checker.check_model(proto)
        self.folder = folder
        (folder / "graphs").mkdir()
        onnx.save(proto, folder / "graphs/g.fp32.onnx")
        kinds = {1: "float32", 7: "int64", 9: "bool", 2: "uint8"}
        sides = [
            {
                value.name: m.Array(
                    dtype=kinds[value.type.tensor_type.elem_type],
                    shape=tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
                )
                for value in side
            }
            for side in (proto.graph.input, proto.graph.output)
        ]
        file = m.Variant(engine="onnx", precision="fp32", file="graphs/g.fp32.onnx")
        self.graph = m.Graph(inputs=sides[0], outputs=sides[1], variants=(file,))
        self.calls, self.format = calls, FORMATS[format]
        caches = {"key": "new_key"}
        self.variant = halve("g", self.graph, folder, self.format, calls, carried, caches, exact)

    @property
    def path(self) -> Path:
        assert self.variant is not None
        return self.folder / self.variant.file

    @property
    def nodes(self) -> dict[str, onnx.NodeProto]:
        onnx.checker.check_model(str(self.path), full_check=True)
        return {each.name: each for each in onnx.load(self.path).graph.node}

    @property
    def casts(self) -> list[str]:
        return [each.output[0] for each in self.nodes.values() if each.op_type == "Cast"]

    @property
    def reasons(self) -> dict[str, str]:
        assert self.variant is not None
        return {island.node: island.reason for island in self.variant.islands}

    def same(self) -> None:
        """The file with every step rounded, and in fp16 the file itself, give what fp32 gives."""
        assert self.variant is not None
        spec = self.graph.of(self.variant)
        wanted = ort.InferenceSession(self.folder / "graphs/g.fp32.onnx", providers=["CPUExecutionProvider"])
        for call in self.calls:
            golden = dict(zip(self.graph.outputs, wanted.run(None, dict(call)), strict=True))
            results = [rounded_engine("g", self.graph, self.path).run(call)]
            if self.format.precision == "fp16":
                half = ort.InferenceSession(self.path, providers=["CPUExecutionProvider"])
                found = dict(zip(self.graph.outputs, half.run(None, fitted(call, spec.inputs)), strict=True))
                results.append(fitted(found, self.graph.outputs))
            for arrays in results:
                for name, array in arrays.items():
                    check = compare(name, array, golden[name], self.format.precision)
                    assert check.passed, check


# ---------------------------------------------------------------- what stays


def test_a_value_beyond_fp16_makes_an_island_with_one_cast_at_each_border(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], "first"),
        node("Mul", ["first", "many"], "large"),
        node("Relu", ["large"], "kept"),
        node("Mul", ["kept", "few"], "small"),
        node("MatMul", ["small", "w"], "y"),
    ]
    weights = {"w": draw(WIDTH, WIDTH), "many": np.float32(3e4), "few": np.float32(1e-4)}
    made = Made(tmp_path, model(nodes, X, Y, weights), {"x": draw(ROWS, WIDTH)})
    assert made.reasons == dict.fromkeys(("large", "kept", "small"), "overflow")
    assert made.casts == ["x.fp16", "first.fp32", "small.fp16", "y"]
    assert made.variant is not None
    island = made.variant.islands[0]
    assert (island.node, island.op, island.range and island.range[1] > 65504) == ("large", "Mul", True)
    made.same()


def test_in_bf16_no_number_is_too_large(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], "first"),
        node("Mul", ["first", "many"], "large"),
        node("Mul", ["large", "few"], "small"),
        node("MatMul", ["small", "w"], "y"),
    ]
    weights = {"w": draw(WIDTH, WIDTH), "many": np.float32(3e14), "few": np.float32(1e-14)}
    made = Made(tmp_path, model(nodes, X, Y, weights), {"x": draw(ROWS, WIDTH)}, format="bf16")
    assert made.reasons == {}
    assert made.casts == ["x.bf16", "y"]
    assert {each.data_type for each in onnx.load(made.path).graph.initializer} == {TensorProto.BFLOAT16}
    made.same()
    (tmp_path / "half").mkdir()
    assert set(Made(tmp_path / "half", model(nodes, X, Y, weights), *made.calls).reasons.values()) == {"overflow"}


@pytest.mark.parametrize("format", FORMATS)
def test_every_step_is_rounded_as_the_format_says(format: str, tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], "product"),
        node("Transpose", ["product"], "turned", perm=[1, 0]),
        node("Transpose", ["turned"], "back", perm=[1, 0]),
        node("Add", ["back", "x"], "sum"),
        node("MatMul", ["sum", "w"], "y"),
    ]
    x, w = draw(ROWS, WIDTH), np.abs(draw(1, WIDTH, seed=1))
    made = Made(tmp_path, model(nodes, X, Y, {"w": np.diag(w[0])}), {"x": x}, format=format)
    assert made.reasons == {}
    dtype = np.float16 if format == "fp16" else ml_dtypes.bfloat16
    wanted = (x.astype(dtype) * w.astype(dtype) + x.astype(dtype)) * w.astype(dtype)
    found = rounded_engine("g", made.graph, made.path).run({"x": x})["y"]
    np.testing.assert_array_equal(found, wanted.astype(np.float32))
    assert (found != (x * w + x) * w).any()


def test_the_naive_conversion_of_that_is_infinite(tmp_path: Path) -> None:
    """ONNX Runtime's CPU does not round between operators that it has no fp16 of, and hides it; rounding shows it."""
    nodes = [node("Mul", ["x", "many"], "large"), node("Mul", ["large", "few"], "y")]
    proto = model(nodes, X, Y, {"many": np.float32(3e4), "few": np.float32(1e-4)})
    onnx.save(proto, tmp_path / "fp32.onnx")
    naive = casts.load(str(tmp_path / "fp32.onnx"))
    casts.to_half(naive, FORMATS["fp16"], (), ())
    casts.ir.save(naive, tmp_path / "fp16.onnx")
    spec = m.Graph(
        inputs={"x": m.Array(dtype="float32", shape=("rows", WIDTH))},
        outputs={"y": m.Array(dtype="float32", shape=("rows", WIDTH))},
        variants=(m.Variant(engine="onnx", precision="fp16", file="fp16.onnx"),),
    )
    x = np.full((ROWS, WIDTH), 4, np.float32)
    assert np.isinf(rounded_engine("g", spec, tmp_path / "fp16.onnx").run({"x": x})["y"]).all()
    assert np.isfinite(ort.InferenceSession(tmp_path / "fp16.onnx").run(None, {"x": x})[0]).all()


def test_a_value_below_fp16_stays(tmp_path: Path) -> None:
    nodes = [
        node("Mul", ["x", "few"], "tiny"),
        node("Mul", ["tiny", "many"], "large"),
        node("MatMul", ["large", "w"], "y"),
    ]
    weights = {"w": draw(WIDTH, WIDTH), "few": np.float32(1e-4), "many": np.float32(1e4)}
    made = Made(tmp_path, model(nodes, X, Y, weights), {"x": draw(ROWS, WIDTH, scale=1e-3)})
    assert made.reasons == {"tiny": "underflow", "large": "underflow"}
    made.same()


def test_weights_that_fp16_does_not_have_stay(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "tiny"], "a"), node("MatMul", ["x", "w"], "b"), node("Add", ["a", "b"], "y")]
    made = Made(
        tmp_path,
        model(nodes, X, Y, {"tiny": draw(WIDTH, WIDTH, scale=1e-8), "w": draw(WIDTH, WIDTH)}),
        {"x": draw(ROWS, WIDTH)},
    )
    assert made.reasons == {"a": "underflow", "y": "underflow"} or made.reasons["a"] in ("weights", "underflow")
    made.same()


@pytest.mark.parametrize("format", FORMATS)
def test_what_rounded_inputs_make_wrong_reads_them_exactly(format: str, tmp_path: Path) -> None:
    """The sine of large angles, whose chain back to the input stays in fp32, and does without any cast."""
    nodes = [
        node("Mul", ["x", "frequency"], "scaled"),
        node("Add", ["scaled", "shift"], "angle"),
        node("Sin", ["angle"], "sine"),
        node("MatMul", ["sine", "w"], "y"),
    ]
    weights = {"w": draw(WIDTH, WIDTH), "frequency": np.float32(1.37), "shift": np.float32(0.1)}
    x = np.arange(ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH) * 60
    made = Made(tmp_path, model(nodes, X, Y, weights), {"x": x}, format=format)
    assert made.reasons == {"scaled": "rounding", "angle": "rounding", "sine": "accumulation"}
    assert made.casts == [f"sine.{format}", "y"]
    made.same()


def test_a_decision_on_rounded_numbers_is_made_in_fp32(tmp_path: Path) -> None:
    nodes = [
        node("Greater", ["x", "limit"], "large"),
        node("Where", ["large", "x", "limit"], "most"),
        node("MatMul", ["most", "w"], "y"),
    ]
    weights = {"w": draw(WIDTH, WIDTH), "limit": np.float32(1.0)}
    x = (1 + draw(ROWS, WIDTH, scale=1e-5)).astype(np.float32)
    made = Made(tmp_path, model(nodes, X, Y, weights), {"x": x})
    assert made.reasons == {"large": "rounding"}
    made.same()


def test_the_likeliest_of_two_that_tie_needs_no_fp32(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], "y"), node("ArgMax", ["y"], "likeliest", axis=-1, keepdims=0)]
    outputs = Y | {"likeliest": (TensorProto.INT64, ["rows"])}
    x = (1 + draw(ROWS, WIDTH, scale=1e-5)).astype(np.float32)
    made = Made(tmp_path, model(nodes, X, outputs, {"w": np.eye(WIDTH, dtype=np.float32)}), {"x": x})
    assert made.reasons == {}


def test_what_must_be_exact_is_fp32_as_far_back_as_it_comes_from(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], "first"),
        node("Exp", ["first"], "length"),
        node("MatMul", ["first", "w"], "y"),
    ]
    made = Made(
        tmp_path,
        model(nodes, X, Y | {"length": Y["y"]}, {"w": draw(WIDTH, WIDTH)}),
        {"x": draw(ROWS, WIDTH, scale=0.3)},
        carried=["x"],
        exact=["length"],
    )
    assert made.reasons == {"first": "choice", "length": "choice"}
    assert made.casts == ["first.fp16", "y"]
    made.same()


def test_a_comparison_reads_what_no_rounding_has_touched(tmp_path: Path) -> None:
    """Sums of whole numbers, which beyond 2048 fp16 does not have, however few there were in the receipts."""
    nodes = [
        node("CumSum", ["x", "one"], "ends"),
        node("Sub", ["ends", "unit"], "last"),
        node("Less", ["last", "limit"], "before"),
        node("Where", ["before", "x", "limit"], "most"),
        node("MatMul", ["most", "w"], "y"),
    ]
    weights = {"w": draw(WIDTH, WIDTH), "limit": np.float32(9.0), "unit": np.float32(1), "one": np.array(1)}
    made = Made(tmp_path, model(nodes, X, Y, weights), {"x": np.arange(16, dtype=np.float32).reshape(ROWS, WIDTH)})
    assert made.reasons == {"ends": "accumulation", "last": "choice", "before": "choice"}
    made.same()


def test_what_adds_up_stays_and_what_can_be_told_to_is_told(tmp_path: Path) -> None:
    nodes = [
        node("LayerNormalization", ["x", "scale"], "normal", axis=-1),
        node("Softmax", ["normal"], "soft", axis=-1),
        node("Unsqueeze", ["soft", "zero"], "batch"),
        node("Attention", ["batch", "batch", "batch"], "seen", q_num_heads=2, kv_num_heads=2),
        node("Squeeze", ["seen", "zero"], "y"),
    ]
    weights = {"scale": np.ones(WIDTH, np.float32), "zero": np.array([0])}
    made = Made(tmp_path, model(nodes, X, Y, weights), {"x": draw(ROWS, WIDTH)})
    assert made.reasons == {"soft": "accumulation"}
    attributes = {each.name: each.i for each in made.nodes["seen"].attribute}
    assert attributes["softmax_precision"] == TensorProto.FLOAT
    assert "normal.fp32" in made.casts
    made.same()


def test_attention_whose_products_are_beyond_fp16_stays(tmp_path: Path) -> None:
    """As in SD 2.1: queries and keys are small enough, and so is what comes out."""
    nodes = [
        node("MatMul", ["x", "w"], "first"),
        node("Unsqueeze", ["first", "zero"], "batch"),
        node("Attention", ["batch", "batch", "batch"], "seen", q_num_heads=2, kv_num_heads=2),
        node("Squeeze", ["seen", "zero"], "squeezed"),
        node("MatMul", ["squeezed", "few"], "y"),
    ]
    weights = {"w": 300 * np.eye(WIDTH, dtype=np.float32), "few": draw(WIDTH, WIDTH), "zero": np.array([0])}
    made = Made(tmp_path, model(nodes, X, Y, weights), {"x": draw(ROWS, WIDTH)})
    assert made.reasons["seen"] == "overflow"
    assert "y" not in made.reasons
    made.same()


def test_light_nodes_between_islands_stay_without_casts(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], "first"),
        node("ReduceMean", ["first", "one"], "mean", keepdims=1),
        node("Add", ["mean", "half"], "shifted"),
        node("Softmax", ["shifted"], "soft", axis=0),
        node("Mul", ["first", "soft"], "y"),
    ]
    weights = {"w": draw(WIDTH, WIDTH), "one": np.array([1]), "half": np.float32(0.5)}
    made = Made(tmp_path, model(nodes, X, Y, weights), {"x": draw(ROWS, WIDTH)})
    assert made.reasons == {"mean": "accumulation", "shifted": "between", "soft": "accumulation"}
    assert made.casts == ["x.fp16", "first.fp32", "soft.fp16", "y"]
    made.same()


def test_a_weight_of_both_has_both(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "matrix"], "first"),
        node("Mul", ["first", "w"], "a"),
        node("ReduceSum", ["a"], "sum", keepdims=0),
        node("Mul", ["sum", "w"], "b"),
        node("Softmax", ["b"], "c"),
        node("Add", ["a", "c"], "y"),
    ]
    weights = {"w": draw(1, WIDTH), "matrix": draw(WIDTH, WIDTH)}
    made = Made(tmp_path, model(nodes, X, Y, weights), {"x": draw(ROWS, WIDTH)})
    assert made.reasons["b"] == "between"
    assert {(each.name, each.data_type) for each in onnx.load(made.path).graph.initializer} == {
        ("matrix.fp16", TensorProto.FLOAT16),
        ("w", TensorProto.FLOAT),
        ("w.fp16", TensorProto.FLOAT16),
    }
    made.same()


def test_the_body_of_an_if_stays_and_reads_fp32(tmp_path: Path) -> None:
    def body(op: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, ["rows", WIDTH])
        return helper.make_graph([node(op, ["first"], f"{op}_out")], op, [], [out])

    nodes = [
        node("MatMul", ["x", "w"], "first"),
        helper.make_node("If", ["flag"], ["chosen"], name="chosen", then_branch=body("Relu"), else_branch=body("Neg")),
        node("MatMul", ["chosen", "w"], "y"),
    ]
    inputs = X | {"flag": (TensorProto.BOOL, [])}
    calls = [{"x": draw(ROWS, WIDTH), "flag": np.array(flag)} for flag in (True, False)]
    made = Made(tmp_path, model(nodes, inputs, Y, {"w": draw(WIDTH, WIDTH)}), *calls)
    assert made.reasons == {"chosen": "unsupported"}
    assert made.casts == ["x.fp16", "first.fp32", "chosen.fp16", "y"]
    made.same()


@pytest.mark.parametrize("format", FORMATS)
def test_masks_are_brought_into_range_and_need_no_island(format: str, tmp_path: Path) -> None:
    """The least float32 is infinite in bf16 too."""
    assert np.isinf(FORMATS[format].rounded(np.array([np.finfo(np.float32).min]))).all()
    nodes = [
        node("Where", ["allowed", "zero", "least"], "mask"),
        node("Add", ["mask", "bias"], "biased"),
        node("Unsqueeze", ["x", "one"], "heads"),
        node("Attention", ["heads", "heads", "heads", "biased"], "seen", q_num_heads=2, kv_num_heads=2),
        node("Squeeze", ["seen", "one"], "y"),
    ]
    weights = {
        "zero": np.float32(0),
        "least": np.float32(np.finfo(np.float32).min),
        "one": np.array([0]),
        "bias": draw(ROWS, ROWS),
    }
    inputs = X | {"allowed": (TensorProto.BOOL, ["rows", "rows"])}
    call = {"x": draw(ROWS, WIDTH), "allowed": np.tril(np.ones((ROWS, ROWS), bool))}
    made = Made(tmp_path, model(nodes, inputs, Y, weights), call, format=format)
    assert made.reasons == {}
    made.same()


def test_a_number_that_only_looks_like_a_mask_stays_as_it_is(tmp_path: Path) -> None:
    nodes = [
        node("Add", ["x", "least"], "low"),
        node("Div", ["low", "least"], "ratio"),
        node("MatMul", ["ratio", "w"], "y"),
    ]
    made = Made(
        tmp_path,
        model(nodes, X, Y, {"least": np.float32(-1e6), "w": draw(WIDTH, WIDTH)}),
        {"x": draw(ROWS, WIDTH, scale=1e5)},
    )
    assert set(made.reasons) == {"low", "ratio"}
    made.same()


# ---------------------------------------------------------------- borders and files

CACHE = (TensorProto.FLOAT, ["rows", 2, "capacity", 4])


def cached(scale: float = 1.0, read: str = "new_key") -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A cache that takes one more, and what is read."""
    nodes = [
        node("MatMul", ["x", "matrix"], "new"),
        node("TensorScatter", ["key", "new", "positions"], "new_key", axis=-2),
        node("Attention", ["new", read, read], "seen"),
        node("Transpose", ["seen"], "y", perm=[0, 2, 1, 3]),
    ]
    step = (TensorProto.FLOAT, ["rows", 2, "sequence", 4])
    inputs = {"x": step, "key": CACHE, "positions": (TensorProto.INT64, ["rows"])}
    outputs = {"y": (TensorProto.FLOAT, ["rows", "sequence", 2, 4]), "new_key": CACHE}
    call = {"x": draw(3, 2, 1, 4), "key": scale * draw(3, 2, 16, 4, seed=1), "positions": np.array([3, 0, 9])}
    return model(nodes, inputs, outputs, {"matrix": draw(4, 4)}), call


@pytest.mark.parametrize("format", FORMATS)
def test_caches_are_half_at_the_borders_and_are_not_cast(format: str, tmp_path: Path) -> None:
    proto, call = cached()
    made = Made(tmp_path, proto, call, carried=["key", "new_key", "elsewhere"], format=format)
    assert made.variant is not None
    assert made.variant.dtypes == dict.fromkeys(("key", "new_key"), FORMATS[format].dtype)
    assert made.casts == [f"x.{format}", "y"]
    made.same()


def test_a_cache_of_large_numbers_is_not_half_on_either_side(tmp_path: Path) -> None:
    proto, call = cached(scale=1e5, read="new")
    made = Made(tmp_path, proto, call, carried=["key", "new_key"])
    assert made.variant is not None
    assert made.variant.dtypes == {}
    assert made.reasons == {"new_key": "overflow"}
    made.same()


def test_a_cache_that_only_becomes_large_is_half_on_neither_side(tmp_path: Path) -> None:
    proto, call = cached(read="new")
    call["x"] = 1e5 * call["x"]
    made = Made(tmp_path, proto, call, carried=["key", "new_key"])
    assert made.variant is None or made.variant.dtypes == {}


def test_large_weights_lie_beside_the_file_and_halve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "EMBEDDED", 64)
    nodes = [node("MatMul", ["x", "w"], "a"), node("MatMul", ["a", "w2"], "y")]
    weights = {"w": draw(WIDTH, 512), "w2": draw(512, WIDTH)}
    made = Made(tmp_path, model(nodes, X, Y, weights), {"x": draw(ROWS, WIDTH)})
    assert sorted(path.name for path in (tmp_path / "graphs").iterdir()) == [
        "g.fp16.onnx",
        "g.fp16.onnx.data",
        "g.fp32.onnx",
    ]
    assert made.path.with_name("g.fp16.onnx.data").stat().st_size == 2 * 2 * WIDTH * 512
    made.same()


def test_a_graph_of_whole_numbers_has_nothing_to_halve(tmp_path: Path) -> None:
    whole = (TensorProto.INT64, ["rows"])
    made = Made(tmp_path, model([node("Neg", ["x"], "y")], {"x": whole}, {"y": whole}), {"x": np.arange(3)})
    assert made.variant is None
    assert [path.name for path in (tmp_path / "graphs").iterdir()] == ["g.fp32.onnx"]


def test_a_graph_with_sequences_of_tensors_stays(tmp_path: Path) -> None:
    nodes = [
        node("SequenceConstruct", ["x", "x"], "both"),
        node("ConcatFromSequence", ["both"], "joined", axis=1),
        node("MatMul", ["joined", "w"], "y"),
    ]
    made = Made(tmp_path, model(nodes, X, Y, {"w": draw(2 * WIDTH, WIDTH)}), {"x": draw(3, WIDTH)})
    assert made.variant is None


def test_a_graph_that_pixels_go_into_and_come_from_is_halved(tmp_path: Path) -> None:
    pixels = (TensorProto.UINT8, ["rows", WIDTH])
    nodes = [
        helper.make_node("Cast", ["x"], ["floats"], name="floats", to=TensorProto.FLOAT),
        node("MatMul", ["floats", "w"], "mixed"),
        helper.make_node("Cast", ["mixed"], ["y"], name="y", to=TensorProto.UINT8),
    ]
    weights = {"w": np.full((WIDTH, WIDTH), 1 / WIDTH, np.float32)}
    x = np.random.default_rng(0).integers(0, 256, (ROWS, WIDTH)).astype(np.uint8)
    made = Made(tmp_path, model(nodes, {"x": pixels}, {"y": pixels}, weights), {"x": x})
    assert made.reasons == {}
    made.same()


def test_a_graph_that_no_receipt_runs_stays(tmp_path: Path) -> None:
    assert Made(tmp_path, model([node("Neg", ["x"], "y")], X, Y)).variant is None


# ---------------------------------------------------------------- a decoder that overflows


@pytest.fixture(scope="module")
def overflowing() -> Decoder:
    """A VAE's decoder whose residual stream is beyond 65504, as that of SDXL's is: each norm makes it small again."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        layers_per_block=1,
        sample_size=32,
    ).eval()
    with torch.no_grad():
        for block in vae.decoder.up_blocks:
            for resnet in block.resnets:
                resnet.conv2.weight *= 3e4
    return Decoder(vae)


def test_a_decoder_that_is_black_in_fp16_passes_with_islands(overflowing: Decoder, tmp_path: Path) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = overflowing(latents).numpy()
        assert overflowing.decode(latents).abs().max() < 100
        assert overflowing.half().decode(latents.half()).isnan().any()  # torch's own, naively
        overflowing.float()
    (tmp_path / "graphs").mkdir()
    free = {"latents": {0: "batch", 2: "h", 3: "w"}, "pixels": {0: "batch", 1: "height", 2: "width"}}
    recipe = Graph(overflowing, {"latents": torch.zeros(2, 4, 12, 10)}, ("pixels",), free)
    file = tmp_path / "graphs/decoder.fp32.onnx"
    inputs, outputs = write_onnx("decoder", recipe, file)
    whole = m.Variant(engine="onnx", precision="fp32", file="graphs/decoder.fp32.onnx")
    graph = m.Graph(inputs=inputs, outputs=outputs, variants=(whole,))

    naive = casts.load(str(file))
    casts.to_half(naive, FORMATS["fp16"], (), ())
    casts.ir.save(naive, tmp_path / "graphs/naive.onnx")
    black = rounded_engine("decoder", graph, tmp_path / "graphs/naive.onnx").run({"latents": latents.numpy()})
    assert not compare("pixels", black["pixels"], wanted, "fp16").passed

    variant = halve("decoder", graph, tmp_path, FORMATS["fp16"], [{"latents": latents.numpy()}])
    assert variant is not None
    found = rounded_engine("decoder", graph, tmp_path / variant.file).run({"latents": latents.numpy()})["pixels"]
    check = compare("pixels", found, wanted, "fp16")
    assert check.passed
    assert check.psnr is not None
    assert check.psnr > 45
    reasons = {island.op: island.reason for island in variant.islands}
    assert reasons.keys() >= {"Conv", "Add", "GroupNormalization"}
    assert reasons["Add"] == "overflow"
    convolutions = sum(each.op_type == "Conv" for each in onnx.load(file).graph.node)
    assert sum(island.op == "Conv" for island in variant.islands) < convolutions / 2
