"""Which files an ONNX file names: all of them, and nothing but a BundleError of a wrong one."""

from __future__ import annotations

from pathlib import Path

import bundles
import damages
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from mmrt.runtime.engines.onnx_file import drop_attribute, external_files, fix_dimensions
from mmrt.runtime.errors import BundleError


def tensor(name: str) -> onnx.TensorProto:
    return damages.external(numpy_helper.from_array(np.zeros(4, np.float32), name), f"{name}.data")


def sparse(name: str) -> onnx.SparseTensorProto:
    return helper.make_sparse_tensor(tensor(f"{name}_values"), tensor(f"{name}_indices"), [4])


def everywhere() -> onnx.ModelProto:
    """A model with external data in each place that onnx.proto has for a tensor."""
    inner = helper.make_graph([], "inner", [], [], [tensor("inner")])
    inner.sparse_initializer.append(sparse("inner_sparse"))
    node = helper.make_node("Anything", ["a"], ["b"])
    node.attribute.extend(
        [
            onnx.AttributeProto(name="t", type=onnx.AttributeProto.TENSOR, t=tensor("one")),
            onnx.AttributeProto(name="ts", type=onnx.AttributeProto.TENSORS, tensors=[tensor("two"), tensor("three")]),
            onnx.AttributeProto(name="g", type=onnx.AttributeProto.GRAPH, g=inner),
            onnx.AttributeProto(name="gs", type=onnx.AttributeProto.GRAPHS, graphs=[inner]),
            onnx.AttributeProto(name="s", type=onnx.AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse("sparse")),
            onnx.AttributeProto(name="ss", type=onnx.AttributeProto.SPARSE_TENSORS, sparse_tensors=[sparse("sparses")]),
        ]
    )
    graph = helper.make_graph([node], "graph", [], [], [tensor("weights"), numpy_helper.from_array(np.zeros(3), "own")])
    graph.sparse_initializer.append(sparse("outer_sparse"))
    model = helper.make_model(graph)
    function = helper.make_function("f", "f", ["a"], ["b"], [node], [])
    function.attribute_proto.append(onnx.AttributeProto(name="d", type=onnx.AttributeProto.TENSOR, t=tensor("default")))
    function.node[0].attribute[0].t.external_data[0].value = "function.data"
    model.functions.append(function)
    training = model.training_info.add()
    training.initialization.initializer.append(tensor("initialization"))
    training.algorithm.initializer.append(tensor("algorithm"))
    return model


def locations(message: object) -> set[str]:
    """Every external location, found by walking all fields of the message."""
    if isinstance(message, TensorProto):
        return {entry.value for entry in message.external_data if entry.key == "location"}
    found: set[str] = set()
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        if field.message_type is not None:
            repeated = not hasattr(value, "ListFields")
            for each in value if repeated else [value]:
                found |= locations(each)
    return found


def test_external_data_is_found_wherever_it_may_stand(tmp_path: Path) -> None:
    model = everywhere()
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    wanted = locations(model)
    assert {"weights.data", "inner.data", "function.data", "default.data", "algorithm.data"} < wanted
    assert len(wanted) == 17
    assert external_files(tmp_path / "model.onnx") == wanted


def test_a_model_with_its_own_weights_names_no_files(handmade: Path) -> None:
    assert external_files(handmade / "graphs/decoder.fp32.onnx") == set()
    assert external_files(handmade / damages.DENOISER) == {"denoiser.fp32.onnx.data"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x3a",
        b"\x3a\xff",
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x3a\xff\xff\xff\xff\x0f",
        b"\x3b",
        b"\x39\x00",
        b"\x3a\x04\x3a\x80\x80\x80",
    ],
)
def test_what_is_no_onnx_file_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.onnx: .*not an ONNX file"):
        external_files(tmp_path / "model.onnx")


