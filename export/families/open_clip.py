"""Checkpoints of open_clip: an `open_clip_config.json` with weights beside it, computed by the library itself.

The towers that open_clip builds of its own parts: vision transformers and ResNets, its text transformer, its tokenizer.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmrt.export.checkpoint import Checkpoint
from mmrt.export.components import finite
from mmrt.export.image import Normalize
from mmrt.export.open_clip_library import open_clip
from mmrt.export.quiet import quiet
from mmrt.export.recipe import Golden, Graph, Recipe
from mmrt.export.tokenizer import open_clip_tokenizer
from mmrt.export.towers import TEXTS, TOKENIZER, golden, recipe_of, test_pictures
from mmrt.runtime import manifest as m
from mmrt.runtime import media
from mmrt.runtime.errors import ExportError

CLASSES = ("open_clip",)
_CONFIG = "open_clip_config.json"
_FOREIGN = {  # what of a configuration names the code of other libraries, or another kind of model
    "vision_cfg": ("timm_model_name",),
    "text_cfg": ("hf_model_name", "hf_tokenizer_name", "embed_cls", "tokenizer_mode"),
}


def recipe(checkpoint: Checkpoint) -> Recipe:
    """Load the checkpoint and say how it becomes a bundle. Raises `ExportError`."""
    _check(checkpoint)
    model, tokenizer = _load(checkpoint)
    tower = getattr(model, "text", model)
    short = tower.attn_mask is not None and _pooling(tower) == "argmax"  # padding is never seen
    tokenized = open_clip_tokenizer(tokenizer, TOKENIZER, mask="text_mask" if short else None)
    size, normalize = _pictures(checkpoint, model.visual.preprocess_cfg)
    free = {0: "texts", 1: "tokens"} if short else {0: "texts"}
    ids = torch.full((2, 7 if short else tokenized[1].length), tokenized[1].pad, dtype=torch.int64)
    graphs = {
        "text": Graph(
            ShortTextEncoder(model) if short else TextEncoder(model),
            {"text_ids": ids},
            ("text_embeds",),
            {"text_ids": free, "text_embeds": {0: "texts"}},
        ),
        "image": Graph(
            ImageEncoder(model, normalize),
            {"pixels": torch.zeros(2, size.height, size.width, 3, dtype=torch.uint8)},
            ("image_embeds",),
            {key: {0: "pictures"} for key in ("pixels", "image_embeds")},
        ),
    }
    image = m.Image(array="pixels", fit=size)
    return recipe_of(
        "open-clip", model, tokenized, image, graphs, lambda: _reference(model, tokenizer, size, normalize)
    )


def _check(checkpoint: Checkpoint) -> None:
    """That the configuration is of open_clip's own parts alone."""
    file, config = checkpoint.path / _CONFIG, checkpoint.index.get("model_cfg")
    if not isinstance(config, dict):
        raise ExportError(f"{file}: model_cfg is missing")
    if "multimodal_cfg" in config:
        raise ExportError(f"{file}: multimodal_cfg is there; CoCa is not supported")
    for part, fields in _FOREIGN.items():
        if not isinstance(config.get(part), dict):
            raise ExportError(f"{file}: model_cfg.{part} is missing")
        if named := [field for field in fields if config[part].get(field)]:
            raise ExportError(
                f"{file}: {part}.{named[0]} is {config[part][named[0]]!r}; supported are the towers that open_clip "
                "builds itself, with its own tokenizer"
            )


def _load(checkpoint: Checkpoint) -> tuple[Any, Any]:
    """The model with all its weights, in fp32 and eval mode, and its tokenizer."""
    library, weights = open_clip(), checkpoint.weights(".")
    try:
        with quiet():
            model = library.create_model(f"local-dir:{checkpoint.path}", load_weights=False)
            library.load_checkpoint(model, str(weights.files[0]), strict=True, weights_only=True)
            tokenizer = library.get_tokenizer(f"local-dir:{checkpoint.path}")
    except Exception as error:  # the library raises of everything
        text = " ".join(str(error).split())[:300]
        raise ExportError(f"{checkpoint.path}: open_clip cannot load it: {type(error).__name__}: {text}") from error
    finite(model, weights.files[0])
    return model.float().eval().requires_grad_(False), tokenizer


