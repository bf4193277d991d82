"""Pictures to captions, and questions about pictures to answers: BLIP (arXiv 2201.12086)."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmrt.export import generation, transformers_reference
from mmrt.export.checkpoint import Checkpoint
from mmrt.export.components import load_model, load_processor
from mmrt.export.decoder import cross_attention, decoder_graph, mask_for, names, new_names, spread, with_cache
from mmrt.export.diffusers_reference import test_picture
from mmrt.export.image import Normalize, fit_of
from mmrt.export.recipe import Golden, Graph, Recipe
from mmrt.export.tokenizer import prompt_tokenizer, source_tokenizer, target_tokenizer
from mmrt.runtime import manifest as m
from mmrt.runtime import media
from mmrt.runtime.errors import ExportError

CLASSES = ("BlipForConditionalGeneration", "BlipForQuestionAnswering")
_TOKENIZER = "tokenizers/text.json"


def recipe(checkpoint: Checkpoint) -> Recipe:
    """Load the checkpoint and say how it becomes a bundle. Raises `ExportError`."""
    model = load_model(checkpoint, ".", f"transformers.{checkpoint.architecture}")
    processor = load_processor(checkpoint, "AutoImageProcessor")
    tokenizer = load_processor(checkpoint, "AutoTokenizer")
    if checkpoint.architecture == "BlipForQuestionAnswering":
        return _Answers(checkpoint, model, processor, tokenizer).recipe()
    return _Captions(checkpoint, model, processor, tokenizer).recipe()


# ---------------------------------------------------------------- modules


class Decoder(torch.nn.Module):  # type: ignore[misc]
    """A text decoder whose rows each have their own positions: those at which its cache writes.

    Its attention to the source loses the mask on the way in transformers 5 (`BlipTextAttention` gives it on by another
    name), where that only matters for sources of several lengths: it is given here.
    """

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder
        self._supports_sdpa = decoder._supports_sdpa
        for layer in decoder.bert.encoder.layer:
            layer.crossattention.self.register_forward_pre_hook(_with_source_mask, with_kwargs=True)

    def forward(self, input_ids: Any, cache: Any, **rest: Any) -> Any:
        layers = cache.self_attention_cache.layers
        if layers:  # one that is filled for the first time has none
            rest["position_ids"] = layers[0].positions[:, None] + torch.arange(input_ids.shape[1])
        return self.decoder(input_ids=input_ids, **with_cache(self.decoder, cache), **rest)


def _with_source_mask(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "encoder_attention_mask": kwargs["attention_mask"]}


class Vision(torch.nn.Module):  # type: ignore[misc]
    """pixels uint8 (pictures, height, width, 3) -> picture_states float32 (pictures, patches and one, width)."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.normalize = Normalize(processor)
        self.model = model.vision_model

    def forward(self, pixels: Any) -> Any:
        return self.model(pixel_values=self.normalize(pixels)).last_hidden_state


class Picture(torch.nn.Module):  # type: ignore[misc]
    """pixels uint8 (pictures, height, width, 3) -> the decoder's keys and values of what is seen in them."""

    def __init__(self, vision: Vision, decoder: Decoder) -> None:
        super().__init__()
        self.vision, self.decoder = vision, decoder

    def forward(self, pixels: Any) -> Any:
        return cross_attention(self.decoder, self.vision(pixels))


class Question(torch.nn.Module):  # type: ignore[misc]
    """picture_states float32 (rows, patches and one, width), source_ids int64 (rows, source), source_mask bool, true at
    tokens -> the decoder's keys and values of the questions, read with an eye on the pictures."""

    def __init__(self, encoder: Any, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, picture_states: Any, source_ids: Any, source_mask: Any) -> Any:
        mask = mask_for(self.encoder, spread(source_mask, source_ids.shape[1]))
        states = self.encoder(input_ids=source_ids, attention_mask=mask, encoder_hidden_states=picture_states)
        return cross_attention(self.decoder, states.last_hidden_state)


# ---------------------------------------------------------------- recipes


class _Model:
    """A loaded checkpoint, its sizes, and how its `generate` chooses tokens."""

    def __init__(self, checkpoint: Checkpoint, model: Any, processor: Any, tokenizer: Any) -> None:
        self.checkpoint, self.model, self.processor, self.tokenizer = checkpoint, model, processor, tokenizer
        self.text = model.config.text_config
        if self.text.bos_token_id is None or self.text.sep_token_id is None:
            raise ExportError(f"{checkpoint.path / 'config.json'}: text_config has no bos_token_id or no sep_token_id")
        self.size = fit_of(checkpoint, processor, model.config.vision_config.image_size)
        self.limit = int(self.text.max_position_embeddings)
        self.decoder, self.vision = Decoder(model.text_decoder), Vision(model, processor)

    @cached_property
    def config(self) -> Any:
        """The decoder's own generation config: `generate` gives it the end's token and the padding."""
        config = copy.deepcopy(self.model.text_decoder.generation_config)
        config.eos_token_id, config.pad_token_id = self.text.sep_token_id, self.text.pad_token_id
        return config

    @property
    def pixels(self) -> torch.Tensor:
        return torch.zeros(2, self.size.height, self.size.width, 3, dtype=torch.uint8)

    def loop(self, layers: int, prompt: tuple[int, ...] | str, prompt_mask: str | None = None) -> m.Autoregress:
        return m.Autoregress(
            graphs=("decoder",),
            caches=new_names(layers),
            limit=self.limit,
            prompt=prompt,
            prompt_mask=prompt_mask,
            options=generation.options(),
            **generation.fields(self.config),
        )

    def pictures(self) -> tuple[Any, Any, Any]:
        """Two pictures, and what transformers and our own graphs make of them."""
        picture = test_picture(96, 72)
        pictures = np.stack([picture, picture[::-1, :, ::-1]])
        images = [Image.fromarray(each) for each in pictures]
        theirs = self.processor(images=images, return_tensors="pt")["pixel_values"]
        return pictures, theirs, np.stack([media.fit(image, self.size) for image in images])

    def generate(self, **options: Any) -> Any:
        """transformers' own, which returns the decoder's prompt and what follows."""
        return self.model.generate(**options)

    @property
    def generation_config(self) -> Any:
        """The one that `generate` goes by."""
        return self.config


