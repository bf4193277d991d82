"""Exported graphs against torch: every size, batch and number of texts, with weights inside the file or beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import mmrt  # noqa: E402
from mmrt.export.checkpoint import Checkpoint  # noqa: E402
from mmrt.export.components import load_model  # noqa: E402
from mmrt.export.graph import write_onnx  # noqa: E402
from mmrt.export.recipe import Graph  # noqa: E402
from mmrt.runtime import manifest  # noqa: E402
from mmrt.runtime.engines.onnx import OnnxEngine  # noqa: E402
from mmrt.runtime.engines.onnx_file import external_files  # noqa: E402

SIZES = [(1, 8, 8), (2, 9, 9), (3, 5, 7), (1, 1, 1), (1, 16, 4), (5, 2, 3)]  # batch, latent height, latent width


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def pair(request: pytest.FixtureRequest) -> tuple[mmrt.Pipeline, Checkpoint]:
    """A loaded bundle and the checkpoint that it came from."""
    bundle = request.getfixturevalue(f"{request.param}_bundle")
    return mmrt.load(bundle), Checkpoint(request.getfixturevalue(f"{request.param}_checkpoint"))


def random(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def test_denoiser_is_the_unet(pair: tuple[mmrt.Pipeline, Checkpoint]) -> None:
    pipeline, checkpoint = pair
    unet = load_model(checkpoint, "unet", "diffusers.UNet2DConditionModel")
    width = unet.config.cross_attention_dim
    for batch, height, w in SIZES:
        inputs = {"latents": random(batch, 4, height, w), "timestep": np.full(batch, 501, np.float32)}
        inputs["context"] = random(batch, 16, width)
        with torch.no_grad():
            wanted = unet(
                torch.tensor(inputs["latents"]), torch.tensor(501), torch.tensor(inputs["context"]), return_dict=False
            )[0]
        found = pipeline.engines["denoiser"].run(inputs)["prediction"]
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_decoder_is_the_vae_and_its_rounding(pair: tuple[mmrt.Pipeline, Checkpoint]) -> None:
    from diffusers.image_processor import VaeImageProcessor

    pipeline, checkpoint = pair
    vae = load_model(checkpoint, "vae", "diffusers.AutoencoderKL")
    for size in SIZES:
        latents = random(size[0], 4, *size[1:])
        with torch.no_grad():
            rgb = vae.decode(torch.tensor(latents) / vae.config.scaling_factor, return_dict=False)[0]
        wanted = np.stack([np.asarray(image) for image in VaeImageProcessor().postprocess(rgb)])
        found = pipeline.engines["decoder"].run({"latents": latents})["pixels"]
        assert found.dtype == np.uint8
        assert np.abs(found.astype(int) - wanted).max() <= 1
        assert (found != wanted).mean() < 0.01


def test_image_encoder_is_the_vaes_posterior(pair: tuple[mmrt.Pipeline, Checkpoint]) -> None:
    pipeline, checkpoint = pair
    vae = load_model(checkpoint, "vae", "diffusers.AutoencoderKL")
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    for batch, height, width in SIZES:
        pixels = np.random.default_rng(1).integers(0, 256, (batch, height * factor, width * factor, 3), np.uint8)
        noise = random(batch, 4, height, width)
        with torch.no_grad():
            posterior = vae.encode(torch.tensor(pixels).permute(0, 3, 1, 2) / 255 * 2 - 1).latent_dist
            wanted = (posterior.mean + posterior.std * torch.tensor(noise)) * vae.config.scaling_factor
        found = pipeline.engines["image_encoder"].run({"image_pixels": pixels, "posterior_noise": noise})
        np.testing.assert_allclose(found["image_latents"], wanted.numpy(), atol=1e-5)


def test_text_encoder_takes_any_number_of_texts(pair: tuple[mmrt.Pipeline, Checkpoint]) -> None:
    pipeline, checkpoint = pair
    model = load_model(checkpoint, "text_encoder", "transformers.CLIPTextModel")
    for texts in (1, 2, 5):
        ids = np.random.default_rng(texts).integers(0, 500, (texts, 16))
        with torch.no_grad():
            wanted = model(torch.tensor(ids))[0]
        found = pipeline.engines["text_encoder"].run({"prompt_ids": ids})["context"]
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_files_tell_nothing_of_the_machine(sd1_bundle: Path) -> None:
    for file in (sd1_bundle / "graphs").iterdir():
        assert b"site-packages" not in file.read_bytes()
        assert b'File "' not in file.read_bytes()


class _Scaled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(1024.0))

    def forward(self, x: Any) -> Any:
        return x * self.weight


def small_graph(free: dict[str, dict[int, str]]) -> Graph:
    return Graph(_Scaled(), {"x": torch.zeros(3, 1024)}, ("y",), free)


@pytest.mark.parametrize(("embedded", "beside"), [(1 << 20, set()), (0, {"scaled.onnx.data"})])
def test_weights_over_the_limit_lie_beside(tmp_path: Path, embedded: int, beside: set[str]) -> None:
    path = tmp_path / "scaled.onnx"
    free = {"x": {0: "batch"}, "y": {0: "batch"}}
    inputs, outputs = write_onnx("scaled", small_graph(free), path, embedded)
    assert external_files(path) == beside
    assert {file.name for file in tmp_path.iterdir()} == {"scaled.onnx", *beside}
    assert inputs == {"x": manifest.Array(dtype="float32", shape=("batch", 1024))}
    variant = manifest.Variant(engine="onnx", precision="fp32", file="scaled.onnx")
    engine = OnnxEngine("scaled", manifest.Graph(inputs=inputs, outputs=outputs, variants=(variant,)), path)
    x = random(1, 1024)
    np.testing.assert_array_equal(engine.run({"x": x})["y"], x * np.arange(1024, dtype=np.float32))


@pytest.mark.parametrize(
    ("free", "message"),
    [
        ({"x": {0: "batch"}}, "dimension 0 of 'y' is free"),
        ({"x": {1: "width"}}, "scaled: torch cannot export this graph"),
        ({"y": {0: "batch"}}, "dimension 0 of 'y' was fixed to 3, wanted free 'batch'"),
    ],
)
def test_dimensions_that_come_out_otherwise_are_refused(
    tmp_path: Path, free: dict[str, dict[int, str]], message: str
) -> None:
    with pytest.raises(mmrt.ExportError, match=message):
        write_onnx("scaled", small_graph(free), tmp_path / "scaled.onnx")


class _Recurrent(torch.nn.Module):  # type: ignore[misc]
    """Sequences through a recurrent layer, from a start that is given: all that it makes."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, states: Any, start: Any) -> Any:
        start = start.transpose(0, 1).contiguous()
        if isinstance(self.layer, torch.nn.GRU):
            made, end = self.layer(states, start)
            return made, end.transpose(0, 1)
        made, ends = self.layer(states, (start, start / 2))
        return made, torch.cat(ends).transpose(0, 1)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_recurrent_layers_take_any_length(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = _Recurrent(getattr(torch.nn, kind)(5, 4, batch_first=True, **options)).eval()
    free = {name: {0: "rows"} for name in ("start", "ends")}
    free |= {name: {0: "rows", 1: "tokens"} for name in ("states", "made")}
    layers = 4 if options else 1
    example = {"states": torch.randn(2, 7, 5), "start": torch.randn(2, layers, 4)}
    inputs, outputs = write_onnx("layer", Graph(module, example, ("made", "ends"), free), tmp_path / "layer.onnx")
    variant = manifest.Variant(engine="onnx", precision="fp32", file="layer.onnx")
    graph = manifest.Graph(inputs=inputs, outputs=outputs, variants=(variant,))
    engine = OnnxEngine("layer", graph, tmp_path / "layer.onnx")
    for length in (1, 7, 30):
        given = {"states": torch.randn(3, length, 5), "start": torch.randn(3, layers, 4)}
        with torch.no_grad():
            wanted = module(**given)
        found = engine.run({name: tensor.numpy() for name, tensor in given.items()})
        for name, tensor in zip(("made", "ends"), wanted, strict=True):
            np.testing.assert_allclose(found[name], tensor.numpy(), atol=1e-5)


class _Turned(torch.nn.Module):
    """Pixels in and out, turned as most people turn them: as uint8."""

    def forward(self, pixels: Any) -> Any:
        planes = pixels.permute(0, 3, 1, 2).float() * 0.5
        return planes.round().to(torch.uint8).permute(0, 2, 3, 1), pixels.transpose(1, 2)


def test_pixels_are_cast_at_the_borders(tmp_path: Path) -> None:
    free = {name: {0: "batch"} for name in ("pixels", "half", "flipped")}
    example = torch.randint(0, 256, (2, 4, 6, 3), dtype=torch.uint8)
    graph = Graph(_Turned(), {"pixels": example}, ("half", "flipped"), free)
    inputs, outputs = write_onnx("turned", graph, tmp_path / "turned.onnx")
    nodes = onnx.load(tmp_path / "turned.onnx").graph.node
    taken = [node.op_type for node in nodes if "pixels" in node.input]
    assert sorted(taken) == ["Cast", "Transpose"]  # what is only turned stays as it is
    assert next(node.op_type for node in nodes if "half" in node.output) == "Cast"
    variant = manifest.Variant(engine="onnx", precision="fp32", file="turned.onnx")
    spec = manifest.Graph(inputs=inputs, outputs=outputs, variants=(variant,))
    found = OnnxEngine("turned", spec, tmp_path / "turned.onnx").run({"pixels": example.numpy()})
    np.testing.assert_array_equal(found["half"], (example.float() * 0.5).round().to(torch.uint8).numpy())
    np.testing.assert_array_equal(found["flipped"], example.transpose(1, 2).numpy())
