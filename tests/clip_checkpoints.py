"""Tiny random checkpoints of models that make vectors of texts and pictures."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from corpus import MADE, gemma, siglip

EMOJI = Path(__file__).parents[1] / "examples" / "emoji" / "checkpoint" / "tokenizer"
CLASSES = {
    "CLIP": "CLIPModel",
    "SigLIP": "SiglipModel",
    "SigLIP 2": "SiglipModel",
    "SigLIP 2, NaFlex": "Siglip2Model",
    "Chinese CLIP": "ChineseCLIPModel",
}
LENGTH, SIDE = 40, 32


def save(folder: Path, kind: str) -> Path:
    """A tiny random checkpoint of a kind in `CLASSES`; heads, widths and layers differ between its two encoders."""
    import torch
    import transformers

    torch.manual_seed(0)
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    seen = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
    seen |= {"image_size": SIDE, "patch_size": 8}
    sizes = {"size": {"height": SIDE, "width": SIDE}}
    if kind == "SigLIP 2, NaFlex":
        tokenizer = gemma(folder.parent / "tokenizer")
        text |= {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "projection_size": 24}
        del seen["image_size"]
        config = transformers.Siglip2Config(text_config=text, vision_config={**seen, "num_patches": 25})
        processor = _image_processor("siglip2", "Siglip2", patch_size=8, max_num_patches=30)
    elif kind.startswith("SigLIP"):
        tokenizer = (gemma if kind == "SigLIP 2" else siglip)(folder.parent / "tokenizer")
        text |= {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "projection_size": 24}
        config = transformers.SiglipConfig(text_config=text, vision_config=seen)
        processor = _image_processor("siglip", "Siglip", **sizes)
    elif kind == "Chinese CLIP":
        tokenizer = MADE["BERT"](folder.parent / "tokenizer")
        text |= {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "initializer_range": 0.2}
        config = transformers.ChineseCLIPConfig(text_config=text, vision_config=seen, projection_dim=20)
        processor = _image_processor("chinese_clip", "ChineseCLIP", do_center_crop=False, **sizes)
    else:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(EMOJI)
        ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        text |= {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "initializer_factor": 4.0, **ids}
        config = transformers.CLIPConfig(text_config=text, vision_config=seen, projection_dim=16)
        crop = {"height": SIDE, "width": SIDE}
        processor = _image_processor("clip", "CLIP", size={"shortest_edge": SIDE + 5}, crop_size=crop)
    tokenizer.model_max_length = LENGTH
    model = getattr(transformers, CLASSES[kind])(config)
    for each in (model, tokenizer, processor):
        each.save_pretrained(folder)
    return folder


def _image_processor(module: str, name: str, **options: Any) -> Any:
    """The one that works with Pillow."""
    found = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    return getattr(found, f"{name}ImageProcessorPil")(**options)
