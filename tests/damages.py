"""Ways in which a bundle is damaged or hostile, and what mmrt says of each."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DENOISER = "graphs/denoiser.fp32.onnx"
TOKENIZER = "tokenizers/prompt.json"


@dataclass(frozen=True)
class Damage:
    """`apply` damages a bundle; `says` is in the error; `command` is the one that must refuse it.

    `opened`: that is only found in a graph's file, when others may have been loaded; `seen`: by the engine itself.
    """

    apply: Callable[[Path], Any]
    says: str
    command: str = "load"
    opened: bool = False
    seen: bool = False


def field(*path: str | int, value: Any) -> Callable[[Path], None]:
    """Set a field of the manifest."""

    def apply(bundle: Path) -> None:
        with bundles.edited(bundle) as document:
            *above, last = path
            node: Any = document
            for step in above:
                node = node[step]
            node[last] = value

    return apply


def without(*path: str | int) -> Callable[[Path], None]:
    """Remove a field of the manifest."""

    def apply(bundle: Path) -> None:
        with bundles.edited(bundle) as document:
            *above, last = path
            node: Any = document
            for step in above:
                node = node[step]
            del node[last]

    return apply


def listed(name: str) -> Callable[[Path], None]:
    """List a file that does not lie in the bundle, and use it as the denoiser's graph."""

    def apply(bundle: Path) -> None:
        with bundles.edited(bundle) as document:
            document["files"][name] = document["files"][DENOISER]
            document["graphs"]["denoiser"]["variants"][0]["file"] = name

    return apply


def manifest_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Change the manifest's bytes."""

    def apply(bundle: Path) -> None:
        path = bundle / "manifest.json"
        path.write_bytes(change(path.read_bytes()))

    return apply


