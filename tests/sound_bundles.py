"""A small bundle made by hand that makes sounds: noise, as long as a text has words."""

from __future__ import annotations

import json
from pathlib import Path

import bundles
import numpy as np
import onnx
from onnx import TensorProto, helper
from tokenizers import Tokenizer, models, pre_tokenizers

from mmrt.runtime.noise import TorchCpu

RATE, FRAMES, CHANNELS = 8000, 100, 2


def sound(text: str, seed: int, loudness: float) -> np.ndarray:
    """The samples (samples, channels)."""
    return TorchCpu(seed).scattered((CHANNELS, FRAMES * len(text.split()))).T * np.float32(loudness)


def _counter() -> onnx.ModelProto:
    """text_mask -> frames."""
    return bundles.model(
        [
            helper.make_node("Cast", ["text_mask"], ["ones"], to=TensorProto.INT64),
            helper.make_node("ReduceSum", ["ones", "one"], ["count"], keepdims=0),
            helper.make_node("Mul", ["count", "each"], ["frames"]),
        ],
        {"text_mask": (TensorProto.BOOL, ["texts", "tokens"])},
        {"frames": (TensorProto.INT64, ["texts"])},
        {"one": np.array([1]), "each": np.array(FRAMES)},
    )


def _speaker() -> onnx.ModelProto:
    """noise, loudness, frames -> waveform, samples."""
    shape = ["rows", CHANNELS, "frames"]
    return bundles.model(
        [
            helper.make_node("Unsqueeze", ["loudness", "one_two"], ["scale"]),
            helper.make_node("Mul", ["noise", "scale"], ["waveform"]),
            helper.make_node("Identity", ["frames"], ["samples"]),
        ],
        {
            "noise": (TensorProto.FLOAT, shape),
            "loudness": (TensorProto.FLOAT, ["rows"]),
            "frames": (TensorProto.INT64, ["rows"]),
        },
        {"waveform": (TensorProto.FLOAT, shape), "samples": (TensorProto.INT64, ["rows"])},
        {"one_two": np.array([1, 2])},
    )


def manifest() -> bundles.Json:
    """The manifest, without its files."""
    rows, noise = (
        {"dtype": "int64", "shape": ["rows"]},
        {"dtype": "float32", "shape": ["rows", CHANNELS, "frames"]},
    )
    tokenize = {"file": "tokenizers/text.json", "length": 8, "pad": 0, "mask": "text_mask", "needed": True}
    return {
        "format": 1,
        "task": "text-to-speech",
        "name": "noisy",
        "source": {"family": "handmade", "checkpoint": {}, "versions": {"onnx": onnx.__version__}},
        "inputs": {
            "text": {"kind": "text", "tokenize": {"text_ids": tokenize}},
            "loudness": {"kind": "float", "default": 0.25, "min": 0.0, "max": 1.0, "array": "loudness"},
            "num_sounds": {"kind": "count", "max": 8},
            "seed": {"kind": "seed"},
        },
        "outputs": {"audio": {"kind": "audio", "from": "waveform", "rate": RATE, "lengths": "samples"}},
        "graphs": {
            "counter": {
                "inputs": {"text_mask": {"dtype": "bool", "shape": ["texts", "tokens"]}},
                "outputs": {"frames": {"dtype": "int64", "shape": ["texts"]}},
                "variants": [bundles.variant("counter")],
            },
            "speaker": {
                "inputs": {"noise": noise, "loudness": {"dtype": "float32", "shape": ["rows"]}, "frames": rows},
                "outputs": {"waveform": noise, "samples": rows},
                "variants": [bundles.variant("speaker")],
            },
        },
        "program": [
            {"stage": "once", "graphs": ["counter"]},
            {
                "stage": "once",
                "graphs": ["speaker"],
                "draws": {"noise": ["batch", CHANNELS, "frames"]},
                "scattered": ["noise"],
            },
        ],
    }


def build(folder: Path) -> Path:
    """Write the bundle."""
    (folder / "graphs").mkdir(parents=True)
    (folder / "tokenizers").mkdir()
    for name, made in (("counter", _counter()), ("speaker", _speaker())):
        onnx.save_model(made, folder / f"graphs/{name}.fp32.onnx")
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(bundles.WORDS)}))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizers/text.json"))
    wanted = sound("a red heart", 11, 0.5)
    np.savez(folder / "golden.npz", **{"run/heart/out/waveform": wanted.T[None]})
    request = {"text": "a red heart", "seed": 11, "loudness": 0.5}
    receipt = {"source": "tests/sound_bundles.py", "cases": [{"name": "heart", "request": request}]}
    (folder / "receipt.json").write_text(json.dumps(receipt))
    (folder / "manifest.json").write_text(json.dumps(manifest()))
    bundles.relist(folder)
    return folder
