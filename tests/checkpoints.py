"""Tiny random checkpoints with the architectures of Stable Diffusion 1.x and 2.x."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mmrt.runtime import manifest as m
from mmrt.runtime.bundle import Bundle

PROMPTS = ["a red heart", "the blue car drives home", "a green tree by the red house"]
SD1: dict[str, Any] = {
    "unet": {
        "attention_head_dim": 2,
        "cross_attention_dim": 16,
        "block_out_channels": (8, 16),
        "sample_size": 8,
    },
    "text": {"hidden_size": 16, "hidden_act": "quick_gelu"},
    "scheduler": (
        "PNDMScheduler",
        {
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "skip_prk_steps": True,
            "steps_offset": 1,
        },
    ),
}

SD2: dict[str, Any] = {
    "unet": {
        "attention_head_dim": [2, 4],
        "cross_attention_dim": 24,
        "block_out_channels": (8, 16),
        "sample_size": 12,
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "text": {"hidden_size": 24, "hidden_act": "gelu"},
    "vae_levels": 3,
    "scheduler": (
        "DDIMScheduler",
        {
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "prediction_type": "v_prediction",
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
        },
    ),
}


def save_checkpoint(
    folder: Path,
    unet: dict[str, Any],
    text: dict[str, Any],
    scheduler: tuple[str, dict[str, Any]],
    vae: dict[str, Any] | None = None,
    vae_levels: int = 4,
    seed: int = 0,
) -> Path:
    """Write a StableDiffusionPipeline with random weights; the dictionaries add to the usual configs.

    A VAE of 4 levels has the usual factor of 8 pixels a latent.
    """
    pytest.importorskip("diffusers")
    import diffusers
    import torch
    import transformers

    torch.manual_seed(seed)
    tokenizer = save_tokenizer(folder.parent / "tokenizer", PROMPTS)
    unet_model = diffusers.UNet2DConditionModel(
        **{
            "in_channels": 4,
            "out_channels": 4,
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "norm_num_groups": 4,
            **unet,
        }
    )
    vae_model = diffusers.AutoencoderKL(
        **{
            "block_out_channels": (8,) * vae_levels,
            "down_block_types": ("DownEncoderBlock2D",) * vae_levels,
            "up_block_types": ("UpDecoderBlock2D",) * vae_levels,
            "latent_channels": 4,
            "norm_num_groups": 4,
            "sample_size": 64,
            **(vae or {}),
        }
    )
    text_config = transformers.CLIPTextConfig(
        **{
            "vocab_size": len(tokenizer),
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": tokenizer.model_max_length,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **text,
        }
    )
    name, options = scheduler
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae_model,
        text_encoder=transformers.CLIPTextModel(text_config),
        tokenizer=tokenizer,
        unet=unet_model,
        scheduler=getattr(diffusers, name)(**options),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path, texts: Iterable[str], length: int = 16) -> Any:
    """A byte-level CLIP tokenizer whose merges spell the words of `texts`; it knows every byte, so any language."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    vocabulary = letters + [letter + "</w>" for letter in letters]
    merges: list[str] = []
    for word in sorted({word for text in texts for word in text.split()}):
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merge = f"{pieces[0]} {pieces[1]}"
            pieces[:2] = ["".join(pieces[:2])]
            if merge not in merges:
                merges.append(merge)
                vocabulary.append(pieces[0])
    vocabulary = [*dict.fromkeys(vocabulary), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token: number for number, token in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": length}), encoding="utf-8"
    )
    return CLIPTokenizer.from_pretrained(folder)


def export_bundle(checkpoint: Path, output: Path) -> Path:
    """Export to the end; where torch and diffusers are missing, the test is skipped."""
    pytest.importorskip("diffusers")
    from mmrt.export.exporter import export

    for _ in export(checkpoint, output):
        pass
    return output


def exports(folders: pytest.TempPathFactory, save: Callable[[Path, str], Path]) -> Callable[[str], tuple[Path, Path]]:
    """Of each kind the checkpoint that `save` makes, and its bundle, made when first asked for."""
    from mmrt.export.quiet import quiet

    @cache
    def made(kind: str) -> tuple[Path, Path]:
        folder = folders.mktemp("exports")
        with quiet():
            checkpoint = save(folder / "checkpoint", kind)
        return checkpoint, export_bundle(checkpoint, folder / "bundle.mmrt")

    return made


@contextmanager
def graphs_of(bundle: Path) -> Iterator[None]:
    """Exports without torch's slow part: their graphs in fp32 are taken from a bundle that there is."""
    from mmrt.export import exporter

    def copy(folder: Path, name: str, graph: object) -> m.Graph:
        found = Bundle(bundle).manifest.graphs[name]
        shutil.copy(bundle / found.variants[0].file, folder / "graphs")
        return msgspec.structs.replace(found, variants=found.variants[:1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "_write_graph", copy)
        yield


def export_half(checkpoint: Path, bundle: Path, output: Path, precision: str = "fp32,fp16") -> Path:
    """Export in fp32 and in 16 bits, with the graphs of a bundle of the checkpoint."""
    from mmrt.export.exporter import export

    with graphs_of(bundle):
        for _ in export(checkpoint, output, precision=precision):
            pass
    return output
