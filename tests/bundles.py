"""A small bundle made by hand, without torch: its graphs, the same in NumPy, and ways to damage it."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mmrt.runtime.noise import TorchCpu

Json = dict[str, Any]

WORDS = [
    "<s>",
    "</s>",
    "<unk>",
    "a",
    "red",
    "blue",
    "green",
    "heart",
    "car",
    "tree",
    "house",
    "big",
    "small",
    "one",
    "two",
]
LENGTH = 8
CHANNELS = 4
FACTOR = 8
SAMPLERS: dict[str, Json] = {
    "ddim": {"kind": "ddim"},
    "ddpm": {"kind": "ddpm"},
    "pndm": {"kind": "pndm"},
    "euler": {"kind": "euler"},
    "euler_ancestral": {"kind": "euler_ancestral"},
    "heun": {"kind": "heun"},
    "lms": {"kind": "lms"},
    "dpmpp_2m": {"kind": "dpmpp_2m"},
    "dpmpp_2m_karras": {"kind": "dpmpp_2m", "sigmas": "karras"},
    "dpmpp_2m_sde": {"kind": "dpmpp_2m_sde"},
    "unipc": {"kind": "unipc"},
    "deis": {"kind": "deis"},
    "lcm": {"kind": "lcm"},
}
SCHEDULE: Json = {
    "prediction": "epsilon",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "train_steps": 1000,
}

_random = np.random.default_rng(20261123)


def _weights(*shape: int) -> np.ndarray:
    return _random.normal(0, 0.5, shape).astype(np.float32)


TABLE = _weights(len(WORDS), CHANNELS)
MIX = _weights(CHANNELS, CHANNELS)
TO_RGB = _weights(CHANNELS, 3)
FROM_RGB = _weights(3, CHANNELS)
PREVIEW = [*TO_RGB.tolist(), [0.0, 0.0, 0.0]]


# ---------------------------------------------------------------- the graphs, in NumPy


def encode_ids(prompt_ids: np.ndarray) -> np.ndarray:
    """Embeddings of ids: context (texts, length, channels)."""
    return TABLE[prompt_ids]


def denoise(latents: np.ndarray, timestep: np.ndarray, context: np.ndarray) -> np.ndarray:
    """The prediction: tanh of mixed channels, the mean of the context and the timestep, and some of the latents."""
    mixed = np.einsum("bchw,cd->bdhw", latents, MIX)
    conditioned = mixed + context.mean(axis=1)[:, :, None, None] + timestep[:, None, None, None] / 1000
    return (np.tanh(conditioned) + 0.5 * latents).astype(np.float32)


def decode(latents: np.ndarray) -> np.ndarray:
    """Pixels: a linear map to RGB, each latent a square of 8 x 8."""
    rgb = np.einsum("bchw,cr->bhwr", latents, TO_RGB).repeat(FACTOR, axis=1).repeat(FACTOR, axis=2)
    return (np.clip(rgb * 0.5 + 0.5, 0, 1) * 255).round().astype(np.uint8)


def encode_pixels(image_pixels: np.ndarray, posterior_noise: np.ndarray) -> np.ndarray:
    """Latents: means of squares of 8 x 8, a linear map, and a little noise."""
    batch, height, width, _ = image_pixels.shape
    squares = (image_pixels.astype(np.float32) / 127.5 - 1).reshape(batch, height // 8, 8, width // 8, 8, 3)
    return (np.einsum("bhwr,rc->bchw", squares.mean(axis=(2, 4)), FROM_RGB) + 0.1 * posterior_noise).astype(np.float32)


def ids(*texts: str) -> np.ndarray:
    """What the tokenizer makes of texts of known words."""
    rows = [[0, *(WORDS.index(word) for word in text.split()), 1] for text in texts]
    return np.array([(row + [1] * LENGTH)[:LENGTH] for row in rows], np.int64)


def ddim(prompt: str, negative: str, guidance: float, steps: int, seed: int, shape: tuple[int, int]) -> np.ndarray:
    """The latents of one picture by DDIM as arXiv 2010.02502, equation 12, has it, with leading timesteps."""
    alpha_bar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    context = encode_ids(ids(negative, prompt))
    x = TorchCpu(seed).normal((CHANNELS, *shape))[None]
    for t in [step * (1000 // steps) for step in range(steps)][::-1]:
        unconditional, conditional = denoise(np.concatenate([x, x]), np.full(2, t, np.float32), context)
        noise = unconditional + guidance * (conditional - unconditional)
        now, after = alpha_bar[t], alpha_bar[t - 1000 // steps] if t >= 1000 // steps else 1.0
        clean = (x - math.sqrt(1 - now) * noise) / math.sqrt(now)
        x = (math.sqrt(after) * clean + math.sqrt(1 - after) * noise).astype(np.float32)
    return x


# ---------------------------------------------------------------- the graphs, in ONNX


def text_encoder() -> onnx.ModelProto:
    """prompt_ids -> context."""
    return model(
        [helper.make_node("Gather", ["table", "prompt_ids"], ["context"])],
        {"prompt_ids": (TensorProto.INT64, ["batch", LENGTH])},
        {"context": (TensorProto.FLOAT, ["batch", LENGTH, CHANNELS])},
        {"table": TABLE},
    )


def denoiser() -> onnx.ModelProto:
    """latents, timestep, context -> prediction."""
    latents = (TensorProto.FLOAT, ["batch", CHANNELS, "height", "width"])
    return model(
        [
            helper.make_node("Conv", ["latents", "mix"], ["mixed"]),
            helper.make_node("ReduceMean", ["context", "one"], ["mean"], keepdims=0),
            helper.make_node("Unsqueeze", ["mean", "two_three"], ["mean_4d"]),
            helper.make_node("Unsqueeze", ["timestep", "one_two_three"], ["timestep_4d"]),
            helper.make_node("Div", ["timestep_4d", "thousand"], ["time"]),
            helper.make_node("Sum", ["mixed", "mean_4d", "time"], ["conditioned"]),
            helper.make_node("Tanh", ["conditioned"], ["tanh"]),
            helper.make_node("Mul", ["latents", "half"], ["some"]),
            helper.make_node("Add", ["tanh", "some"], ["prediction"]),
        ],
        {
            "latents": latents,
            "timestep": (TensorProto.FLOAT, ["batch"]),
            "context": (TensorProto.FLOAT, ["batch", LENGTH, CHANNELS]),
        },
        {"prediction": latents},
        {
            "mix": MIX.T[:, :, None, None],
            "one": np.array([1]),
            "two_three": np.array([2, 3]),
            "one_two_three": np.array([1, 2, 3]),
            "thousand": np.float32(1000),
            "half": np.float32(0.5),
        },
    )


def decoder() -> onnx.ModelProto:
    """latents -> pixels."""
    return model(
        [
            helper.make_node("Conv", ["latents", "to_rgb"], ["rgb"]),
            helper.make_node(
                "Resize",
                ["rgb", "", "scales"],
                ["large"],
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            ),
            helper.make_node("Transpose", ["large"], ["last"], perm=[0, 2, 3, 1]),
            helper.make_node("Mul", ["last", "half"], ["halved"]),
            helper.make_node("Add", ["halved", "half"], ["shifted"]),
            helper.make_node("Clip", ["shifted", "zero", "unit"], ["clipped"]),
            helper.make_node("Mul", ["clipped", "most"], ["scaled"]),
            helper.make_node("Round", ["scaled"], ["rounded"]),
            helper.make_node("Cast", ["rounded"], ["pixels"], to=TensorProto.UINT8),
        ],
        {"latents": (TensorProto.FLOAT, ["batch", CHANNELS, "h", "w"])},
        {"pixels": (TensorProto.UINT8, ["batch", "height", "width", 3])},
        {
            "to_rgb": TO_RGB.T[:, :, None, None],
            "scales": np.array([1, 1, FACTOR, FACTOR], np.float32),
            "half": np.float32(0.5),
            "zero": np.float32(0),
            "unit": np.float32(1),
            "most": np.float32(255),
        },
    )


def image_encoder() -> onnx.ModelProto:
    """image_pixels, posterior_noise -> image_latents."""
    latents = (TensorProto.FLOAT, ["batch", CHANNELS, "h", "w"])
    return model(
        [
            helper.make_node("Cast", ["image_pixels"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["floats", "half_white"], ["scaled"]),
            helper.make_node("Sub", ["scaled", "unit"], ["shifted"]),
            helper.make_node("Transpose", ["shifted"], ["first"], perm=[0, 3, 1, 2]),
            helper.make_node(
                "AveragePool", ["first"], ["small"], kernel_shape=[FACTOR, FACTOR], strides=[FACTOR, FACTOR]
            ),
            helper.make_node("Conv", ["small", "from_rgb"], ["mean"]),
            helper.make_node("Mul", ["posterior_noise", "tenth"], ["spread"]),
            helper.make_node("Add", ["mean", "spread"], ["image_latents"]),
        ],
        {"image_pixels": (TensorProto.UINT8, ["batch", "height", "width", 3]), "posterior_noise": latents},
        {"image_latents": latents},
        {
            "half_white": np.float32(127.5),
            "unit": np.float32(1),
            "from_rgb": FROM_RGB.T[:, :, None, None],
            "tenth": np.float32(0.1),
        },
    )


Border = dict[str, tuple[int, list[Any]]]


def model(
    nodes: Sequence[onnx.NodeProto], inputs: Border, outputs: Border, weights: dict[str, np.ndarray] | None = None
) -> onnx.ModelProto:
    """An ONNX model of opset 20."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [helper.make_tensor_value_info(name, *spec) for name, spec in outputs.items()],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