class _Captions(_Model):
    """A caption begins with the text that is given: there is none by default."""

    def recipe(self) -> Recipe:
        content, tokenize = self._prompt()
        _, text = target_tokenizer(self.tokenizer, _TOKENIZER)
        decoder, layers = decoder_graph(self.decoder, int(self.text.encoder_hidden_size), masked=False)
        cross = names("cross_", layers)
        free = {name: {0: "pictures"} for name in ("pixels", *cross)}
        return Recipe(
            task="image-to-text",
            family="blip",
            inputs={
                "image": m.Image(array="pixels", fit=self.size, required=True),
                "text": m.Text(tokenize={"prompt_ids": tokenize}, default=""),
                **generation.inputs(self.config, self.limit - 1, 1),
            },
            outputs={"text": text},
            graphs={
                "encoder": Graph(Picture(self.vision, self.decoder), {"pixels": self.pixels}, cross, free),
                "decoder": decoder,
            },
            program=(m.Once(graphs=("encoder",)), self.loop(layers, "prompt_ids", "prompt_mask")),
            reference=self._reference,
            components=(".",),
            files={_TOKENIZER: content},
            notes=("The caption goes on from `text`, such as `a photo of`, which is not said again.",),
        )

    def _prompt(self) -> tuple[bytes, m.Tokenize]:
        """The first token, and the text without the tokenizer's own special ones."""
        spec = m.Tokenize(
            file=_TOKENIZER,
            length=self.limit - 1,
            pad=self.text.pad_token_id or 0,
            mask="prompt_mask",
            before=(self.text.bos_token_id,),
        )
        return prompt_tokenizer(self.tokenizer, _TOKENIZER, spec, ("", ""), special=False)

    def _reference(self) -> Golden:
        pictures, theirs, ours = self.pictures()
        return transformers_reference.reference(
            self, {"pixel_values": theirs}, {"pixels": ours}, {}, {"image": pictures}, self.limit - 1
        )


class _Answers(_Model):
    """The question is read with the picture before the eyes, and the answer is written of what was read."""

    def recipe(self) -> Recipe:
        content, tokenize = source_tokenizer(self.tokenizer, _TOKENIZER, self.limit, "source_mask")
        _, text = target_tokenizer(self.tokenizer, _TOKENIZER)
        decoder, layers = decoder_graph(self.decoder, int(self.text.hidden_size), masked=True)
        return Recipe(
            task="image-text-to-text",
            family="blip",
            inputs={
                "text": m.Text(tokenize={"source_ids": tokenize}),
                "image": m.Image(array="pixels", fit=self.size, required=True),
                **generation.inputs(self.config, self.limit - 1, 1),
            },
            outputs={"text": text},
            graphs={"vision": self._vision(), "encoder": self._encoder(layers), "decoder": decoder},
            program=(m.Once(graphs=("vision", "encoder")), self.loop(layers, (self.text.bos_token_id,))),
            reference=self._reference,
            components=(".",),
            files={_TOKENIZER: content},
        )

    def _vision(self) -> Graph:
        free = {name: {0: "pictures"} for name in ("pixels", "picture_states")}
        return Graph(self.vision, {"pixels": self.pixels}, ("picture_states",), free)

    def _encoder(self, layers: int) -> Graph:
        with torch.no_grad():
            inputs = {
                "picture_states": torch.zeros_like(self.vision(self.pixels)),
                "source_ids": torch.ones(2, 7, dtype=torch.int64),
                "source_mask": torch.ones(2, 7, dtype=torch.bool),
            }
        cross = names("cross_", layers)
        free = {"picture_states": {0: "rows"}}
        free |= {name: {0: "rows", 1: "source"} for name in ("source_ids", "source_mask")}
        free |= {name: {0: "rows", 2: "source"} for name in cross}
        return Graph(Question(self.model.text_encoder, self.decoder), inputs, cross, free)

    def _reference(self) -> Golden:
        """One question about two pictures: transformers would take a shorter question's padding for words."""
        question = "what is in the picture?"
        pictures, theirs, ours = self.pictures()
        encoded = self.tokenizer([question] * 2, return_tensors="pt")
        encoded = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            states = self.model.vision_model(pixel_values=theirs).last_hidden_state.numpy()
        arrays = {
            "picture_states": states,
            "source_ids": encoded["input_ids"].numpy(),
            "source_mask": encoded["attention_mask"].bool().numpy(),
        }
        golden = transformers_reference.reference(
            self,
            {**encoded, "pixel_values": theirs},
            arrays,
            {"text": question},
            {"image": pictures},
            self.limit - 1,
        )
        vision = {"graph/vision/0/in/pixels": ours, "graph/vision/0/out/picture_states": states}
        return replace(golden, arrays={**golden.arrays, **vision})
