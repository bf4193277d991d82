"""Texts and pictures as vectors in one space: CLIP (arXiv 2103.00020), SigLIP (2303.15343), SigLIP 2 (2502.14786), and
Chinese CLIP.

SigLIP 2 of one size of pictures is of SigLIP's class; the other, NaFlex, sees pictures of any shape as patches.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmrt.export.checkpoint import Checkpoint
from mmrt.export.components import load_model, load_processor
from mmrt.export.image import Normalize, NormalizePatches, fit_of, patches
from mmrt.export.quiet import quiet
from mmrt.export.recipe import Golden, Graph, Recipe
from mmrt.export.tokenizer import source_tokenizer, tokenizer_file
from mmrt.export.towers import TEXTS, TOKENIZER, golden, recipe_of, test_pictures
from mmrt.runtime import manifest as m
from mmrt.runtime import media
from mmrt.runtime.arrays import AnyArray
from mmrt.runtime.errors import ExportError

CLASSES = ("CLIPModel", "SiglipModel", "Siglip2Model", "ChineseCLIPModel")


def recipe(checkpoint: Checkpoint) -> Recipe:
    """Load the checkpoint and say how it becomes a bundle. Raises `ExportError`."""
    model = load_model(checkpoint, ".", f"transformers.{checkpoint.architecture}")
    tokenizer, processor = (load_processor(checkpoint, f"Auto{kind}") for kind in ("Tokenizer", "ImageProcessor"))
    sigmoid = hasattr(model, "logit_bias")
    length = int(model.config.text_config.max_position_embeddings)
    tokenizer.model_max_length = min(tokenizer.model_max_length, length)
    if sigmoid:  # trained with texts that are all padded to one length, the padding seen
        content, tokenize = tokenizer_file(tokenizer, TOKENIZER)
    else:
        content, tokenize = source_tokenizer(tokenizer, TOKENIZER, tokenizer.model_max_length, "text_mask")
    image, see, seen = _pictures(checkpoint, model, processor)
    masked = checkpoint.architecture == "ChineseCLIPModel"
    free = {0: "texts"} if sigmoid else {0: "texts", 1: "tokens"}
    ids = torch.full((2, tokenize.length if sigmoid else 7), tokenize.pad, dtype=torch.int64)
    given = {"text_ids": ids} | ({"text_mask": torch.ones(2, 7, dtype=torch.bool)} if masked else {})
    text = Graph(
        TextEncoder(model), given, ("text_embeds",), dict.fromkeys(given, free) | {"text_embeds": {0: "texts"}}
    )
    pictures = Graph(see, seen, ("image_embeds",), {key: {0: "pictures"} for key in (*seen, "image_embeds")})
    return recipe_of(
        "clip",
        model,
        (content, tokenize),
        image,
        {"text": text, "image": pictures},
        lambda: _reference(model, tokenizer, processor, image),
    )


def _pictures(checkpoint: Checkpoint, model: Any, processor: Any) -> tuple[m.Image, torch.nn.Module, dict[str, Any]]:
    """The input, the encoder, and what it takes, for two pictures."""
    if checkpoint.architecture == "Siglip2Model":
        cut = patches(processor, "patch_shapes")
        if cut.size != int(model.config.vision_config.patch_size):
            raise ExportError(
                f"{checkpoint.path / 'preprocessor_config.json'}: patch_size is {cut.size}, wanted "
                f"{model.config.vision_config.patch_size} as config.json says"
            )
        seen = {
            "patches": torch.zeros(2, cut.most, 3 * cut.size**2, dtype=torch.uint8),
            "patch_shapes": torch.ones(2, 2, dtype=torch.int64),
        }
        return m.Image(array="patches", patches=cut), PatchEncoder(model, processor), seen
    size = fit_of(checkpoint, processor, int(model.config.vision_config.image_size))
    seen = {"pixels": torch.zeros(2, size.height, size.width, 3, dtype=torch.uint8)}
    return m.Image(array="pixels", fit=size), ImageEncoder(model, processor), seen


class TextEncoder(torch.nn.Module):  # type: ignore[misc]
    """text_ids int64 (texts, tokens), and where padding would be seen text_mask bool, true at tokens -> text_embeds
    float32 (texts, width), each of length 1."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, text_ids: Any, text_mask: Any = None) -> Any:
        mask = None if text_mask is None else text_mask.to(torch.int64)
        return _normalized(self.model.get_text_features(input_ids=text_ids, attention_mask=mask))


class ImageEncoder(torch.nn.Module):  # type: ignore[misc]
    """pixels uint8 (pictures, height, width, 3) -> image_embeds float32 (pictures, width), each of length 1."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.normalize = Normalize(processor)
        self.model = model

    def forward(self, pixels: Any) -> Any:
        return _normalized(self.model.get_image_features(pixel_values=self.normalize(pixels)))


class PatchEncoder(torch.nn.Module):  # type: ignore[misc]
    """patches uint8 (pictures, patches, values) and patch_shapes int64 (pictures, 2), rows and columns -> image_embeds
    float32 (pictures, width), each of length 1."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.normalize = NormalizePatches(processor)
        self.model = model

    def forward(self, patches: Any, patch_shapes: Any) -> Any:
        values, mask = self.normalize(patches, patch_shapes)
        features = self.model.get_image_features(
            pixel_values=values, pixel_attention_mask=mask, spatial_shapes=patch_shapes
        )
        return _normalized(features)


def _normalized(features: Any) -> Any:
    vectors = getattr(features, "pooler_output", features)  # transformers 4 gives the vectors alone
    return vectors / vectors.norm(p=2, dim=-1, keepdim=True)


def _reference(model: Any, tokenizer: Any, processor: Any, image: m.Image) -> Golden:
    """What transformers' own processors and forward pass give."""
    images = [Image.fromarray(each) for each in test_pictures()]
    sigmoid = hasattr(model, "logit_bias")
    with quiet(), torch.no_grad():
        padding = "max_length" if sigmoid else True
        encoded = tokenizer(list(TEXTS), padding=padding, truncation=True, return_tensors="pt")
        names = ("input_ids",) if sigmoid else ("input_ids", "attention_mask")  # as its own processor gives them
        found = model(**{name: encoded[name] for name in names}, **processor(images=images, return_tensors="pt"))
    read = {"text_ids": encoded["input_ids"].numpy()}
    if type(model).__name__ == "ChineseCLIPModel":
        read["text_mask"] = encoded["attention_mask"].bool().numpy()
    source = f"transformers {version('transformers')}, torch {torch.__version__}, fp32 on cpu"
    return golden(source, read, _seen(images, image), found.text_embeds.numpy(), found.image_embeds.numpy())


def _seen(images: list[Image.Image], spec: m.Image) -> dict[str, AnyArray]:
    """The arrays that the runtime makes of pictures."""
    if spec.patches is None:
        assert spec.fit is not None
        return {spec.array: np.stack([media.fit(each, spec.fit) for each in images])}
    cut, shapes = media.cut([media.fit_patches(each, spec.patches) for each in images], spec.patches)
    return {spec.array: np.stack(cut), spec.patches.shapes: shapes}
