"""Pictures to texts: transformers' `VisionEncoderDecoderModel`, such as ViT with GPT-2 or BERT, Swin with BART, TrOCR.

Captioning (arXiv 1411.4555 in kind), reading (TrOCR, arXiv 2109.10282).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from mmrt.export import generation, transformers_reference
from mmrt.export.checkpoint import Checkpoint
from mmrt.export.components import load_model, load_processor
from mmrt.export.decoder import cross_attention, decoder_graph, names, new_names
from mmrt.export.diffusers_reference import test_picture
from mmrt.export.image import Normalize, fit
from mmrt.export.recipe import Golden, Graph, Recipe
from mmrt.export.tokenizer import target_tokenizer
from mmrt.runtime import manifest as m
from mmrt.runtime import media
from mmrt.runtime.errors import ExportError

CLASSES = ("VisionEncoderDecoderModel",)
_TOKENIZER = "tokenizers/text.json"


def recipe(checkpoint: Checkpoint) -> Recipe:
    """Load the checkpoint and say how it becomes a bundle. Raises `ExportError`."""
    model = load_model(checkpoint, ".", f"transformers.{checkpoint.architecture}")
    processor = load_processor(checkpoint, "AutoImageProcessor")
    content, text = target_tokenizer(load_processor(checkpoint, "AutoTokenizer"), _TOKENIZER)
    config, size = model.generation_config, fit(processor)
    start = config.decoder_start_token_id if config.decoder_start_token_id is not None else config.bos_token_id
    if start is None:
        raise ExportError(
            f"{checkpoint.path}: neither decoder_start_token_id nor bos_token_id is in generation_config.json"
        )
    forced = (config.forced_bos_token_id,) if config.forced_bos_token_id is not None else ()
    limit = int(model.decoder.config.max_position_embeddings)
    seen = getattr(model.decoder.config, "cross_attention_hidden_size", None) or model.decoder.config.hidden_size
    decoder, layers = decoder_graph(model.decoder, seen, masked=False)
    pixels = torch.zeros(2, size.height, size.width, 3, dtype=torch.uint8)
    cross = names("cross_", layers)
    batch = {0: "pictures"}
    return Recipe(
        task="image-to-text",
        family="captioning",
        inputs={
            "image": m.Image(array="pixels", fit=size, required=True),
            **generation.inputs(config, limit - 1, 1),
        },
        outputs={"text": text},
        graphs={
            "encoder": Graph(
                Encoder(model, processor), {"pixels": pixels}, cross, dict.fromkeys(("pixels", *cross), batch)
            ),
            "decoder": decoder,
        },
        program=(
            m.Once(graphs=("encoder",)),
            m.Autoregress(
                graphs=("decoder",),
                caches=new_names(layers),
                limit=limit,
                prompt=(start,),
                options=generation.options(),
                forced=forced,
                **generation.fields(config),
            ),
        ),
        reference=lambda: _reference(model, processor, size, limit - 1),
        components=(".",),
        files={_TOKENIZER: content},
    )


class Encoder(torch.nn.Module):  # type: ignore[misc]
    """pixels uint8 (pictures, height, width, 3) -> the decoder's keys and values of what the encoder sees in them."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.normalize = Normalize(processor)
        self.model = model

    def forward(self, pixels: Any) -> Any:
        states = self.model.encoder(self.normalize(pixels)).last_hidden_state
        if hasattr(self.model, "enc_to_dec_proj"):
            states = self.model.enc_to_dec_proj(states)
        return cross_attention(self.model.decoder, states)


def _reference(model: Any, processor: Any, size: m.Fit, room: int) -> Golden:
    picture = test_picture(96, 72)
    pictures = np.stack([picture, picture[::-1, :, ::-1]])
    images = [Image.fromarray(each) for each in pictures]
    return transformers_reference.reference(
        model,
        {"pixel_values": processor(images=images, return_tensors="pt")["pixel_values"]},
        {"pixels": np.stack([media.fit(image, size) for image in images])},
        request={},
        given={"image": pictures},
        room=room,
    )
