"""What a manifest with an `autoregress` stage must not say."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from mmrt.runtime import manifest_file
from mmrt.runtime.errors import BundleError

FILE = {"bytes": 1, "sha256": "0" * 64}
CACHE = {"dtype": "float32", "shape": ["rows", 2, "capacity", 8]}
MANIFEST: dict[str, Any] = {
    "format": 1,
    "task": "text-to-text",
    "name": "tiny",
    "source": {"family": "seq2seq", "checkpoint": {}, "versions": {}},
    "inputs": {
        "text": {
            "kind": "text",
            "tokenize": {
                "source_ids": {
                    "file": "source.json", "length": 16, "pad": 0, "mask": "source_mask", "before": ["language"],
                }
            },
        },
        "language": {"kind": "choice", "default": "en", "choices": ["en", "zh"], "tokens": {"en": 5, "zh": 6}},
        "max_new_tokens": {"kind": "int", "default": 8, "min": 1, "max": 31},
        "temperature": {"kind": "float", "default": 0.0, "min": 0.0, "max": 2.0},
        "early_stopping": {"kind": "choice", "default": "no", "choices": ["no", "yes"]},
        "stop": {"kind": "strings"},
        "seed": {"kind": "seed"},
    },
    "outputs": {"text": {"kind": "text", "from": "sequences", "file": "target.json"}},
    "graphs": {
        "encoder": {
            "inputs": {
                "source_ids": {"dtype": "int64", "shape": ["texts", "source"]},
                "source_mask": {"dtype": "bool", "shape": ["texts", "source"]},
            },
            "outputs": {"cross_key_0": {"dtype": "float32", "shape": ["texts", 2, "source", 8]}},
            "variants": [{"engine": "onnx", "precision": "fp32", "file": "encoder.onnx"}],
        },
        "decoder": {
            "inputs": {
                "tokens": {"dtype": "int64", "shape": ["rows", "sequence"]},
                "positions": {"dtype": "int64", "shape": ["rows"]},
                "cross_key_0": {"dtype": "float32", "shape": ["rows", 2, "source", 8]},
                "key_0": CACHE,
            },
            "outputs": {"logits": {"dtype": "float32", "shape": ["rows", 40]}, "new_key_0": CACHE},
            "variants": [{"engine": "onnx", "precision": "fp32", "file": "decoder.onnx"}],
        },
    },
    "program": [
        {"stage": "once", "graphs": ["encoder"]},
        {
            "stage": "autoregress",
            "graphs": ["decoder"],
            "caches": {"key_0": "new_key_0"},
            "limit": 32,
            "prompt": [1],
            "pad": 0,
            "ends": [2],
            "options": {
                "max_new_tokens": "max_new_tokens",
                "temperature": "temperature",
                "early_stopping": "early_stopping",
                "stop": "stop",
            },
            "forced": ["language"],
        },
    ],
    "files": dict.fromkeys(("source.json", "target.json", "encoder.onnx", "decoder.onnx"), FILE),
}  # fmt: skip


def _stage(manifest: dict[str, Any]) -> dict[str, Any]:
    stage: dict[str, Any] = manifest["program"][1]
    return stage


def _graph(manifest: dict[str, Any]) -> dict[str, Any]:
    graph: dict[str, Any] = manifest["graphs"]["decoder"]
    return graph


def _half(manifest: dict[str, Any], graph: str, **fields: Any) -> None:
    """A variant in fp16 of a graph."""
    variant = {"engine": "onnx", "precision": "fp16", "file": f"{graph}.onnx", **fields}
    manifest["graphs"][graph]["variants"].append(variant)


HALF = dict.fromkeys(("cross_key_0", "key_0", "new_key_0"), "float16")
ISLAND = {"node": "softmax", "op": "Softmax", "reason": "accumulation"}
DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "half an array that there is not": (
        lambda m: _half(m, "decoder", dtypes={"key_1": "float16"}),
        "graph 'decoder' has no 'key_1' - at `$.graphs.decoder.variants[1].dtypes`",
    ),
    "half logits": (lambda m: _half(m, "decoder", dtypes={"logits": "float16"}), "'logits' is not carried"),
    "half tokens": (lambda m: _half(m, "decoder", dtypes={"tokens": "float16"}), "'tokens' is not carried"),
    "half a cache": (
        lambda m: _half(m, "decoder", dtypes={"key_0": "float16"}),
        "the cache 'key_0' becomes 'new_key_0' of another dtype",
    ),
    "a cache of two dtypes": (
        lambda m: _half(m, "decoder", dtypes={"key_0": "float16", "new_key_0": "bfloat16"}),
        "the cache 'key_0' becomes 'new_key_0' of another dtype",
    ),
    "a border of another dtype": (lambda m: _half(m, "decoder", dtypes={"key_0": "int8"}), "Invalid enum value 'int8'"),
    "an island for no reason": (
        lambda m: _half(m, "decoder", islands=[{**ISLAND, "reason": "whim"}]),
        "Invalid enum value 'whim'",
    ),
    "an island of unprintable name": (lambda m: _half(m, "decoder", islands=[{**ISLAND, "node": "\x1b[2J"}]), "regex"),
    "an island of no range": (
        lambda m: _half(m, "decoder", islands=[{**ISLAND, "range": [2.0, 1.0]}]),
        "2.0 is more than 1.0 - at `$.graphs.decoder.variants[1].islands[0].range`",
    ),
    "unknown field": (lambda m: _stage(m).update(beams=4), "unknown field `beams`"),
    "no caches": (lambda m: _stage(m).update(caches={}), "length >= 1"),
    "a cache that no graph takes": (lambda m: _stage(m).update(caches={"key_1": "new_key_0"}), "takes 'key_1'"),
    "a cache that no graph makes": (lambda m: _stage(m).update(caches={"key_0": "new_key_1"}), "makes 'new_key_1'"),
    "a cache that is something else": (
        lambda m: _stage(m).update(caches={"tokens": "new_key_0"}),
        "int64(rows, sequence) becomes float32(rows, 2, capacity, 8)",
    ),
    "a cache without room to grow": (
        lambda m: [each.update(shape=["rows", 2, 64, 8]) for each in (_graph(m)["inputs"]["key_0"], _made(m))],
        "is no cache (rows, heads, capacity, width)",
    ),
    "a cache of rows": (
        lambda m: [each.update(shape=["rows", 2, "rows", 8]) for each in (_graph(m)["inputs"]["key_0"], _made(m))],
        "is no cache",
    ),
    "no logits": (lambda m: _graph(m)["outputs"].pop("logits"), "no graph makes 'logits'"),
    "logits of any vocabulary": (
        lambda m: _graph(m)["outputs"]["logits"].update(shape=["rows", "words"]),
        "wanted float32(rows, vocabulary)",
    ),
    "likeliest numbers": (
        lambda m: _graph(m)["outputs"].update(likeliest={"dtype": "float32", "shape": ["rows"]}),
        "'likeliest' is made as float32(rows), wanted int64(rows)",
    ),
    "likeliest rows": (
        lambda m: _graph(m)["outputs"].update(likeliest={"dtype": "int64", "shape": ["rows", 1]}),
        "wanted int64(rows)",
    ),
    "whole logits": (lambda m: _graph(m)["outputs"]["logits"].update(dtype="int64"), "wanted float32"),
    "tokens of its own": (
        lambda m: _graph(m)["outputs"].update(sequences={"dtype": "int64", "shape": ["rows"]}),
        "the loop's own",
    ),
    "an end out of the vocabulary": (lambda m: _stage(m).update(ends=[40]), "tokens [40] are not in the vocabulary"),
    "a prompt out of the vocabulary": (lambda m: _stage(m).update(prompt=[99]), "tokens [99]"),
    "a language out of the vocabulary": (
        lambda m: m["inputs"]["language"]["tokens"].update(zh=77),
        "tokens [77] are not in the vocabulary of 40",
    ),
    "a negative token": (lambda m: _stage(m).update(pad=-1), ">= 0"),
    "no prompt": (lambda m: _stage(m).update(prompt=[]), "length >= 1"),
    "a prompt of no choice": (lambda m: _stage(m).update(prompt=["text"]), "'text' is not an input of kind choice"),
    "a choice without tokens": (lambda m: _stage(m).update(forced=["early_stopping"]), "has no tokens"),
    "a choice with some tokens": (
        lambda m: m["inputs"]["language"].update(tokens={"en": 5}),
        "one for each of its names",
    ),
    "an option of the wrong kind": (
        lambda m: _stage(m)["options"].update(temperature="max_new_tokens"),
        "'max_new_tokens' is not an input of kind float",
    ),
    "an unknown option": (lambda m: _stage(m)["options"].update(luck="temperature"), "luck"),
    "other ways to stop": (
        lambda m: m["inputs"]["early_stopping"].update(choices=["no", "perhaps"]),
        "'perhaps' are no ways to stop",
    ),
    "a prompt that nothing makes": (lambda m: _stage(m).update(prompt="words"), "nothing makes 'words'"),
    "a prompt of another kind": (lambda m: _stage(m).update(prompt="source_mask"), "'source_mask' is made as bool"),
    "a mask of fixed tokens": (lambda m: _stage(m).update(prompt_mask="source_mask"), "`prompt` is no array"),
    "a mask of another kind": (
        lambda m: _stage(m).update(prompt="source_ids", prompt_mask="source_ids"),
        "'source_ids' is made as int64",
    ),
    "guidance by no number": (
        lambda m: _stage(m).update(guidance={"kind": "classifier-free", "scale": "max_new_tokens"}),
        "'max_new_tokens' is not an input of kind float",
    ),
    "guidance of pictures": (
        lambda m: _stage(m).update(guidance={"kind": "embedded", "scale": "temperature"}),
        "tokens are guided by `classifier-free`",
    ),
    "an absurd limit": (lambda m: _stage(m).update(limit=2**40), "<= 1048576"),
    "a mask that is made twice": (
        lambda m: m["inputs"]["text"]["tokenize"]["source_ids"].update(mask="source_ids"),
        "made twice",
    ),
    "a text of no tokens": (lambda m: m["outputs"]["text"].update({"from": "cross_key_0"}), "a text takes int64"),
    "a text's file that is not listed": (lambda m: m["outputs"]["text"].update(file="x.json"), "not listed"),
    "an absurd size": (
        lambda m: m["inputs"].update(
            image={
                "kind": "image", "array": "pixels",
                "fit": {"width": 10**6, "height": 8, "resample": "bilinear"},
            }
        ),
        "<= 16384",
    ),
}  # fmt: skip


def _made(manifest: dict[str, Any]) -> dict[str, Any]:
    """The cache as the decoder makes it."""
    array: dict[str, Any] = _graph(manifest)["outputs"]["new_key_0"]
    return array


def test_is_legal() -> None:
    manifest = manifest_file.decode(json.dumps(MANIFEST).encode())
    assert manifest_file.decode(manifest_file.encode(manifest)) == manifest


def _with_windows() -> dict[str, Any]:
    """A model that listens, in windows."""
    manifest = copy.deepcopy(MANIFEST)
    del manifest["inputs"]["text"]
    del manifest["files"]["source.json"]
    manifest["inputs"] |= {
        "audio": {
            "kind": "audio", "array": "features", "lengths": "frames", "rate": 16000, "window": 30, "seconds": 60,
            "timestamps": "timestamps", "required": True,
        },
        "timestamps": {
            "kind": "choice", "default": "no", "choices": ["no", "yes"], "tokens": {"no": 7}, "silent": "yes"
        },
    }  # fmt: skip
    manifest["graphs"] |= {
        "features": manifest["graphs"]["encoder"]
        | {
            "inputs": {
                "features": {"dtype": "float32", "shape": ["recordings", "samples"]},
                "frames": {"dtype": "int64", "shape": ["recordings"]},
            },
            "outputs": {
                "mel": {"dtype": "float32", "shape": ["recordings", 80, "time"]},
                "times": {"dtype": "int64", "shape": ["recordings"]},
            },
        },
    }
    manifest["graphs"]["encoder"]["inputs"] = {"window": {"dtype": "float32", "shape": ["rows", 80, 3000]}}
    manifest["program"][0]["graphs"] = ["features"]
    times = {"choice": "timestamps", "first": 8, "without": 7, "frames": 2, "seconds": 0.02}
    _stage(manifest).update(
        prompt=[1, "timestamps"],
        windows={
            "source": "mel", "lengths": "times", "window": "window", "size": 3000, "graphs": ["encoder"],
            "timestamps": times,
        },
    )  # fmt: skip
    return manifest


def _windows(manifest: dict[str, Any]) -> dict[str, Any]:
    windows: dict[str, Any] = _stage(manifest)["windows"]
    return windows


WINDOWS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a source that nothing makes": (lambda m: _windows(m).update(source="sound"), "nothing makes 'sound'"),
    "a source that is no features": (lambda m: _windows(m).update(source="features"), "is made as float32(?, ?)"),
    "lengths of another kind": (lambda m: _windows(m).update(lengths="mel"), "'mel' is made as float32"),
    "a window of another size": (lambda m: _windows(m).update(size=1500), "made as float32(?, 80, 1500)"),
    "a window that is made twice": (lambda m: _windows(m).update(window="mel"), "'mel' is made twice"),
    "a graph that there is not": (lambda m: _windows(m).update(graphs=["ear"]), "no graph is named 'ear'"),
    "no graph": (lambda m: _windows(m).update(graphs=[]), "length >= 1"),
    "times out of the vocabulary": (lambda m: _windows(m)["timestamps"].update(first=40), "tokens [40]"),
    "times without a choice": (lambda m: _windows(m)["timestamps"].update(choice="language"), "of 'no' and 'yes'"),
    "steps of no time": (lambda m: _windows(m)["timestamps"].update(seconds=0), "> 0"),
    "several ends": (lambda m: _stage(m).update(ends=[2, 3]), "one end, not 2"),
    "guidance": (
        lambda m: _stage(m).update(guidance={"kind": "classifier-free", "scale": "temperature"}),
        "windows are read without guidance",
    ),
    "less than a window": (lambda m: m["inputs"]["audio"].update(seconds=20), "less than the window of 30 s"),
    "a choice of other names": (
        lambda m: m["inputs"]["timestamps"].update(choices=["no", "yes", "some"]),
        "not a choice of 'no' and 'yes'",
    ),
    "a silent name where a token must be": (lambda m: _stage(m).update(forced=["timestamps"]), "names without a token"),
    "a prompt that can be empty": (lambda m: _stage(m).update(prompt=["timestamps"]), "come to have no tokens"),
    "a language that is detected first": (
        lambda m: (
            m["inputs"]["language"].update(choices=["en", "zh", "?"], detected="?"),
            _stage(m).update(prompt=["language", 1], forced=[]),
        ),
        "what is detected needs a token before it",
    ),
}


def _with_codebooks() -> dict[str, Any]:
    """The manifest as MusicGen's is: two codebooks, of which the second comes one token late, become a sound."""
    manifest = copy.deepcopy(MANIFEST)
    tokens = ["rows", "sequence", 2]
    _graph(manifest)["inputs"]["tokens"]["shape"] = tokens
    _graph(manifest)["outputs"]["logits"]["shape"] = ["rows", 2, 40]
    manifest["graphs"]["codec"] = {
        "inputs": {"sequences": {"dtype": "int64", "shape": ["batch", "frames", 2]}},
        "outputs": {"waveform": {"dtype": "float32", "shape": ["batch", "samples"]}},
        "variants": [{"engine": "onnx", "precision": "fp32", "file": "decoder.onnx"}],
    }
    manifest["outputs"] = {"audio": {"kind": "audio", "from": "waveform", "rate": 8000}}
    manifest["program"].append({"stage": "once", "graphs": ["codec"]})
    manifest["inputs"]["text"]["tokenize"]["source_ids"]["absent"] = True
    options = {"max_new_tokens": "max_new_tokens", "temperature": "temperature"}
    _stage(manifest).update(delays=[0, 1], ends=[], forced=[], prompt=[40], pad=40, options=options)
    return manifest


