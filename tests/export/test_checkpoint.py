"""Damaged and foreign checkpoints: one line that names the thing, and nothing written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

import torch
from safetensors.torch import load_file, save_file

from mmrt.export.checkpoint import Checkpoint
from mmrt.export.exporter import export
from mmrt.runtime.errors import ExportError

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def edit_json(name: str, **values: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return damage


def edit_weights(name: str, key: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / name)
        changed = change(tensors.pop(key))
        save_file(tensors if changed is None else tensors | {key: changed}, folder / name, {"format": "pt"})

    return damage


def remove(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def cut(name: str, length: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:length])

    return damage


def drop_tokenizer_files(folder: Path) -> None:
    for path in (folder / "tokenizer").iterdir():
        path.unlink()


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no index": (remove("model_index.json"), "neither model_index.json nor config.json"),
    "index is not JSON": (cut("model_index.json", 40), "model_index.json: not JSON"),
    "another pipeline": (
        edit_json("model_index.json", _class_name="StableDiffusionXLPipeline"),
        "_class_name is 'StableDiffusionXLPipeline', supported are .*StableDiffusionPipeline",
    ),
    "no class": (edit_json("model_index.json", _class_name=None), "_class_name is None"),
    "custom code": (
        edit_json("model_index.json", _class_name=["my_pipeline", "MyPipeline"]),
        r"_class_name is \['my_pipeline', 'MyPipeline'\]",
    ),
    "custom component": (edit_json("model_index.json", unet=["evil", "UNet"]), "unet is evil.UNet, supported"),
    "no text encoder": (remove("text_encoder"), "text_encoder: the folder of this component is missing"),
    "no UNet in the index": (edit_json("model_index.json", unet=[None, None]), "unet is None.None"),
    "config is not JSON": (cut("unet/config.json", 30), "unet/config.json: not JSON"),
    "config is a list": (lambda folder: (folder / "vae/config.json").write_text("[]") and None, "wanted an object"),
    "no config": (remove("vae/config.json"), "vae/config.json: cannot be read"),
    "no weights": (remove(UNET), "unet: has no weights"),
    "cut weights": (cut(UNET, 5000), "not a whole safetensors file"),
    "cut header": (cut(VAE, 4), "not a whole safetensors file"),
    "missing UNet weight": (edit_weights(UNET, "conv_in.bias", lambda _: None), "weights are missing: conv_in.bias"),
    "missing text weight": (
        edit_weights(TEXT, "final_layer_norm.bias", lambda _: None),
        "weights are missing: .*final_layer_norm.bias",
    ),
    "wrong shape": (edit_weights(UNET, "conv_in.bias", lambda t: t[:5]), "cannot be loaded from it: .*conv_in.bias"),
    "wrong shape in text encoder": (
        edit_weights(TEXT, "final_layer_norm.bias", lambda t: t[:5].clone()),
        "text_encoder: transformers.CLIPTextModel cannot be loaded",
    ),
    "NaN": (edit_weights(UNET, "conv_out.bias", lambda t: t * torch.nan), "conv_out.bias holds NaN or infinite"),
    "infinity": (edit_weights(VAE, "decoder.conv_out.bias", lambda t: t + torch.inf), "conv_out.bias holds NaN or inf"),
    "no tokenizer": (remove("tokenizer"), "tokenizer: the folder of this component is missing"),
    "empty tokenizer": (drop_tokenizer_files, "tokenizer"),
    "too few embeddings": (edit_json("text_encoder/config.json", vocab_size=100), "text_encoder"),
    "too long prompts": (edit_json("tokenizer/tokenizer_config.json", model_max_length=77), "model_max_length is 77"),
    "widths that do not fit": (
        edit_json("unet/config.json", cross_attention_dim=32),
        "cross_attention_dim is 32, wanted 16",
    ),
    "inpainting": (edit_json("unet/config.json", in_channels=9), "in_channels is 9, supported is 4.*inpainting"),
    "class embeddings": (edit_json("unet/config.json", class_embed_type="timestep"), "class_embed_type is 'timestep'"),
    "SDXL embeddings": (edit_json("unet/config.json", addition_embed_type="text_time"), "addition_embed_type"),
    "masked text": (edit_json("text_encoder/config.json", use_attention_mask=True), "use_attention_mask is True"),
    "unknown scheduler": (
        edit_json("model_index.json", scheduler=["diffusers", "NoSuchScheduler"]),
        "scheduler is 'NoSuchScheduler', which diffusers .* does not have",
    ),
    "unsupported scheduler": (
        edit_json("model_index.json", scheduler=["diffusers", "VQDiffusionScheduler"]),
        "VQDiffusionScheduler",
    ),
    "no scheduler config": (remove("scheduler"), "scheduler_config.json: cannot be read"),
    "grey pictures": (edit_json("vae/config.json", out_channels=1), "vae"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_line_and_nothing_is_written(name: str, sd1_checkpoint: Path, tmp_path: Path) -> None:
    damage, message = DAMAGES[name]
    folder = tmp_path / "checkpoint"
    shutil.copytree(sd1_checkpoint, folder)
    damage(folder)
    output = tmp_path / "out"
    output.mkdir()
    with pytest.raises(ExportError, match=message) as caught:
        list(export(folder, output / "thing.mmrt"))
    assert "\n" not in str(caught.value)
    assert list(output.iterdir()) == []


def test_a_folder_that_is_none() -> None:
    with pytest.raises(ExportError, match="no such checkpoint"):
        Checkpoint("/nowhere/at/all")
    with pytest.raises(ExportError, match="not a folder"):
        Checkpoint(__file__)


def test_a_transformers_model_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["UnknownModel"]}')
    with pytest.raises(ExportError, match=r"architectures is \['UnknownModel'\], supported are"):
        export(tmp_path, tmp_path / "x.mmrt")


SOUNDS = "which makes sounds of texts"
OTHERS: dict[str, str] = {  # classes of transformers that are not supported, and what is said of them
    "SpeechT5ForTextToSpeech": f"{SOUNDS}: its decoder goes on from frames of numbers, .*MusicgenFor.*, VitsModel$",
    "BarkModel": f"{SOUNDS}; supported of these are MusicgenForConditionalGeneration, VitsModel$",
    "Wav2Vec2ForCTC": "which makes texts of speech; supported of these are WhisperForConditionalGeneration$",
    "PaliGemmaForConditionalGeneration": "makes texts of pictures; supported of these are .*SmolVLMForConditionalGen",
    "Qwen2VLForConditionalGeneration": "makes texts of pictures; supported of these are .*SmolVLMForConditionalGen",
    "GPT2LMHeadModel": "texts with a decoder alone, of which none is supported, supported are StableDiffusionPipe",
    "LlamaForCausalLM": "texts with a decoder alone, of which none is supported, supported are StableDiffusionPipe",
    "Qwen2ForCausalLM": "texts with a decoder alone, of which none is supported, supported are StableDiffusionPipe",
    "Wav2Vec2Model": "supported are StableDiffusionPipeline",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": [name]}))
    message = rf"^{re.escape(str(folder))}/config\.json: architectures is \['{name}'\], .*{OTHERS[name]}"
    with pytest.raises(ExportError, match=message) as caught:
        export(folder, tmp_path / "thing.mmrt")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [folder]


def test_hashes_and_variants(sd1_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(sd1_checkpoint, folder)
    assert Checkpoint(folder).hashes("unet").keys() == {UNET}
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert Checkpoint(folder).weights("unet").variant == "fp16"


def test_links_to_files_are_followed(sd1_checkpoint: Path, tmp_path: Path) -> None:
    """The hub's cache keeps files as links to blobs."""
    folder, blobs = tmp_path / "checkpoint", tmp_path / "blobs"
    blobs.mkdir()
    shutil.copytree(sd1_checkpoint, folder)
    (folder / UNET).rename(blobs / "abc")
    (folder / UNET).symlink_to(blobs / "abc")
    assert Checkpoint(folder).hashes("unet") == Checkpoint(sd1_checkpoint).hashes("unet")


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\ntags:\n- x\nlicense: creativeml-openrail-m\n---\n# Hi", "creativeml-openrail-m"),
        ("---\nlicense: other\nlicense_name: my-own\n---\n", "my-own"),
        ("# license: none\n", None),
    ],
)
def test_the_licence_is_the_front_matters(tmp_path: Path, text: str, licence: str | None) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text(text)
    assert Checkpoint(tmp_path).licence == licence
