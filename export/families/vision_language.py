"""Pictures and questions to texts: SmolVLM (arXiv 2504.05299) and Idefics3 (arXiv 2408.12637).

A vision transformer's states, four or nine patches in one, stand in the prompt of a language model as its tokens do:
ids beyond the vocabulary are places in them.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmrt.export import generation, transformers_reference
from mmrt.export.checkpoint import Checkpoint
from mmrt.export.components import load_model, load_processor
from mmrt.export.decoder import Embed, causal_graph, new_names
from mmrt.export.diffusers_reference import test_picture
from mmrt.export.image import Normalize, fit
from mmrt.export.recipe import Golden, Graph, Recipe
from mmrt.export.tokenizer import chat_words, prompt_tokenizer, target_tokenizer
from mmrt.runtime import manifest as m
from mmrt.runtime import media
from mmrt.runtime.arrays import AnyArray
from mmrt.runtime.errors import ExportError

CLASSES = ("SmolVLMForConditionalGeneration", "Idefics3ForConditionalGeneration")
_TOKENIZER = "tokenizers/text.json"
_PLACE = "<image>"  # what stands for the picture in a chat template
_MARKS = (("fake_image_token", "<fake_token_around_image>"), ("global_image_token", "<global-img>"))


def claims(checkpoint: Checkpoint) -> bool:
    """Whether config.json names one of the classes."""
    return checkpoint.kind == "transformers" and checkpoint.architecture in CLASSES


def recipe(checkpoint: Checkpoint) -> Recipe:
    """Load the checkpoint and say how it becomes a bundle. Raises `ExportError`."""
    processor = load_processor(checkpoint, "AutoImageProcessor")
    if getattr(processor, "do_image_splitting", False):
        raise ExportError(
            f"{checkpoint.path / 'preprocessor_config.json'}: do_image_splitting is true; pictures that are split are "
            "not supported: in a copy of the checkpoint, set it to false, and each is seen whole"
        )
    model = load_model(checkpoint, ".", f"transformers.{checkpoint.architecture}")
    return _Model(checkpoint, model, processor, load_processor(checkpoint, "AutoTokenizer")).recipe()


class Encoder(torch.nn.Module):  # type: ignore[misc]
    """pixels uint8 (pictures, height, width, 3) -> features float32 (pictures, places, width), as the text model's
    embeddings are. All of a picture is seen, so that its patches' positions are constants."""

    def __init__(self, model: Any, processor: Any, side: int) -> None:
        super().__init__()
        self.normalize = Normalize(processor)
        self.vision, self.connector = model.model.vision_model, model.model.connector
        self.register_buffer("positions", _positions(self.vision, side))

    def forward(self, pixels: Any) -> Any:
        patches = self.vision.embeddings.patch_embedding(self.normalize(pixels)).flatten(2).transpose(1, 2)
        states = self.vision.encoder(inputs_embeds=patches + self.positions, attention_mask=None).last_hidden_state
        return self.connector(self.vision.post_layernorm(states))


def _positions(vision: Any, side: int) -> torch.Tensor:
    """float32 (1, patches, width): the position embeddings of a whole picture, as the model itself looks them up."""
    found: list[torch.Tensor] = []
    hook = vision.embeddings.position_embedding.register_forward_hook(lambda _, __, output: found.append(output))
    patches = side // vision.patch_size
    with torch.no_grad():
        vision.embeddings(torch.zeros(1, 3, side, side), torch.ones(1, patches, patches, dtype=torch.bool))
    hook.remove()
    return found[0]