CODEBOOKS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "more delays than codebooks": (
        lambda m: _stage(m).update(delays=[0, 1, 2]),
        "graph 'decoder' takes int64(?, ?, 2)",
    ),
    "a delay below 0": (lambda m: _stage(m).update(delays=[0, -1]), "Expected `int` >= 0"),
    "logits of one codebook": (
        lambda m: _graph(m)["outputs"]["logits"].update(shape=["rows", 40]),
        "wanted float32(rows, 2, vocabulary)",
    ),
    "an end of codes": (lambda m: _stage(m).update(ends=[2]), "with `delays` there are no `ends`"),
    "forced codes": (lambda m: _stage(m).update(forced=["language"]), "forced or suppressed tokens"),
    "a prompt of several codes": (lambda m: _stage(m).update(prompt=[40, 40]), "with `delays` it is one id"),
    "strings that stop codes": (
        lambda m: _stage(m)["options"].update(stop="stop"),
        "'stop' cannot be set with `delays`",
    ),
    "fewer codes than the delay": (
        lambda m: (_stage(m).update(count=1), _stage(m)["options"].pop("max_new_tokens")),
        "1 tokens, delayed by 1",
    ),
    "an absent text without a mask": (
        lambda m: (
            m["inputs"]["text"]["tokenize"]["source_ids"].pop("mask"),
            m["graphs"]["encoder"]["inputs"].pop("source_mask"),
        ),
        "a text can be absent only where it has a mask",
    ),
    "texts of codes": (
        lambda m: m.update(outputs={"text": {"kind": "text", "from": "sequences", "file": "target.json"}}),
        "'sequences' is made as int64(?, ?, 2)",
    ),
}