def test_endless_nesting_is_refused(tmp_path: Path) -> None:
    data = b""
    for _ in range(200):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # graph in attribute in node in graph
            data = tag + _varint(len(data)) + data
    (tmp_path / "model.onnx").write_bytes(b"\x3a" + _varint(len(data)) + data)
    with pytest.raises(BundleError, match="nested more than 64 deep"):
        external_files(tmp_path / "model.onnx")


@given(edits=st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=3)), max_size=4), cut=st.integers(0, 4000))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused(edits: list[tuple[int, bytes]], cut: int, tmp_path: Path) -> None:
    data = everywhere().SerializeToString()[: cut or None]
    for place, junk in edits:
        place %= len(data) + 1
        data = data[:place] + junk + data[place + len(junk) :]
    (tmp_path / "model.onnx").write_bytes(data)
    try:
        found = external_files(tmp_path / "model.onnx")
    except BundleError as error:
        assert str(error).isprintable()  # noqa: PT017
        return
    try:
        parsed = onnx.ModelProto.FromString(data)
    except Exception:  # protobuf refuses what we read: then ONNX Runtime does too
        return
    assert locations(parsed) <= found


def _varint(number: int) -> bytes:
    data = b""
    while number > 0x7F:
        data += bytes([number & 0x7F | 0x80])
        number >>= 7
    return data + bytes([number])


def test_the_fixture_is_a_model_that_onnx_itself_accepts() -> None:
    onnx.checker.check_model(bundles.decoder(), full_check=True)


@pytest.mark.parametrize("size", [1, 127, 128, 448, 2**31])
def test_dimensions_become_numbers_at_inputs_and_outputs(size: int) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["c"])],
        "two",
        [
            value("a", TensorProto.FLOAT, ["rows", "capacity", 4]),
            value("b", TensorProto.FLOAT, ["rows", "capacity", 1]),
        ],
        [value("c", TensorProto.FLOAT, ["rows", "capacity", 4])],
        [numpy_helper.from_array(np.arange(300, dtype=np.float32), "weights")],
        value_info=[value("d", TensorProto.FLOAT, ["capacity"])],
    )
    model = helper.make_model(graph)
    made = onnx.ModelProto.FromString(fix_dimensions(model.SerializeToString(), {"capacity": size, "other": 3}))
    for each in (*made.graph.input, *made.graph.output):
        rows, capacity, _ = each.type.tensor_type.shape.dim
        assert (rows.dim_param, capacity.dim_value, capacity.dim_param) == ("rows", size, "")
    for part in ("input", "output"):
        made.graph.ClearField(part)
        getattr(made.graph, part).extend(getattr(model.graph, part))
    assert made == model
    assert fix_dimensions(model.SerializeToString(), {}) == model.SerializeToString()


def test_an_attribute_is_dropped_and_nothing_else() -> None:
    value = helper.make_tensor_value_info
    weights = np.frombuffer(b"softmax_precision" * 30, np.uint8)  # is no attribute
    nodes = [
        helper.make_node("Attention", ["a", "a", "a"], ["b"], is_causal=1, softmax_precision=1, scale=0.5),
        helper.make_node("Attention", ["b", "b", "b"], ["c"], softmax_precision=1, name="softmax_precision"),
        helper.make_node("Relu", ["c"], ["d"]),
    ]
    borders = [value("a", TensorProto.FLOAT, ["rows", 4])], [value("d", TensorProto.FLOAT, ["rows", 4])]
    model = helper.make_model(
        helper.make_graph(nodes, "three", *borders, [numpy_helper.from_array(weights, "weights")])
    )
    made = onnx.ModelProto.FromString(drop_attribute(model.SerializeToString(), "softmax_precision"))
    assert [sorted(each.name for each in node.attribute) for node in made.graph.node] == [
        ["is_causal", "scale"],
        [],
        [],
    ]
    for node in model.graph.node:
        kept = [each for each in node.attribute if each.name != "softmax_precision"]
        node.ClearField("attribute")
        node.attribute.extend(kept)
    assert made == model
    assert drop_attribute(model.SerializeToString(), "softmax_precision") == model.SerializeToString()
