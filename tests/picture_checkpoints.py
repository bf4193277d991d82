"""Tiny random checkpoints of BLIP, for captions and for answers, and of GIT; and pictures to show to models.

Layer counts, heads, widths and activations differ among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from corpus import MADE
from PIL import Image

from mmrt.runtime.events import Token
from mmrt.runtime.pipeline import Pipeline

POSITIONS = 128


def git(
    folder: Path, end: float, vision: Mapping[str, Any] = MappingProxyType({}), crop: int = 32, **text: Any
) -> Path:
    """One width of what is seen and another of the text; pictures become squares by cutting."""
    import torch
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    tokenizer = _tokenizer(folder)
    start, sep = tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]"])
    config = transformers.GitConfig(
        vision_config={
            "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3,
            "image_size": crop, "patch_size": 8, "initializer_range": 0.3, **vision,
        },
        vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, initializer_range=0.3, pad_token_id=0,
        bos_token_id=start, eos_token_id=sep,
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, **text},
    )  # fmt: skip
    model = transformers.GitForCausalLM(config)
    processor = CLIPImageProcessorPil(size={"shortest_edge": crop + 4}, crop_size={"height": crop, "width": crop})
    return _save(folder, model, model.output.weight, sep, end, processor, tokenizer)


def blip(
    folder: Path, kind: str, end: float, vision: Mapping[str, Any] = MappingProxyType({}), side: int = 48, **text: Any
) -> Path:
    """The start's token is beyond the tokenizer's vocabulary, as in the checkpoints that there are."""
    import torch
    import transformers
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    torch.manual_seed(0)
    tokenizer = _tokenizer(folder)
    sep = tokenizer.convert_tokens_to_ids("[SEP]")
    config = transformers.BlipConfig(
        text_config={
            "vocab_size": len(tokenizer) + 2, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": POSITIONS, "initializer_range": 0.3,
            "bos_token_id": len(tokenizer), "sep_token_id": sep, "pad_token_id": 0, "tie_word_embeddings": False,
            **text,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": side, "patch_size": 16, "initializer_range": 0.3, **vision,
        },
        tie_word_embeddings=False,
    )  # fmt: skip
    model = getattr(transformers, kind)(config)
    processor = BlipImageProcessorPil(size={"height": side, "width": side})
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


_captions = partial(blip, kind="BlipForConditionalGeneration")
_answers = partial(blip, kind="BlipForQuestionAnswering")
CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "BLIP": partial(_captions, end=-5.0),
    "BLIP, answers": partial(_answers, end=-4.0, num_hidden_layers=1, num_attention_heads=2),
    "GIT": partial(git, end=-3.0),
}
OTHERS: dict[str, Callable[[Path], Path]] = {
    "BLIP, narrow": partial(
        _captions, end=-3.0, side=32, vision={"num_hidden_layers": 1, "hidden_act": "relu", "layer_norm_eps": 1e-3},
        hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=3, hidden_act="relu",
    ),
    "BLIP, deep": partial(
        _captions, end=-5.0, vision={"patch_size": 8, "num_attention_heads": 2}, hidden_size=40, num_hidden_layers=3,
        num_attention_heads=5, layer_norm_eps=1e-3, initializer_range=0.6,
    ),
    "BLIP, narrow answers": partial(
        _answers, end=5.0, vision={"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1},
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, hidden_act="relu", initializer_range=0.2,
    ),
    "BLIP, deep answers": partial(
        _answers, end=2.5, vision={"hidden_size": 40, "num_hidden_layers": 1}, hidden_size=40, num_hidden_layers=3,
        num_attention_heads=5, layer_norm_eps=1e-3, initializer_range=0.2,
    ),
    "GIT, narrow": partial(
        git, end=-3.0, crop=24, vision={"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2},
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, hidden_act="relu",
    ),
    "GIT, deep": partial(
        git, end=-3.0, vision={"patch_size": 16, "hidden_act": "gelu"}, hidden_size=40, num_hidden_layers=3,
        num_attention_heads=5, layer_norm_eps=1e-3,
    ),
}  # fmt: skip


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
