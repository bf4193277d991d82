"""Pictures and questions to texts: SmolVLM (arXiv 2504.05299) and Idefics3 (arXiv 2408.12637).

A picture is cut into tiles, and seen as a whole once more. A vision transformer's states of each, four or nine patches
in one, stand in the prompt of a language model as its tokens do: ids beyond the vocabulary are places in them.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import torch
import transformers
from PIL import Image

from mmrt.export import generation, transformers_reference
from mmrt.export.checkpoint import Checkpoint
from mmrt.export.components import load_model, load_processor
from mmrt.export.decoder import LookUp, causal_graph, new_names
from mmrt.export.diffusers_reference import test_picture
from mmrt.export.image import Normalize, split
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


def recipe(checkpoint: Checkpoint) -> Recipe:
    """Load the checkpoint and say how it becomes a bundle. Raises `ExportError`."""
    processor = load_processor(checkpoint, "AutoImageProcessor")
    model = load_model(checkpoint, ".", f"transformers.{checkpoint.architecture}")
    return _Model(checkpoint, model, processor, load_processor(checkpoint, "AutoTokenizer")).recipe()


class Encoder(torch.nn.Module):  # type: ignore[misc]
    """pixels uint8 (tiles, size, size, 3) -> features float32 (tiles, places, width), as the text model's embeddings
    are. All of a tile is seen, so that its patches' positions are constants."""

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
        vision = model.config.vision_config
        self.split = split(checkpoint, processor, int(vision.image_size))
        self.places = (vision.image_size // vision.patch_size // model.config.scale_factor) ** 2

    def recipe(self) -> Recipe:
        _, text = target_tokenizer(self.tokenizer, _TOKENIZER)
        content, tokenize = self.tokenized
        size = self.split.size
        pixels = torch.zeros(2, size, size, 3, dtype=torch.uint8)
        features = {"features": torch.zeros(3, self.places, int(self.text.hidden_size))}
        model = self.model.model.text_model
        embed = LookUp(model.get_input_embeddings(), self.vocabulary)
        decoder, layers = causal_graph(embed, model, self.model.lm_head, features, of="tiles")
        free = {"pixels": {0: "tiles"}, "features": {0: "tiles"}}
        shortest = len(tokenize.before) + len(tokenize.after) + len(self._ids(self.alone))
        room = self.limit - shortest - 1
        if self.limit <= self.split.most * self.places:
            raise ExportError(
                f"{self.checkpoint.path}: a picture can have {self.split.most * self.places} places of the model's "
                f"{self.limit}: lower longest_edge in preprocessor_config.json of a copy"
            )
        return Recipe(
            task="image-text-to-text",
            family="vision-language",
            inputs={
                "text": m.Text(tokenize={"prompt_ids": tokenize}),
                "image": m.Image(array="pixels", split=self.split, required=True),
                **generation.inputs(self.model.generation_config, room, shortest),
            },
            outputs={"text": text},
            graphs={
                "encoder": Graph(Encoder(self.model, self.processor, size), {"pixels": pixels}, ("features",), free),
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
    def words(self) -> tuple[str, str]:
        """What the chat template puts before and after the question, with one word for the picture."""
        content = [{"type": "image"}, {"type": "text"}]
        before, after = chat_words(self.checkpoint, self.tokenizer, content)
        if before.count(_PLACE) != 1:
            raise ExportError(f"{self.checkpoint.path}: the chat template's picture is not one {_PLACE!r}: {before!r}")
        return before, after

    @cached_property
    def alone(self) -> str:
        """What stands for a picture of one tile."""
        around, whole = self.marks
        return f"{around}{whole}{_PLACE * self.places}{around}"

    @cached_property
    def marks(self) -> tuple[str, str]:
        """The words around pictures, and before the whole of one."""
        around, whole = (getattr(self.tokenizer, name, default) for name, default in _MARKS)
        return around, whole

    @cached_property
    def tokenized(self) -> tuple[bytes, m.Tokenize]:
        """The tokenizer's file; questions up to the model's limit, and how a picture stands before them."""
        before, after = self.words
        around, whole = self.marks
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        spec = m.Tokenize(file=_TOKENIZER, length=self.limit - 1, pad=pad, mask="prompt_mask")
        shown = before.replace(_PLACE, self.alone)
        content, spec = prompt_tokenizer(self.tokenizer, _TOKENIZER, spec, (shown, after), self.special)
        placing = m.Placing(
            image="image",
            word=_PLACE,
            token=self.model.config.image_token_id,
            places=self.places,
            first=self.vocabulary,
            alone=f"{around}{whole}{{}}{around}",
            tile=f"{around}<row_{{row}}_col_{{column}}>{{}}",
            line="\n",
            last=f"\n{around}{whole}{{}}{around}",
        )
        return content, msgspec.structs.replace(spec, prefix=before, picture=placing)

    @property
    def special(self) -> bool:
        """Whether the tokenizer adds its own special tokens, which a template may already have put there."""
        return not (self.tokenizer.bos_token and self.words[0].startswith(self.tokenizer.bos_token))

    def _ids(self, picture: str) -> list[int]:
        """A prompt without a question."""
        before, after = self.words
        whole = before.replace(_PLACE, picture) + after
        ids: list[int] = self.tokenizer(whole, add_special_tokens=False)["input_ids"]
        return ids

    def _reference(self) -> Golden:
        """One question about two pictures: the prompts are equally long. transformers' own processor makes them."""
        text, picture = "What is in the picture?", test_picture(96, 72)
        pictures = np.stack([picture, picture[::-1, :, ::-1]])
        images = [Image.fromarray(each) for each in pictures]
        before, after = self.words
        processor = transformers.Idefics3Processor(self.processor, self.tokenizer, image_seq_len=self.places)
        encoded = processor(
            text=[before + text + after] * 2,
            images=[[image] for image in images],
            add_special_tokens=self.special,
            return_tensors="pt",
        )
        prompt: AnyArray = encoded["input_ids"].numpy().copy()
        places = prompt == self.model.config.image_token_id
        prompt[places] = np.arange(places.sum()) + self.vocabulary
        features = torch.cat(
            self.model.get_image_features(encoded["pixel_values"], encoded.get("pixel_attention_mask")).pooler_output
        )
        fitted = [media.fit_split(image, self.split) for image in images]
        return transformers_reference.causal_reference(
            self.model,
            encoded,
            prompt,
            features={"features": features.reshape(-1, self.places, features.shape[-1]).numpy()},
            encoder_inputs={"pixels": np.concatenate([media.split(each, self.split) for each in fitted])},
            request={"text": text},
            given={"image": pictures},
            room=self.limit - prompt.shape[1],
        )