# ---------------------------------------------------------------- the bundle


def tokenizer() -> Tokenizer:
    """Whole words between `<s>` and `</s>`."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return made


def manifest() -> Json:
    """The manifest, without its files."""
    latents = ["batch", CHANNELS, "height", "width"]
    drawn = ["batch", CHANNELS, {"of": ["height"], "per": FACTOR}, {"of": ["width"], "per": FACTOR}]
    context = {"dtype": "float32", "shape": ["batch", LENGTH, CHANNELS]}
    small = {"dtype": "float32", "shape": ["batch", CHANNELS, "h", "w"]}
    pixels = {"dtype": "uint8", "shape": ["batch", "height", "width", 3]}
    return {
        "format": 1,
        "task": "text-to-image",
        "name": "handmade",
        "source": {"family": "handmade", "checkpoint": {}, "versions": {"onnx": onnx.__version__}},
        "inputs": {
            "prompt": {
                "kind": "text",
                "tokenize": {"prompt_ids": {"file": "tokenizers/prompt.json", "length": LENGTH, "pad": 1}},
                "negative": "negative_prompt",
            },
            "negative_prompt": {"kind": "text", "default": ""},
            "image": {"kind": "image", "array": "image_pixels"},
            "strength": {"kind": "float", "default": 0.75, "min": 0.0, "max": 1.0},
            "steps": {"kind": "int", "default": 4, "min": 1, "max": 1000},
            "guidance": {"kind": "float", "default": 3.0, "min": 0.0, "max": 50.0},
            "guidance_rescale": {"kind": "float", "default": 0.0, "min": 0.0, "max": 1.0},
            "sampler": {"kind": "choice", "default": "ddim", "choices": list(SAMPLERS)},
            "size": {"kind": "size", "default": [32, 24], "multiple": FACTOR, "max": 4096},
            "num_images": {"kind": "count", "max": 4096},
            "generator": {"kind": "choice", "default": "cpu", "choices": ["cpu", "cuda"]},
            "seed": {"kind": "seed", "generator": "generator"},
        },
        "outputs": {"image": {"kind": "image", "from": "pixels"}},
        "graphs": {
            "text_encoder": {
                "inputs": {"prompt_ids": {"dtype": "int64", "shape": ["batch", LENGTH]}},
                "outputs": {"context": context},
                "variants": [variant("text_encoder")],
            },
            "denoiser": {
                "inputs": {
                    "latents": {"dtype": "float32", "shape": latents},
                    "timestep": {"dtype": "float32", "shape": ["batch"]},
                    "context": context,
                },
                "outputs": {"prediction": {"dtype": "float32", "shape": latents}},
                "variants": [variant("denoiser")],
            },
            "decoder": {"inputs": {"latents": small}, "outputs": {"pixels": pixels}, "variants": [variant("decoder")]},
            "image_encoder": {
                "inputs": {"image_pixels": pixels, "posterior_noise": small},
                "outputs": {"image_latents": small},
                "variants": [variant("image_encoder")],
            },
        },
        "program": [
            {"stage": "once", "graphs": ["text_encoder"]},
            {"stage": "once", "graphs": ["image_encoder"], "when": "image", "draws": {"posterior_noise": drawn}},
            {
                "stage": "diffuse",
                "graphs": ["denoiser"],
                "latents": drawn,
                "schedule": SCHEDULE,
                "samplers": SAMPLERS,
                "sampler": "sampler",
                "steps": "steps",
                "guidance": {"kind": "classifier-free", "scale": "guidance", "rescale": "guidance_rescale"},
                "start": "image_latents",
                "strength": "strength",
                "preview": PREVIEW,
            },
            {"stage": "once", "graphs": ["decoder"]},
        ],
    }


def variant(graph: str) -> Json:
    """The one variant of a graph."""
    return {"engine": "onnx", "precision": "fp32", "file": f"graphs/{graph}.fp32.onnx"}


def golden() -> tuple[dict[str, np.ndarray], Json]:
    """The golden arrays, computed here, and the receipt."""
    random = np.random.default_rng(7)
    latents = random.normal(size=(2, CHANNELS, 3, 4)).astype(np.float32)
    timestep = np.array([999, 1], np.float32)
    prompt_ids = ids("a red heart", "blue car")
    context = encode_ids(prompt_ids)
    picture = random.integers(0, 256, (2, 24, 32, 3)).astype(np.uint8)
    final = ddim("a red heart", "blue", 3.0, 4, 11, (3, 4))
    arrays = {
        "graph/text_encoder/0/in/prompt_ids": prompt_ids,
        "graph/text_encoder/0/out/context": context,
        "graph/denoiser/0/in/latents": latents,
        "graph/denoiser/0/in/timestep": timestep,
        "graph/denoiser/0/in/context": context,
        "graph/denoiser/0/out/prediction": denoise(latents, timestep, context),
        "graph/decoder/0/in/latents": latents,
        "graph/decoder/0/out/pixels": decode(latents),
        "graph/image_encoder/0/in/image_pixels": picture,
        "graph/image_encoder/0/in/posterior_noise": latents,
        "graph/image_encoder/0/out/image_latents": encode_pixels(picture, latents),
        "run/heart/out/latents": final,
        "run/heart/out/pixels": decode(final),
    }
    request = {"prompt": "a red heart", "negative_prompt": "blue", "guidance": 3.0, "steps": 4, "seed": 11}
    return arrays, {"source": "tests/bundles.py", "cases": [{"name": "heart", "request": request}]}


def build(folder: Path) -> Path:
    """Write the bundle."""
    (folder / "graphs").mkdir(parents=True)
    (folder / "tokenizers").mkdir()
    for make in (text_encoder, denoiser, decoder, image_encoder):
        path = folder / f"graphs/{make.__name__}.fp32.onnx"
        beside = make is denoiser
        onnx.save_model(
            make(),
            path,
            save_as_external_data=beside,
            location=f"{path.name}.data" if beside else None,
            size_threshold=64,
        )
    tokenizer().save(str(folder / "tokenizers/prompt.json"))
    arrays, receipt = golden()
    np.savez(folder / "golden.npz", **arrays)
    (folder / "receipt.json").write_text(json.dumps(receipt))
    (folder / "manifest.json").write_text(json.dumps(manifest()))
    relist(folder)
    return folder


# ---------------------------------------------------------------- damage


def copy(bundle: Path, folder: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(bundle, folder / "damaged.mmrt"))


@contextmanager
def edited(bundle: Path) -> Iterator[Json]:
    """The manifest as JSON; it is written back, right or wrong."""
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    yield document
    path.write_text(json.dumps(document))


def relist(bundle: Path) -> None:
    """List the files that lie there with their true sizes and hashes, as who changed them would."""
    with edited(bundle) as document:
        document["files"] = {
            str(path.relative_to(bundle)): {
                "bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path in sorted(bundle.rglob("*"))
            if path.is_file() and path.name != "manifest.json"
        }


def rewrite(bundle: Path, name: str, data: bytes) -> None:
    """Replace or add a file, and list it."""
    (bundle / name).write_bytes(data)
    relist(bundle)


def regraph(bundle: Path, name: str, change: Callable[[onnx.ModelProto], None]) -> None:
    """Change a graph's ONNX file, and list it."""
    path = bundle / f"graphs/{name}.fp32.onnx"
    loaded = onnx.load(path, load_external_data=False)
    change(loaded)
    rewrite(bundle, str(path.relative_to(bundle)), loaded.SerializeToString())


def regolden(bundle: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Change the golden arrays, and list them."""
    with np.load(bundle / "golden.npz") as archive:
        arrays = dict(archive)
    change(arrays)
    np.savez(bundle / "golden.npz", **arrays)
    relist(bundle)
