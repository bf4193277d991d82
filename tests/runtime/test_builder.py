"""Engines of TensorRT-RTX, built without a GPU: what they are built of, how far they are, and what is said of a wrong
graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

pytest.importorskip("tensorrt_rtx")

import mmrt
from mmrt.runtime import manifest as m
from mmrt.runtime import profiles
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.engines import builder
from mmrt.runtime.engines.nvidia import Library


@pytest.fixture(scope="module")
def library() -> Library:
    return Library("tensorrt-rtx")


def wanted(bundle: Bundle, library: Library, graph: str, *shapes: str) -> m.Build:
    return m.Build(
        source=bundle.digest(bundle.manifest.graphs[graph].variants[0].file),
        version=library.version,
        capabilities=builder.CAPABILITIES,
        profiles=profiles.profiles(bundle.manifest, profiles.read(shapes))[graph],
    )


@pytest.mark.parametrize("graph", ["text_encoder", "image_encoder", "denoiser", "decoder"])
def test_graphs_become_engines(graph: str, handmade: Path, library: Library, tmp_path: Path) -> None:
    bundle = Bundle(handmade)
    spec = bundle.manifest.graphs[graph]
    file = bundle.path / spec.variants[0].file  # the denoiser's weights lie beside it
    for building in builder.build(library, graph, spec, file, wanted(bundle, library, graph), tmp_path / "engine"):
        assert 0 < building.share <= 1
    assert (tmp_path / "engine").stat().st_size > 10_000


def test_fp32_is_not_rounded(library: Library) -> None:
    trt = library.module
    made = trt.Builder(library.log)
    assert made.create_builder_config().get_flag(trt.BuilderFlag.TF32)  # as the library has it
    assert not builder._config(trt, made).get_flag(trt.BuilderFlag.TF32)


def build(
    library: Library, target: Path, spec: m.Graph, sizes: m.Sizes, nodes: list[onnx.NodeProto], **more: object
) -> None:
    """Build a graph of a few nodes."""
    types = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int64": TensorProto.INT64}
    values = {
        side: [helper.make_tensor_value_info(name, types[each.dtype], each.shape) for name, each in arrays.items()]
        for side, arrays in (("inputs", spec.inputs), ("outputs", spec.outputs))
    }
    graph = helper.make_graph(nodes, "small", values["inputs"], values["outputs"])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10), target)
    build = m.Build(
        source="0" * 64, version=library.version, capabilities=builder.CAPABILITIES, profiles=(sizes,), **more
    )
    for _ in builder.build(library, "small", spec, target, build, target.with_suffix(".engine")):
        pass


def spec(inputs: dict[str, m.Array], outputs: dict[str, m.Array]) -> m.Graph:
    variant = m.Variant(engine="onnx", precision="fp32", file="small.onnx")
    return m.Graph(inputs=inputs, outputs=outputs, variants=(variant,))


ROWS = m.Array(dtype="float32", shape=("rows", 4))
ONE_TO_EIGHT = {"rows": m.Range(min=1, opt=2, max=8)}


def test_a_cache_of_a_fixed_length_becomes_an_engine_and_fp32_attention_too(library: Library, tmp_path: Path) -> None:
    cache = m.Array(dtype="float32", shape=("rows", 2, "capacity", 16))
    new = m.Array(dtype="float32", shape=("rows", 2, "sequence", 16))
    graph = spec(
        {"new": new, "positions": m.Array(dtype="int64", shape=("rows",)), "key": cache},
        {"new_key": cache, "seen": new},
    )
    nodes = [
        helper.make_node("TensorScatter", ["key", "new", "positions"], ["new_key"], axis=2),
        helper.make_node("Attention", ["new", "new_key", "new_key"], ["seen"]),
    ]
    fixed = {name: m.Range(min=size, opt=size, max=size) for name, size in (("capacity", 64), ("sequence", 1))}
    build(library, tmp_path / "small.onnx", graph, ONE_TO_EIGHT | fixed, nodes)
    free = fixed | {"capacity": m.Range(min=32, opt=32, max=64)}
    with pytest.raises(mmrt.EngineError, match=r"at TensorScatter '': .* must have a static sequence length"):
        build(library, tmp_path / "small.onnx", graph, ONE_TO_EIGHT | free, nodes)


def test_the_most_likely_token_becomes_an_engine(library: Library, tmp_path: Path) -> None:
    graph = spec({"logits": ROWS}, {"likeliest": m.Array(dtype="int64", shape=("rows",))})
    nodes = [helper.make_node("ArgMax", ["logits"], ["likeliest"], axis=-1, keepdims=0)]
    build(library, tmp_path / "small.onnx", graph, ONE_TO_EIGHT, nodes)


def test_an_operator_that_is_not_known_is_named(library: Library, tmp_path: Path) -> None:
    nodes = [helper.make_node("Det", ["a"], ["b"], name="the_determinant")]
    graph = spec(
        {"a": m.Array(dtype="float32", shape=("rows", 4, 4))}, {"b": m.Array(dtype="float32", shape=("rows",))}
    )
    with pytest.raises(mmrt.EngineError, match=r"small: TensorRT-RTX .* cannot parse it at Det 'the_determinant'"):
        build(library, tmp_path / "small.onnx", graph, ONE_TO_EIGHT, nodes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda graph: {"inputs": {"other": ROWS}}, r"has the inputs \['a'\], wanted \['other'\]"),
        (lambda graph: {"outputs": {"b": m.Array(dtype="float16", shape=ROWS.shape)}}, "the output 'b' as float32"),
        (lambda graph: {"outputs": {"b": m.Array(dtype="float32", shape=("rows", 5))}}, "wanted float32.rows, 5."),
        (lambda graph: {"inputs": {"a": m.Array(dtype="float32", shape=(4,))}}, "the input 'a' as float32"),
    ],
)
def test_borders_that_are_not_the_manifests_are_refused(
    change: Callable[[m.Graph], dict], says: str, library: Library, tmp_path: Path
) -> None:
    graph = spec({"a": ROWS}, {"b": ROWS})
    build(library, tmp_path / "small.onnx", graph, ONE_TO_EIGHT, [helper.make_node("Relu", ["a"], ["b"])])
    other = msgspec.structs.replace(graph, **change(graph))
    sizes = m.Build(source="0" * 64, version="1", capabilities=("8.9",), profiles=(ONE_TO_EIGHT,))
    with pytest.raises(mmrt.EngineError, match=says):
        next(builder.build(library, "small", other, tmp_path / "small.onnx", sizes, tmp_path / "engine"), None)


def test_a_gpu_that_engines_are_not_for_is_said(handmade: Path, library: Library, tmp_path: Path) -> None:
    bundle = Bundle(handmade)
    graph = bundle.manifest.graphs["decoder"]
    build = msgspec.structs.replace(wanted(bundle, library, "decoder"), capabilities=("5.2",))
    with pytest.raises(mmrt.EngineError, match=r"no GPU of compute capability 5\.2; it does for 7\.5, 8\.0"):
        next(builder.build(library, "decoder", graph, bundle.path / graph.variants[0].file, build, tmp_path / "engine"))


def test_an_engine_without_weights_needs_a_driver(handmade: Path, library: Library, tmp_path: Path) -> None:
    """Which is why those that are built ahead of time have theirs."""
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    bundle = Bundle(handmade)
    graph = bundle.manifest.graphs["denoiser"]
    build = msgspec.structs.replace(wanted(bundle, library, "denoiser"), stripped=True)
    file = bundle.path / graph.variants[0].file
    with pytest.raises(mmrt.EngineError, match=r"denoiser: TensorRT-RTX .* cannot build it"):
        [*builder.build(library, "denoiser", graph, file, build, tmp_path / "engine")]
    assert not (tmp_path / "engine").exists()


def test_leaving_the_loop_ends_the_building(handmade: Path, library: Library, tmp_path: Path) -> None:
    monitor = builder._monitor(library.module)
    steps: list[bool] = []

    def work() -> str:
        monitor.phase_start("all", None, 40)
        monitor.phase_start("some", "all", 2)
        for step in range(40):
            steps.append(monitor.step_complete("all", step))
            if not steps[-1]:
                return "cancelled"
        return "whole"

    watched = builder._watched(monitor, "small", work, pause=0)
    shares = [next(watched).share, next(watched).share]
    watched.close()
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[1] <= 1


def test_fixed_dimensions_are_those_of_one_size_in_all_profiles() -> None:
    one, two = m.Range(min=1, opt=1, max=1), m.Range(min=2, opt=2, max=2)
    build = m.Build(
        source="0" * 64,
        version="1",
        capabilities=("8.9",),
        profiles=({"a": one, "b": two, "c": one}, {"a": one, "b": one, "c": m.Range(min=1, opt=1, max=2)}),
    )
    assert builder.fixed(build) == {"a": 1}
    arrays = {"x": m.Array(dtype="float32", shape=("a", "b", 3))}
    assert builder.specialised(arrays, {"a": 1})["x"].shape == (1, "b", 3)
    assert np.dtype(arrays["x"].dtype) == np.float32
