"""Tiny random checkpoints of BLIP, for captions and for answers, and of GIT; and pictures to show to models."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from corpus import MADE
from PIL import Image

from mmrt.runtime.events import Token
from mmrt.runtime.pipeline import Pipeline

POSITIONS = 128


def blip_captions(folder: Path) -> Path:
    """Two layers; the start's token is beyond the tokenizer's vocabulary, as in the checkpoints that there are."""
    return _blip(folder, "BlipForConditionalGeneration", end=-5.0, layers=2, heads=4)


def blip_answers(folder: Path) -> Path:
    return _blip(folder, "BlipForQuestionAnswering", end=-4.0, layers=1, heads=2)


def git(folder: Path) -> Path:
    """One width of what is seen and another of the text; pictures become squares by cutting."""
    import torch
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    tokenizer = _tokenizer(folder)
    start, end = tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]"])
    config = transformers.GitConfig(
        vision_config={
            "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3,
            "image_size": 32, "patch_size": 8, "initializer_range": 0.3,
        },
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=POSITIONS, initializer_range=0.3, bos_token_id=start, eos_token_id=end, pad_token_id=0,
    )  # fmt: skip
    model = transformers.GitForCausalLM(config)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    return _save(folder, model, model.output.weight, end, -3.0, processor, tokenizer)


def _blip(folder: Path, kind: str, end: float, layers: int, heads: int) -> Path:
    import torch
    import transformers
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    torch.manual_seed(0)
    tokenizer = _tokenizer(folder)
    sep = tokenizer.convert_tokens_to_ids("[SEP]")
    config = transformers.BlipConfig(
        text_config={
            "vocab_size": len(tokenizer) + 2, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers,
            "num_attention_heads": heads, "max_position_embeddings": POSITIONS, "initializer_range": 0.3,
            "bos_token_id": len(tokenizer), "sep_token_id": sep, "pad_token_id": 0, "tie_word_embeddings": False,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": 48, "patch_size": 16, "initializer_range": 0.3,
        },
        tie_word_embeddings=False,
    )  # fmt: skip
    model = getattr(transformers, kind)(config)
    processor = BlipImageProcessorPil(size={"height": 48, "width": 48})
    output = model.text_decoder.get_output_embeddings().weight
    return _save(folder, model, output, sep, end, processor, tokenizer)


def _save(folder: Path, model: Any, output: Any, end: int, weight: float, *processors: Any) -> Path:
    """Write all. The end's output weights become so many times as large, that it does come."""
    import torch

    with torch.no_grad():
        output[end] *= weight
    for each in (model, *processors):
        each.save_pretrained(folder)
    return folder


def _tokenizer(folder: Path) -> Any:
    made = MADE["BERT"](folder.parent / "tokenizer")
    made.model_max_length = POSITIONS
    return made


CHECKPOINTS: dict[str, Callable[[Path], Path]] = {"BLIP": blip_captions, "BLIP, answers": blip_answers, "GIT": git}


@cache
def pictures() -> list[Image.Image]:
    """Coloured patches: wide, tall, small, square."""
    rng = np.random.default_rng(0)
    sizes = [(170, 50), (47, 133), (20, 13), (96, 96)]
    return [Image.fromarray(rng.integers(0, 255, (3, 4, 3), np.uint8)).resize(size) for size in sizes]


def written(pipeline: Pipeline, **inputs: Any) -> list[tuple[int, ...]]:
    """The tokens of each result, as they stream."""
    tokens: dict[int, list[int]] = {}
    for event in pipeline.stream(**inputs):
        if isinstance(event, Token):
            tokens.setdefault(event.index, []).extend([event.id] if event.id is not None else [])
    return [tuple(tokens[index]) for index in sorted(tokens)]