def _pictures(checkpoint: Checkpoint, config: dict[str, Any]) -> tuple[m.Fit, Normalize]:
    """What open_clip's transforms do: to which size, and then."""
    sides = config["size"] if isinstance(config["size"], list | tuple) else (config["size"],) * 2
    height, width = map(int, sides)
    resample: Any = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
    if config["resize_mode"] == "squash":
        size = m.Fit(width=width, height=height, resample=resample)
    elif config["resize_mode"] == "longest":
        size = m.Fit(width=width, height=height, resample=resample, around=int(config["fill_color"]))
    elif width == height:
        size = m.Fit(width=width, height=height, resample=resample, shortest=width, middle="rounded")
    else:
        raise ExportError(f"{checkpoint.path / _CONFIG}: pictures of {width}x{height} cut to size are not supported")
    mean, std = (
        [each] * 3 if isinstance(each, int | float) else list(each) for each in (config["mean"], config["std"])
    )
    processor = SimpleNamespace(
        image_mean=mean, image_std=std, do_normalize=True, do_rescale=True, rescale_factor=1 / 255
    )
    return size, Normalize(processor)


def _pooling(tower: Any) -> str:
    return str(getattr(tower, "text_pool_type", None) or tower.pool_type)


class TextEncoder(torch.nn.Module):  # type: ignore[misc]
    """text_ids int64 (texts, tokens), all of one length -> text_embeds float32 (texts, width), each of length 1."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, text_ids: Any) -> Any:
        return self.model.encode_text(text_ids, normalize=True)


class ShortTextEncoder(torch.nn.Module):  # type: ignore[misc]
    """The same of a tower that never looks ahead, and texts as long as they are: open_clip fills them up."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = getattr(model, "text", model)

    def forward(self, text_ids: Any) -> Any:
        tower, length = self.tower, text_ids.shape[1]
        states = tower.token_embedding(text_ids) + tower.positional_embedding[:length]
        states = tower.ln_final(tower.transformer(states, attn_mask=tower.attn_mask[:length, :length]))
        vectors = states[torch.arange(states.shape[0]), text_ids.argmax(dim=-1)]  # the end's id is the highest
        if isinstance(tower.text_projection, torch.nn.Linear):
            vectors = tower.text_projection(vectors)
        elif tower.text_projection is not None:
            vectors = vectors @ tower.text_projection
        return torch.nn.functional.normalize(vectors, dim=-1)


class ImageEncoder(torch.nn.Module):  # type: ignore[misc]
    """pixels uint8 (pictures, height, width, 3) -> image_embeds float32 (pictures, width), each of length 1."""

    def __init__(self, model: Any, normalize: Normalize) -> None:
        super().__init__()
        self.model, self.normalize = model, normalize

    def forward(self, pixels: Any) -> Any:
        return self.model.encode_image(self.normalize(pixels), normalize=True)


def _reference(model: Any, tokenizer: Any, size: m.Fit, normalize: Normalize) -> Golden:
    """What open_clip's own tokenizer and forward pass give, of texts in their full length."""
    pixels = np.stack([media.fit(Image.fromarray(each), size) for each in test_pictures()])
    with quiet(), torch.no_grad():
        ids = tokenizer(list(TEXTS))
        text = model.encode_text(ids, normalize=True).numpy()
        image = model.encode_image(normalize(torch.from_numpy(pixels)), normalize=True).numpy()
    source = f"open_clip {open_clip().__version__}, torch {torch.__version__}, fp32 on cpu"
    return golden(source, {"text_ids": ids.numpy()}, {"pixels": pixels}, text, image)