def swap(name: str) -> Callable[[Path], None]:
    """Flip a bit of a file and leave its size."""

    def apply(bundle: Path) -> None:
        data = bytearray((bundle / name).read_bytes())
        data[len(data) // 2] ^= 1
        (bundle / name).write_bytes(data)

    return apply


def link_file(bundle: Path) -> None:
    target = bundle.parent / "elsewhere.json"
    (bundle / TOKENIZER).rename(target)
    (bundle / TOKENIZER).symlink_to(target)


def link_folder(bundle: Path) -> None:
    target = bundle.parent / "elsewhere"
    (bundle / "graphs").rename(target)
    (bundle / "graphs").symlink_to(target, target_is_directory=True)


def link_manifest(bundle: Path) -> None:
    target = bundle.parent / "elsewhere.json"
    (bundle / "manifest.json").rename(target)
    (bundle / "manifest.json").symlink_to(target)


def dangling_link(bundle: Path) -> None:
    (bundle / "graphs/more").symlink_to(bundle / "nowhere")


def fifo(name: str) -> Callable[[Path], None]:
    def apply(bundle: Path) -> None:
        (bundle / name).unlink(missing_ok=True)
        os.mkfifo(bundle / name)

    return apply


def folder_for_file(bundle: Path) -> None:
    (bundle / TOKENIZER).unlink()
    (bundle / TOKENIZER).mkdir()


def deep_folders(bundle: Path) -> None:
    (bundle / "/".join("a" * 200)).mkdir(parents=True)


def stranger(name: str) -> Callable[[Path], None]:
    return lambda bundle: (bundle / name).write_bytes(b"?")


def truncate(name: str) -> Callable[[Path], None]:
    return lambda bundle: (bundle / name).write_bytes((bundle / name).read_bytes()[:-1])


def rewritten(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda bundle: bundles.rewrite(bundle, name, data)


def nested(depth: int) -> bytes:
    return b'{"format": 1, "task": ' + b"[" * depth + b"]" * depth + b"}"


def external(tensor: onnx.TensorProto, location: str) -> onnx.TensorProto:
    """Make the tensor's data lie in a file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", "0"), ("length", "64")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def weights_at(location: str) -> Callable[[Path], None]:
    """Let the denoiser's weights lie elsewhere."""

    def change(model: onnx.ModelProto) -> None:
        tensor = next(each for each in model.graph.initializer if each.name == "mix")
        external(tensor, location)

    return lambda bundle: bundles.regraph(bundle, "denoiser", change)


def _constant(location: str) -> onnx.NodeProto:
    tensor = external(numpy_helper.from_array(np.zeros((4, 4), np.float32), "hidden"), location)
    return helper.make_node("Constant", [], ["unused"], value=tensor)


def constant_at(location: str) -> Callable[[Path], None]:
    """A tensor in an attribute of a node."""
    return lambda bundle: bundles.regraph(
        bundle, "denoiser", lambda model: model.graph.node.insert(0, _constant(location))
    )


def subgraph_at(location: str) -> Callable[[Path], None]:
    """A tensor in a graph within a node."""

    def change(model: onnx.ModelProto) -> None:
        inner = helper.make_graph(
            [_constant(location)], "inner", [], [helper.make_tensor_value_info("unused", TensorProto.FLOAT, [4, 4])]
        )
        node = helper.make_node("If", ["condition"], ["out"], then_branch=inner, else_branch=inner)
        model.graph.node.insert(0, node)

    return lambda bundle: bundles.regraph(bundle, "denoiser", change)


def function_at(location: str) -> Callable[[Path], None]:
    """A tensor in a function of the model."""

    def change(model: onnx.ModelProto) -> None:
        opsets = [helper.make_opsetid("", 20)]
        model.functions.append(helper.make_function("own", "f", [], ["unused"], [_constant(location)], opsets))

    return lambda bundle: bundles.regraph(bundle, "denoiser", change)


def node(name: str, **attributes: str) -> Callable[[Path], None]:
    """Change a node of the decoder."""

    def change(model: onnx.ModelProto) -> None:
        for each in model.graph.node:
            if each.op_type == name:
                for key, value in attributes.items():
                    setattr(each, key, value)

    return lambda bundle: bundles.regraph(bundle, "decoder", change)


def decoder_border(side: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Change an input or output of the decoder's file."""
    return lambda bundle: bundles.regraph(bundle, "decoder", lambda model: change(getattr(model.graph, side)[0]))


def _other_dtype(value: onnx.ValueInfoProto) -> None:
    value.type.tensor_type.elem_type = TensorProto.FLOAT16


def _other_name(value: onnx.ValueInfoProto) -> None:
    value.name = "codes"


def _other_size(value: onnx.ValueInfoProto) -> None:
    value.type.tensor_type.shape.dim[1].dim_value = 16


def _other_rank(value: onnx.ValueInfoProto) -> None:
    del value.type.tensor_type.shape.dim[3]


def flipped_pixels(bundle: Path) -> None:
    """The decoder swaps height and width, against what it declares."""

    def change(model: onnx.ModelProto) -> None:
        node = next(each for each in model.graph.node if each.op_type == "Transpose")
        node.attribute[0].ints[:] = [0, 3, 2, 1]

    bundles.regraph(bundle, "decoder", change)


def shrunk_prediction(bundle: Path) -> None:
    """The denoiser gives one picture for all, against what it declares."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.node[-1].output[0] = "sum"
        model.graph.node.append(helper.make_node("Compress", ["sum", "first"], ["prediction"], axis=0))
        model.graph.initializer.append(numpy_helper.from_array(np.array([True]), "first"))

    bundles.regraph(bundle, "denoiser", change)


def small_table(bundle: Path) -> None:
    """The embedding has fewer rows than the tokenizer has tokens."""

    def change(model: onnx.ModelProto) -> None:
        table = numpy_helper.from_array(bundles.TABLE[:2], "table")
        model.graph.initializer[0].CopyFrom(table)

    bundles.regraph(bundle, "text_encoder", change)


def tokenizer(**changes: Any) -> Callable[[Path], None]:
    """Change the tokenizer's file."""

    def apply(bundle: Path) -> None:
        document = json.loads((bundle / TOKENIZER).read_text())
        bundles.rewrite(bundle, TOKENIZER, json.dumps(document | changes).encode())

    return apply


def no_unknown_word(bundle: Path) -> None:
    model = {"type": "WordLevel", "vocab": {"<s>": 0, "</s>": 1}, "unk_token": "<absent>"}
    tokenizer(model=model, post_processor=None)(bundle)


def golden(data: bytes) -> Callable[[Path], None]:
    return rewritten("golden.npz", data)


def zipped(**entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("bomb.npy", b"")
        archive.filelist[0].file_size = 1025 << 20
    return buffer.getvalue()


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, evil=np.array([{"an": "object"}], dtype=object))
    return buffer.getvalue()


def absurd_array() -> bytes:
    buffer = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 50,)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return zipped(absurd=buffer.getvalue())


def broken_deflate() -> bytes:
    data = bytearray(zipped(a=os.urandom(8) * 1000))
    data[60] ^= 0xFF
    return bytes(data)


def receipt(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Change the receipt."""

    def apply(bundle: Path) -> None:
        document = json.loads((bundle / "receipt.json").read_text())
        change(document)
        bundles.rewrite(bundle, "receipt.json", json.dumps(document).encode())

    return apply


def golden_entry(name: str) -> Callable[[Path], None]:
    """Add an array to the golden data."""
    return lambda bundle: bundles.regolden(bundle, lambda arrays: arrays.update({name: np.zeros(3, np.float32)}))


def two_seeds(bundle: Path) -> None:
    field("inputs", "other_seed", value={"kind": "seed", "generator": "generator"})(bundle)


def same_ids_twice(bundle: Path) -> None:
    tokenize = bundles.manifest()["inputs"]["prompt"]["tokenize"]
    field("inputs", "negative_prompt", "tokenize", value=tokenize)(bundle)


DIFFUSE = ("program", 2)
MANIFEST_DAMAGES = {
    "absolute path": Damage(listed("/etc/passwd.onnx"), "'/etc/passwd.onnx' is not a plain relative path"),
    "path with ..": Damage(listed("../denoiser.onnx"), "'../denoiser.onnx' is not a plain relative path"),
    "path with .. inside": Damage(listed("graphs/../../x.onnx"), "is not a plain relative path"),
    "path with odd characters": Damage(listed("graphs/a b\u202e.onnx"), "is not a plain relative path"),
    "path with a backslash": Damage(listed("graphs\\x.onnx"), "is not a plain relative path"),
    "path with a line break": Damage(listed("graphs/x.onnx\n"), "is not a plain relative path"),
    "path not in its plain form": Damage(listed("graphs//x.onnx"), "is not a plain relative path"),
    "listed but missing": Damage(listed("graphs/other.onnx"), "other.onnx: listed in the manifest, but missing"),
    "file removed": Damage(
        lambda bundle: (bundle / TOKENIZER).unlink(), "prompt.json: listed in the manifest, but missing"
    ),
    "unlisted file": Damage(stranger("graphs/more.py"), "more.py: not listed in the manifest"),
    "unlisted file with a line break in its name": Damage(stranger("a\nb\x1b[31m.py"), "not listed in the manifest"),
    "linked file": Damage(link_file, "prompt.json: a link, which a bundle may not hold"),
    "linked folder": Damage(link_folder, "graphs: a link, which a bundle may not hold"),
    "linked manifest": Damage(link_manifest, "manifest.json: a link, which a bundle may not hold"),
    "dangling link": Damage(dangling_link, "more: a link, which a bundle may not hold"),
    "fifo as tokenizer": Damage(fifo(TOKENIZER), "prompt.json: not a regular file"),
    "fifo as manifest": Damage(fifo("manifest.json"), "no manifest.json"),
    "folder as file": Damage(folder_for_file, "prompt.json: listed in the manifest, but missing"),
    "deep folders": Damage(deep_folders, "folders are nested more than"),
    "truncated file": Damage(truncate(TOKENIZER), "bytes, wanted"),
    "no manifest": Damage(lambda bundle: (bundle / "manifest.json").unlink(), "not a bundle: it has no manifest.json"),
    "empty manifest": Damage(manifest_bytes(lambda data: b""), "manifest.json: Input data was truncated"),
    "truncated manifest": Damage(manifest_bytes(lambda data: data[: len(data) // 2]), "manifest.json: "),
    "oversized manifest": Damage(
        manifest_bytes(lambda data: data + b" " * (16 << 20)), "more than a manifest may have"
    ),
    "manifest of other bytes": Damage(manifest_bytes(lambda data: b"\x80\x04K\x01."), "manifest.json: "),
    "manifest that is a list": Damage(manifest_bytes(lambda data: b"[]"), "manifest.json: Expected `object`"),
    "manifest in latin-1": Damage(
        manifest_bytes(lambda data: data.replace(b"handmade", b"h\xe4ndmade", 1)), "manifest.json: "
    ),
    "deeply nested manifest": Damage(manifest_bytes(lambda data: nested(100_000)), "manifest.json: "),
    "NaN in the manifest": Damage(
        field("inputs", "guidance", "default", value=float("nan")), "manifest.json: JSON is malformed"
    ),
    "infinity in the manifest": Damage(
        manifest_bytes(lambda data: data.replace(b'"max": 50.0', b'"max": 1e999')), "manifest.json: Number out of range"
    ),
    "newer format": Damage(
        field("format", value=2), "the bundle has format 2, mmrt 0.1.0 reads formats up to 1: use a newer mmrt"
    ),
    "format 0": Damage(field("format", value=0), "the bundle has format 0; the first format is 1"),
    "format as text": Damage(field("format", value="1"), "Expected `int`, got `str` - at `$.format`"),
    "no format": Damage(without("format"), "missing required field `format`"),
    "missing field": Damage(without("graphs", "decoder", "variants"), "missing required field `variants`"),
    "unknown field": Damage(
        field("graphs", "decoder", "precision", value="fp32"), "unknown field `precision` - at `$.graphs"
    ),
    "unknown stage": Damage(field(*DIFFUSE, "stage", value="dream"), "Invalid value 'dream' - at `$.program[2].stage`"),
    "unknown kind of input": Damage(field("inputs", "steps", "kind", value="pickle"), "Invalid value 'pickle'"),
    "unknown engine": Damage(
        field("graphs", "decoder", "variants", 0, "engine", value="python"),
        "Invalid enum value 'python' - at `$.graphs",
    ),
    "unknown dtype": Damage(
        field("graphs", "decoder", "inputs", "latents", "dtype", value="object"), "Invalid enum value 'object'"
    ),
    "file of another format than ONNX": Damage(
        field("graphs", "decoder", "variants", 0, "file", value=TOKENIZER), f"'{TOKENIZER}' is not named *.onnx"
    ),
    "setting that is an array": Damage(
        field("inputs", "steps", "array", value="steps"), "'steps' has an array, so each result may have its own"
    ),
    "wrong type": Damage(field("inputs", "steps", "default", value="many"), "Expected `int`, got `str` - at `$.inputs"),
    "odd name": Damage(field("inputs", "Ste ps", value={"kind": "text"}), "manifest.json: "),
    "name that ends in a line break": Damage(field("inputs", "steps\n", value={"kind": "text"}), "manifest.json: "),
    "name for a terminal to obey": Damage(field("name", value="\x1b]0;owned\x07"), "- at `$.name`"),
    "absurd dimension": Damage(
        field("graphs", "decoder", "inputs", "latents", "shape", value=["batch", 2**40]), "Expected `int` <= 2147483648"
    ),
    "absurd dimensions": Damage(
        field("graphs", "decoder", "inputs", "latents", "shape", value=["batch", 4, 2**20, 2**20]),
        "4,398,046,511,104 elements are more than 2,147,483,648 - at `$.graphs.decoder.inputs.latents.shape`",
    ),
    "absurd latents": Damage(
        field(*DIFFUSE, "latents", value=["batch", 2**31, 2**31, 2**31]), "elements are more than 2,147,483,648"
    ),
    "absurd rank": Damage(
        field("graphs", "decoder", "inputs", "latents", "shape", value=[1] * 1000), "Expected `array` of length <= 8"
    ),
    "negative dimension": Damage(
        field("graphs", "decoder", "inputs", "latents", "shape", value=["batch", -4, 8, 8]), "Expected `int` >= 1"
    ),
    "size that comes to nothing": Damage(
        field(*DIFFUSE, "latents", 2, value={"of": ["height"], "per": 999}), "a dimension can come to be 0"
    ),
    "many factors of a size": Damage(
        field(*DIFFUSE, "latents", 2, value={"of": ["height"] * 99, "per": 8}), "Expected `array` of length <= 2"
    ),
    "free batch inside": Damage(
        field(*DIFFUSE, "latents", 2, value="batch"), "only the first dimension of noise is 'batch'"
    ),
    "absurd length of text": Damage(
        field("inputs", "prompt", "tokenize", "prompt_ids", "length", value=2**30), "Expected `int` <= 1048576"
    ),
    "negative padding": Damage(
        field("inputs", "prompt", "tokenize", "prompt_ids", "pad", value=-1), "Expected `int` >= 0"
    ),
    "array that nobody makes": Damage(
        field("program", value=bundles.manifest()["program"][1:]), "nothing makes 'context'"
    ),
    "array made too late": Damage(
        field("program", value=bundles.manifest()["program"][::-1]), "nothing makes 'latents' for graph 'decoder'"
    ),
    "array of another shape than made": Damage(
        field("graphs", "text_encoder", "outputs", "context", "shape", value=["batch", 8, 5]),
        "'context' is made as float32(?, 8, 5), graph 'denoiser' takes float32(?, 8, 4)",
    ),
    "a picture that fits twice": Damage(
        field(
            "inputs",
            "image",
            value={
                "kind": "image",
                "array": "image_pixels",
                "fit": {"width": 8, "height": 8, "resample": "box"},
                "patches": {"size": 8, "most": 4, "resample": "box", "shapes": "shapes"},
            },
        ),
        "an image has `fit` or `patches` or `split`, not several",
    ),
    "a class without a number": Damage(
        field("inputs", "label", value={"kind": "choice", "default": "a", "choices": ["a"], "array": "labels"}),
        "a choice that goes into graphs has a token for each name",
    ),
    "a class that is also noise": Damage(
        field(
            "inputs",
            "label",
            value={"kind": "choice", "default": "a", "choices": ["a"], "tokens": {"a": 0}, "array": "prompt_ids"},
        ),
        "'prompt_ids' is made twice",
    ),
    "patches for pixels": Damage(
        field("inputs", "image", "patches", value={"size": 8, "most": 4, "resample": "box", "shapes": "shapes"}),
        "'image_pixels' is made as uint8(?, 4, 192)",
    ),
    "output that nobody makes": Damage(field("outputs", "image", "from", value="dreams"), "no graph makes 'dreams'"),
    "output that is no picture": Damage(
        field("outputs", "image", "from", value="latents"), "'latents' is made as float32(?, 4, ?, ?), a picture takes"
    ),
    "no outputs": Damage(field("outputs", value={}), "at `$.outputs`"),
    "no program": Damage(field("program", value=[]), "at `$.program`"),
    "program that names no graph": Damage(field("program", 0, "graphs", value=["ghost"]), "no graph is named 'ghost'"),
    "loop without a prediction": Damage(field(*DIFFUSE, "graphs", value=["decoder"]), "no graph makes 'prediction'"),
    "prediction of another shape": Damage(
        field("graphs", "denoiser", "outputs", "prediction", "shape", value=["batch", 3, "height", "width"]),
        "'prediction' is made as float32(?, 3, ?, ?), the loop takes float32(?, 4, ?, ?)",
    ),
    "output sizes from nowhere": Damage(
        field("graphs", "denoiser", "outputs", "prediction", "shape", value=["batch", 4, "depth", "width"]),
        "'depth' are no sizes of its inputs",
    ),
    "sampler of an unknown kind": Damage(field(*DIFFUSE, "samplers", "ddim", "kind", value="guess"), "guess"),
    "sampler that is not described": Damage(without(*DIFFUSE, "samplers", "euler"), "no sampler is named 'euler'"),
    "sampler out of range": Damage(field(*DIFFUSE, "samplers", "ddim", "eta", value=7.5), "eta is 7.5, wanted 0 to 1"),
    "schedule out of range": Damage(
        field(*DIFFUSE, "schedule", "train_steps", value=10**9), "train_steps is 1000000000, wanted 1 to 100000"
    ),
    "unknown generator": Damage(
        field("inputs", "generator", "choices", value=["cpu", "dice"]), "no generator is named 'dice'"
    ),
    "picture that is taken where none is given": Damage(
        without("program", 1, "when"), "'image_pixels' is there only where 'image' is given - at `$.program[1].graphs`"
    ),
    "text that is taken where none is given": Damage(
        field("inputs", "prompt", "optional", value=True), "is there only where 'prompt' is given - at `$.program[0]"
    ),
    "optional text with a default": Damage(
        field("inputs", "negative_prompt", value={"kind": "text", "default": "", "optional": True}),
        "a text with a default is not optional - at `$.inputs.negative_prompt`",
    ),
    "vectors of no numbers": Damage(
        field("outputs", "image", "kind", value="vector"), "a vector takes float32(?, ?) - at `$.outputs.image.from`"
    ),
    "likeness of no vectors": Damage(
        field("similarity", value={"text": "image", "image": "image", "scale": 1.0}),
        "'image' is not an output of kind vector - at `$.similarity.text`",
    ),
    "two seeds": Damage(two_seeds, "'other_seed', 'seed' are all of kind 'seed'"),
    "the same ids twice": Damage(same_ids_twice, "'prompt_ids' is made twice - at `$.inputs.negative_prompt"),
    "default out of its range": Damage(field("inputs", "steps", "default", value=0), "default 0 is not in its range"),
    "default that is no choice": Damage(
        field("inputs", "sampler", "default", value="luck"), "default 'luck' is not a choice"
    ),
    "default size that is not legal": Damage(field("inputs", "size", "default", value=[30, 24]), "is not a legal size"),
    "input that is not there": Damage(field(*DIFFUSE, "steps", value="paces"), "'paces' is not an input of kind int"),
    "input of another kind": Damage(
        field(*DIFFUSE, "strength", value="steps"), "'steps' is not an input of kind float"
    ),
    "preview of other channels": Damage(field(*DIFFUSE, "preview", value=[[0, 0, 0]] * 3), "3 rows do not fit"),
    "tokenizer that is not listed": Damage(
        field("inputs", "prompt", "tokenize", "prompt_ids", "file", value="/etc/hostname"),
        "'/etc/hostname' is not listed in `files`",
    ),
}

_OUTSIDE = "which is not inside the bundle"
FILE_DAMAGES = {
    "tokenizer changed": Damage(swap(TOKENIZER), "prompt.json: sha256 is"),
    "graph changed": Damage(swap(DENOISER), "denoiser.fp32.onnx: sha256 is", opened=True),
    "weights changed": Damage(swap(f"{DENOISER}.data"), "denoiser.fp32.onnx.data: sha256 is", opened=True),
    "weights at an absolute path": Damage(weights_at("/etc/passwd"), f"'/etc/passwd', {_OUTSIDE}", opened=True),
    "weights with ..": Damage(weights_at("../../x"), f"'graphs/../../x', {_OUTSIDE}", opened=True),
    "weights not listed": Damage(weights_at("other.data"), "'graphs/other.data' is not listed", opened=True),
    "weights at no path": Damage(weights_at(""), "is not listed in the manifest", opened=True),
    "weights with odd characters": Damage(weights_at("a\x00b"), _OUTSIDE, opened=True),
    "weights of an attribute": Damage(constant_at("/etc/passwd"), f"'/etc/passwd', {_OUTSIDE}", opened=True),
    "weights of a subgraph": Damage(subgraph_at("../../../etc/passwd"), _OUTSIDE, opened=True),
    "weights of a function": Damage(function_at("/etc/passwd"), f"'/etc/passwd', {_OUTSIDE}", opened=True),
    "weights too short": Damage(rewritten(f"{DENOISER}.data", b"1234"), "denoiser.fp32.onnx: ONNX Runtime", seen=True),
    "graph that is empty": Damage(rewritten(DENOISER, b""), "denoiser.fp32.onnx: empty, not an ONNX file", opened=True),
    "graph that is text": Damage(
        rewritten(DENOISER, b"not a graph, but words"), "denoiser.fp32.onnx: not an ONNX file", opened=True
    ),
    "graph cut short": Damage(
        lambda bundle: bundles.rewrite(bundle, DENOISER, (bundle / DENOISER).read_bytes()[:-9]),
        "denoiser.fp32.onnx: not an ONNX file",
        opened=True,
    ),
    "unknown operator": Damage(node("Round", op_type="Levitate"), "decoder.fp32.onnx: ONNX Runtime", seen=True),
    "operator of a foreign library": Damage(
        node("Round", domain="evil.ops"), "decoder.fp32.onnx: ONNX Runtime", seen=True
    ),
    "graph with other inputs": Damage(
        lambda bundle: bundles.rewrite(
            bundle, "graphs/decoder.fp32.onnx", (bundle / "graphs/text_encoder.fp32.onnx").read_bytes()
        ),
        "decoder.fp32.onnx: inputs are ['prompt_ids'], the manifest says ['latents']",
        seen=True,
    ),
    "graph with another dtype": Damage(
        field("graphs", "text_encoder", "inputs", "prompt_ids", "dtype", value="int32"),
        "'prompt_ids' is made as int64(?, 8), graph 'text_encoder' takes int32(?, 8)",
    ),
    "file with another dtype": Damage(decoder_border("input", _other_dtype), "decoder.fp32.onnx: ", seen=True),
    "file with another size": Damage(decoder_border("input", _other_size), "decoder.fp32.onnx: ", seen=True),
    "file with another rank": Damage(decoder_border("input", _other_rank), "decoder.fp32.onnx: ", seen=True),
    "file with another name": Damage(decoder_border("output", _other_name), "decoder.fp32.onnx: ", seen=True),
    "tokenizer that is not JSON": Damage(rewritten(TOKENIZER, b"{"), "prompt.json: not a tokenizer file"),
    "tokenizer of an unknown model": Damage(tokenizer(model={"type": "Oracle"}), "prompt.json: not a tokenizer file"),
    "tokenizer that is empty": Damage(rewritten(TOKENIZER, b""), "prompt.json: not a tokenizer file"),
    "tokenizer that fails": Damage(no_unknown_word, "prompt.json: the tokenizer fails", "generate"),
    "length without room for a text": Damage(
        field("inputs", "prompt", "tokenize", "prompt_ids", "length", value=2), "graph 'text_encoder' takes int64(?, 8)"
    ),
    "token beyond the embedding": Damage(small_table, "text_encoder: ONNX Runtime", "generate"),
    "padding beyond the embedding": Damage(
        field("inputs", "prompt", "tokenize", "prompt_ids", "pad", value=2**31),
        "text_encoder: ONNX Runtime",
        "generate",
    ),
    "pixels of another shape than declared": Damage(
        flipped_pixels, "pixels is (2, 32, 24, 3), wanted (2, 24, 32, 3)", "generate"
    ),
    "prediction of another shape than declared": Damage(shrunk_prediction, "denoiser: ONNX Runtime", "generate"),
    "no receipt": Damage(
        lambda bundle: [(bundle / "receipt.json").unlink(), bundles.relist(bundle)],
        "'receipt.json' is not listed",
        "verify",
    ),
    "receipt that is not JSON": Damage(rewritten("receipt.json", b"?"), "receipt.json: ", "verify"),
    "deeply nested receipt": Damage(
        rewritten("receipt.json", b'{"source":"","cases":[{"name":"a","request":{"a":' + b"[" * 100_000),
        "receipt.json: ",
        "verify",
    ),
    "receipt that reads a file of this machine": Damage(
        receipt(lambda document: document["cases"][0]["request"].update(image="/etc/passwd")),
        "image must be in golden.npz, not a file of this machine",
        "verify",
    ),
    "receipt of an unknown input": Damage(
        receipt(lambda document: document["cases"][0]["request"].update(wish="luck")),
        "'wish' is not an input",
        "verify",
    ),
    "receipt of a run without golden values": Damage(
        receipt(lambda document: document["cases"][0].update(name="other")), "has nothing to compare it with", "verify"
    ),
    "golden data changed": Damage(swap("golden.npz"), "golden.npz: sha256 is", "verify"),
    "golden data that is no archive": Damage(golden(b"PK?"), "golden.npz: not readable golden data", "verify"),
    "golden data in pickles": Damage(
        golden(pickled()), "golden.npz: not readable golden data: Object arrays", "verify"
    ),
    "golden zip bomb": Damage(golden(zip_bomb()), "golden.npz: unpacks to 1,074,790,400 bytes", "verify"),
    "golden array of an absurd size": Damage(golden(absurd_array()), "golden.npz: not readable golden data", "verify"),
    "golden data damaged in its stream": Damage(
        golden(broken_deflate()), "golden.npz: not readable golden data", "verify"
    ),
    "golden data of an unknown array": Damage(golden_entry("run/heart/out/ghost"), "nothing makes 'ghost'", "verify"),
    "golden data of an unknown output": Damage(
        golden_entry("graph/decoder/0/out/ghost"), "nothing makes 'ghost'", "verify"
    ),
    "golden data without inputs": Damage(
        golden_entry("graph/decoder/7/out/pixels"), "decoder: input 'latents' is missing", "verify"
    ),
}

DAMAGES = MANIFEST_DAMAGES | FILE_DAMAGES