def test_codebooks_are_legal() -> None:
    manifest = manifest_file.decode(json.dumps(_with_codebooks()).encode())
    assert manifest_file.decode(manifest_file.encode(manifest)) == manifest


@pytest.mark.parametrize("name", CODEBOOKS)
def test_codebooks_that_are_refused(name: str) -> None:
    damage, says = CODEBOOKS[name]
    manifest = _with_codebooks()
    damage(manifest)
    with pytest.raises(BundleError) as caught:
        manifest_file.decode(json.dumps(manifest).encode())
    assert says in str(caught.value)


def test_windows_are_legal() -> None:
    manifest = manifest_file.decode(json.dumps(_with_windows()).encode())
    assert manifest_file.decode(manifest_file.encode(manifest)) == manifest


@pytest.mark.parametrize("name", [*DAMAGES, *WINDOWS])
def test_is_refused(name: str) -> None:
    damage, says = (DAMAGES | WINDOWS)[name]
    manifest = _with_windows() if name in WINDOWS else copy.deepcopy(MANIFEST)
    damage(manifest)
    with pytest.raises(BundleError) as caught:
        manifest_file.decode(json.dumps(manifest).encode())
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_carried_between_graphs_may_be_half() -> None:
    changed = copy.deepcopy(MANIFEST)
    _half(changed, "encoder", dtypes={"cross_key_0": "float16"})
    _half(changed, "decoder", dtypes=HALF, islands=[{**ISLAND, "range": [0.0, 1.0]}])
    read = manifest_file.decode(json.dumps(changed).encode())
    assert read.carried() == set(HALF)
    decoder = read.graphs["decoder"]
    whole, half = (decoder.of(variant) for variant in decoder.variants)
    assert whole == decoder
    assert str(half.inputs["key_0"]) == "float16(rows, 2, capacity, 8)"
    assert half.inputs["key_0"] == half.outputs["new_key_0"]
    assert half.inputs["tokens"] == decoder.inputs["tokens"]
    assert half.outputs["logits"] == decoder.outputs["logits"]