class _Model:
    """A loaded checkpoint, and what stands around a question."""

    def __init__(self, checkpoint: Checkpoint, model: Any, processor: Any, tokenizer: Any) -> None:
        self.checkpoint, self.model, self.processor, self.tokenizer = checkpoint, model, processor, tokenizer
        self.text = model.config.text_config
        self.vocabulary = int(self.text.vocab_size)
        self.limit = min(int(self.text.max_position_embeddings), 2**20)
        self.size = fit(processor)
        vision = model.config.vision_config
        if (self.size.width, self.size.height) != (vision.image_size,) * 2:
            raise ExportError(
                f"{checkpoint.path / 'preprocessor_config.json'}: pictures become {self.size.width}x{self.size.height}"
                f", wanted {vision.image_size}x{vision.image_size} as config.json says"
            )
        self.places = (vision.image_size // vision.patch_size // model.config.scale_factor) ** 2

    def recipe(self) -> Recipe:
        _, text = target_tokenizer(self.tokenizer, _TOKENIZER)
        content, tokenize = self.tokenized
        pixels = torch.zeros(2, self.size.height, self.size.width, 3, dtype=torch.uint8)
        features = {"features": torch.zeros(2, self.places, int(self.text.hidden_size))}
        model = self.model.model.text_model
        embed = Embed(model.get_input_embeddings(), self.vocabulary)
        decoder, layers = causal_graph(embed, model, self.model.lm_head, features)
        free = {"pixels": {0: "pictures"}, "features": {0: "pictures"}}
        room = self.limit - len(tokenize.before) - len(tokenize.after) - 1
        return Recipe(
            task="image-text-to-text",
            family="vision-language",
            inputs={
                "text": m.Text(tokenize={"prompt_ids": tokenize}),
                "image": m.Image(array="pixels", fit=self.size, required=True),
                **generation.inputs(self.model.generation_config, room, len(tokenize.before) + len(tokenize.after)),
            },
            outputs={"text": text},
            graphs={
                "encoder": Graph(
                    Encoder(self.model, self.processor, self.size.width), {"pixels": pixels}, ("features",), free
                ),
                "decoder": decoder,
            },
            program=(
                m.Once(graphs=("encoder",)),
                m.Autoregress(
                    graphs=("decoder",),
                    caches=new_names(layers),
                    limit=self.limit,
                    prompt="prompt_ids",
                    prompt_mask="prompt_mask",
                    options=generation.options(),
                    **generation.fields(self.model.generation_config),
                ),
            ),
            reference=self._reference,
            components=(".",),
            files={_TOKENIZER: content},
        )

    @cached_property
    def words(self) -> tuple[str, str, str]:
        """What the chat template puts before the picture, between it and the question, and after the question."""
        content = [{"type": "image"}, {"type": "text"}]
        before, after = chat_words(self.checkpoint, self.tokenizer, content)
        if before.count(_PLACE) != 1:
            raise ExportError(f"{self.checkpoint.path}: the chat template's picture is not one {_PLACE!r}: {before!r}")
        start, between = before.split(_PLACE)
        around, whole = (getattr(self.tokenizer, name, default) for name, default in _MARKS)
        return f"{start}{around}{whole}", f"{around}{between}", after

    @cached_property
    def tokenized(self) -> tuple[bytes, m.Tokenize]:
        """The tokenizer's file; questions up to the model's limit, the picture's places before them."""
        start, between, after = self.words
        special = not (self.tokenizer.bos_token and start.startswith(self.tokenizer.bos_token))
        first = self.tokenizer(start, add_special_tokens=special)["input_ids"]
        places = range(self.vocabulary, self.vocabulary + self.places)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        spec = m.Tokenize(file=_TOKENIZER, length=self.limit - 1, pad=pad, mask="prompt_mask", before=(*first, *places))
        return prompt_tokenizer(self.tokenizer, _TOKENIZER, spec, (between, after), special=False)

    def _ids(self, text: str) -> list[int]:
        """The whole prompt as transformers reads it, the picture's token once for each place."""
        start, between, after = self.words
        special = not (self.tokenizer.bos_token and start.startswith(self.tokenizer.bos_token))
        whole = start + _PLACE * self.places + between + text + after
        ids: list[int] = self.tokenizer(whole, add_special_tokens=special)["input_ids"]
        return ids

    def _reference(self) -> Golden:
        """One question about two pictures: the prompts are equally long."""
        text, picture = "What is in the picture?", test_picture(96, 72)
        pictures = np.stack([picture, picture[::-1, :, ::-1]])
        images = [Image.fromarray(each) for each in pictures]
        ids = np.array([self._ids(text)] * 2, np.int64)
        place = self.model.config.image_token_id
        prompt: AnyArray = ids.copy()
        prompt[ids == place] = np.tile(np.arange(self.places) + self.vocabulary, 2)
        pixels = self.processor(images=[[image] for image in images], return_tensors="pt")["pixel_values"]
        features = self.model.get_image_features(pixels).pooler_output
        encoded = {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(ids.shape, dtype=torch.int64)}
        return transformers_reference.causal_reference(
            self.model,
            {**encoded, "pixel_values": pixels},
            prompt,
            features={"features": torch.stack(list(features)).numpy()},
            encoder_inputs={"pixels": np.stack([media.fit(image, self.size) for image in images])},
            request={"text": text},
            given={"image": pictures},
            room=self.limit - ids.shape[1],
        )
