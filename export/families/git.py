"""Pictures to captions, and questions about pictures to answers: GIT (arXiv 2205.14100).

What is seen in a picture stands before the text in one decoder: ids beyond the vocabulary are places in it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from mmrt.export import generation, transformers_reference
from mmrt.export.checkpoint import Checkpoint
from mmrt.export.components import load_model, load_processor
from mmrt.export.decoder import Embed, causal_graph, new_names, with_cache
from mmrt.export.diffusers_reference import test_picture
from mmrt.export.image import Normalize, fit_of
from mmrt.export.recipe import Golden, Graph, Recipe
from mmrt.export.tokenizer import prompt_tokenizer, target_tokenizer
from mmrt.runtime import manifest as m
from mmrt.runtime import media
from mmrt.runtime.errors import ExportError

CLASSES = ("GitForCausalLM",)
_TOKENIZER = "tokenizers/text.json"


def recipe(checkpoint: Checkpoint) -> Recipe:
    """Load the checkpoint and say how it becomes a bundle. Raises `ExportError`."""
    if frames := checkpoint.index.get("num_image_with_embedding"):
        raise ExportError(
            f"{checkpoint.path / 'config.json'}: num_image_with_embedding is {frames}; a model of videos is not "
            "supported, wanted one of single pictures"
        )
    model = load_model(checkpoint, ".", f"transformers.{checkpoint.architecture}")
    processor = load_processor(checkpoint, "AutoImageProcessor")
    return _Model(checkpoint, model, processor, load_processor(checkpoint, "AutoTokenizer")).recipe()


class Encoder(torch.nn.Module):  # type: ignore[misc]
    """pixels uint8 (pictures, height, width, 3) -> features float32 (pictures, places, width)."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.normalize = Normalize(processor)
        self.vision, self.projection = model.git.image_encoder, model.git.visual_projection

    def forward(self, pixels: Any) -> Any:
        return self.projection(self.vision(self.normalize(pixels)).last_hidden_state)


class Decoder(torch.nn.Module):  # type: ignore[misc]
    """The decoder: the first `places` of a row are the picture's and see one another, the text's positions start after.

    All see the picture, which is whole in the caches before anything is looked at.
    """

    def __init__(self, model: Any, places: int) -> None:
        super().__init__()
        self.config, self._supports_sdpa = model.config, False  # adds masks to its scores
        self.embeddings, self.encoder, self.places = model.git.embeddings, model.git.encoder, places

    def forward(
        self,
        inputs_embeds: Any,
        cache: Any,
        use_cache: bool,
        attention_mask: Any | None = None,
        position_ids: Any | None = None,
    ) -> Any:
        if position_ids is not None and attention_mask is not None:
            texts = self.embeddings(
                inputs_embeds=inputs_embeds.clone(), position_ids=(position_ids - self.places).clamp(min=0)
            )
            inputs_embeds = torch.where((position_ids < self.places)[:, :, None], inputs_embeds, texts)
            picture = torch.arange(attention_mask.shape[-1]) < self.places
            attention_mask = torch.where(picture, 0.0, attention_mask)
        return self.encoder(inputs_embeds, attention_mask, use_cache=use_cache, **with_cache(self.encoder, cache))


class _Model:
    """A loaded checkpoint and its sizes."""

    def __init__(self, checkpoint: Checkpoint, model: Any, processor: Any, tokenizer: Any) -> None:
        self.checkpoint, self.model, self.processor, self.tokenizer = checkpoint, model, processor, tokenizer
        self.config = model.generation_config
        self.size = fit_of(checkpoint, processor, model.config.vision_config.image_size)
        self.vocabulary = int(model.config.vocab_size)
        self.places = int(model.git.encoder.layer[0].attention.self.image_patch_tokens)
        self.texts = int(model.config.max_position_embeddings)  # the most tokens of a text
        if self.config.bos_token_id is None:
            raise ExportError(f"{checkpoint.path}: bos_token_id is missing, in generation_config.json and config.json")

    def recipe(self) -> Recipe:
        content, tokenize = self._prompt()
        _, text = target_tokenizer(self.tokenizer, _TOKENIZER)
        pixels = torch.zeros(2, self.size.height, self.size.width, 3, dtype=torch.uint8)
        features = {"features": torch.zeros(2, self.places, int(self.model.config.hidden_size))}
        embed = Embed(self.model.git.get_input_embeddings(), self.vocabulary)
        decoder, layers = causal_graph(embed, Decoder(self.model, self.places), self.model.output, features)
        free = {"pixels": {0: "pictures"}, "features": {0: "pictures"}}
        return Recipe(
            task="image-to-text",
            family="git",
            inputs={
                "image": m.Image(array="pixels", fit=self.size, required=True),
                "text": m.Text(tokenize={"prompt_ids": tokenize}, default=""),
                **generation.inputs(self.config, self.texts - 1, 1),
            },
            outputs={"text": text},
            graphs={
                "encoder": Graph(Encoder(self.model, self.processor), {"pixels": pixels}, ("features",), free),
                "decoder": decoder,
            },
            program=(
                m.Once(graphs=("encoder",)),
                m.Autoregress(
                    graphs=("decoder",),
                    caches=new_names(layers),
                    limit=self.places + self.texts,
                    prompt="prompt_ids",
                    prompt_mask="prompt_mask",
                    options=generation.options(),
                    **generation.fields(self.config),
                ),
            ),
            reference=self._reference,
            components=(".",),
            files={_TOKENIZER: content},
            notes=("The text goes on from `text`, a question or a caption's beginning, which is not said again.",),
        )

    def _prompt(self) -> tuple[bytes, m.Tokenize]:
        """The picture, the first token, and the text without the tokenizer's own special ones."""
        pad = self.tokenizer.pad_token_id
        spec = m.Tokenize(
            file=_TOKENIZER,
            length=self.places + self.texts - 1,
            pad=0 if pad is None else pad,
            mask="prompt_mask",
            before=(*range(self.vocabulary, self.vocabulary + self.places), self.config.bos_token_id),
        )
        return prompt_tokenizer(self.tokenizer, _TOKENIZER, spec, ("", ""), special=False)

    def _reference(self) -> Golden:
        picture = test_picture(96, 72)
        pictures = np.stack([picture, picture[::-1, :, ::-1]])
        images = [Image.fromarray(each) for each in pictures]
        pixels = self.processor(images=images, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            features = self.model.git.visual_projection(self.model.git.image_encoder(pixels).last_hidden_state)
        places = np.arange(self.vocabulary, self.vocabulary + self.places)
        return transformers_reference.causal_reference(
            self.model,
            {"pixel_values": pixels},
            np.tile([*places, self.config.bos_token_id], (2, 1)),
            features={"features": features.numpy()},
            encoder_inputs={"pixels": np.stack([media.fit(image, self.size) for image in images])},
            request={},
            given={"image": pictures},
            room=self.texts - 1,
            unseen=self.places,
        )
