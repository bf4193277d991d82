"""Texts to pictures: Janus and Janus-Pro (arXiv 2410.13848, 2501.17811), which draw with a language model.

Its tokens here are the picture's codes, 0 and up; the text's are ids beyond them. It also reads pictures, which is not
exported.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers

from mmrt.export.checkpoint import Checkpoint
from mmrt.export.components import load_model, load_processor
from mmrt.export.decoder import causal_graph, new_names
from mmrt.export.quiet import quiet
from mmrt.export.recipe import Golden, Graph, Recipe
from mmrt.export.tokenizer import chat_words, prompt_tokenizer
from mmrt.export.transformers_reference import cache_of, flat, margins, step
from mmrt.runtime import manifest as m
from mmrt.runtime.errors import ExportError
from mmrt.runtime.receipt import Case

CLASSES = ("JanusForConditionalGeneration",)
_TOKENIZER = "tokenizers/prompt.json"
_IDS = ("bos_token_id", "pad_token_id")


def recipe(checkpoint: Checkpoint) -> Recipe:
    """Load the checkpoint and say how it becomes a bundle. Raises `ExportError`."""
    model = load_model(checkpoint, ".", f"transformers.{checkpoint.architecture}")
    processor, tokenizer = (load_processor(checkpoint, f"Auto{kind}") for kind in ("ImageProcessor", "Tokenizer"))
    return _Model(checkpoint, model, processor, tokenizer).recipe()


class Prompt(torch.nn.Module):  # type: ignore[misc]
    """prompt_ids int64 (texts, tokens) -> prompt, the same beyond the picture's codes."""

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.codes = codes

    def forward(self, prompt_ids: Any) -> Any:
        return prompt_ids + self.codes


class Embed(torch.nn.Module):  # type: ignore[misc]
    """tokens int64 (rows, sequence) -> float32 (rows, sequence, width): a picture's codes, and ids of texts beyond."""

    def __init__(self, model: Any, codes: int) -> None:
        super().__init__()
        self.model, self.codes = model, codes
        self.words = model.get_input_embeddings()

    def forward(self, tokens: Any) -> Any:
        written = tokens >= self.codes
        drawn = self.model.prepare_embeddings_for_image_generation(torch.where(written, 0, tokens))
        return torch.where(written[:, :, None], self.words(torch.where(written, tokens - self.codes, 0)), drawn)


class Decoder(torch.nn.Module):  # type: ignore[misc]
    """sequences int64 (batch, codes) -> pixels uint8 (batch, height, width, 3), as the image processor makes them."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.vq = model.model.vqmodel
        self.scale = 1 / float(processor.rescale_factor)
        self.register_buffer("mean", torch.tensor(processor.image_mean))
        self.register_buffer("std", torch.tensor(processor.image_std))

    def forward(self, sequences: Any) -> Any:
        pixels = self.vq.decode(sequences).permute(0, 2, 3, 1) * self.std + self.mean
        return (pixels * self.scale).clamp(0, 255).to(torch.uint8)  # cuts, and does not round


class _Model:
    """A loaded checkpoint and its sizes."""

    def __init__(self, checkpoint: Checkpoint, model: Any, processor: Any, tokenizer: Any) -> None:
        self.checkpoint, self.model, self.processor, self.tokenizer = checkpoint, model, processor, tokenizer
        self.config, vq = model.generation_config, model.config.vq_config
        self.codes = int(vq.num_embeddings)
        self.count = int(model.config.vision_config.num_image_tokens)
        if self.count != vq.num_patches**2:
            raise ExportError(f"{checkpoint.path / 'config.json'}: num_image_tokens is {self.count}, wanted a square")
        self.side = int(vq.num_patches) * 2 ** (len(vq.channel_multiplier) - 1)
        self.limit = min(int(model.config.text_config.max_position_embeddings), 2**20)
        begin = (getattr(self.config, "generation_kwargs", None) or {}).get("boi_token_id")
        for name, token in (("boi_token_id", begin), *((key, getattr(self.config, key)) for key in _IDS)):
            if not isinstance(token, int):
                raise ExportError(f"{checkpoint.path / 'generation_config.json'}: {name} is {token!r}, wanted an id")
        self.begin = int(begin or 0)

    def recipe(self) -> Recipe:
        model = self.model.model
        decoder, layers = causal_graph(
            Embed(self.model, self.codes), model.language_model, model.generation_head, extra={}
        )
        content, tokenize = self._tokenize()
        ids, sequences = torch.zeros(2, 7, dtype=torch.int64), torch.zeros(2, self.count, dtype=torch.int64)
        texts = {0: "texts", 1: "length"}
        return Recipe(
            task="text-to-image",
            family="janus",
            inputs=self._inputs(tokenize),
            outputs={"image": m.ImageOutput(source="pixels")},
            graphs={
                "prompt": Graph(
                    Prompt(self.codes), {"prompt_ids": ids}, ("prompt",), {"prompt_ids": texts, "prompt": texts}
                ),
                "decoder": decoder,
                "picture": Graph(
                    Decoder(self.model, self.processor),
                    {"sequences": sequences},
                    ("pixels",),
                    {"sequences": {0: "batch"}, "pixels": {0: "batch"}},
                ),
            },
            program=(
                m.Once(graphs=("prompt",)),
                m.Autoregress(
                    graphs=("decoder",),
                    caches=new_names(layers),
                    limit=self.limit,
                    prompt="prompt",
                    prompt_mask="prompt_mask",
                    guidance=m.Guidance(kind="classifier-free", scale="guidance"),
                    pad=0,
                    ends=(),
                    count=self.count,
                    options={"temperature": "temperature", "top_k": "top_k", "top_p": "top_p"},
                ),
                m.Once(graphs=("picture",)),
            ),
            reference=self._reference,
            components=(".",),
            files={_TOKENIZER: content},
        )

    def _inputs(self, tokenize: m.Tokenize) -> dict[str, m.Input]:
        def setting(field: str, default: float) -> float:
            found = getattr(self.config, field, None)
            return float(default if found is None else found)

        sampled = bool(getattr(self.config, "do_sample", False))
        return {
            "prompt": m.Text(tokenize={"prompt_ids": tokenize}),
            "guidance": m.Float(default=setting("guidance_scale", 5.0), min=0.0, max=100.0),
            "temperature": m.Float(default=setting("temperature", 1.0) if sampled else 0.0, min=0.0, max=100.0),
            "top_k": m.Int(default=int(setting("top_k", 50)), min=0, max=2**31),
            "top_p": m.Float(default=setting("top_p", 1.0), min=0.0, max=1.0),
            "size": m.Size(default=(self.side, self.side), multiple=self.side, max=self.side),
            "num_images": m.Count(max=64),
            "seed": m.Seed(),
        }

    def _words(self) -> tuple[str, str]:
        before, after = chat_words(self.checkpoint, self.tokenizer, [{"type": "text"}])
        return before, after + str(self.tokenizer.convert_ids_to_tokens(self.begin))

    def _special(self) -> bool:
        bos = self.tokenizer.bos_token
        return not (bos and self._words()[0].startswith(bos))

    def _tokenize(self) -> tuple[bytes, m.Tokenize]:
        """Unconditional rows keep the first token and the last of their text, the others are padding."""
        pad = int(self.config.pad_token_id)
        spec = m.Tokenize(file=_TOKENIZER, length=self.limit - self.count, pad=pad, mask="prompt_mask", blank=pad)
        content, found = prompt_tokenizer(self.tokenizer, _TOKENIZER, spec, self._words(), self._special())
        ids = self.tokenizer("".join(self._words()), add_special_tokens=self._special())["input_ids"]
        if (ids[0], ids[-1]) != (self.config.bos_token_id, self.begin):
            raise ExportError(
                f"{self.checkpoint.path}: prompts are the tokens {ids}, wanted {self.config.bos_token_id} as the first "
                f"and {self.begin} as the last"
            )
        return content, found

    def _reference(self) -> Golden:
        """A greedy picture of each of two texts."""
        texts, (before, after) = ["a red heart", "a small house by the sea"], self._words()
        golden: dict[str, Any] = {}
        sequences, clear, pictures = [], [], []
        for call, text in enumerate(texts):
            encoded = self.tokenizer(before + text + after, add_special_tokens=self._special(), return_tensors="pt")
            with quiet(), torch.no_grad(), _listening(self.model) as heard:
                found = self.model.generate(
                    inputs=encoded["input_ids"],
                    attention_mask=encoded["attention_mask"],
                    generation_mode="image",
                    do_sample=False,
                    return_dict_in_generate=True,
                )
                pixels = self.model.decode_image_tokens(found.sequences)
            place = encoded["input_ids"].shape[1] + self.count - 2
            last = found.sequences[:, -2:-1].repeat(2, 1).numpy()  # a conditional row and an unconditional
            own = [each[:, :, : place + 1] for each in flat(cache_of(found).layers)]
            golden |= step(f"graph/decoder/{call}", own, place, last, found.scores.numpy())
            sequences.append(found.sequences[0].numpy())
            guidance = getattr(self.config, "guidance_scale", None) or 1.0
            guided = [blank + guidance * (wanted - blank) for wanted, blank in (logits.split(1) for logits in heard)]
            clear.append(margins(guided, guided)[0])
            planes = pixels[0].permute(2, 0, 1).numpy()  # transformers' Pillow processor takes no other order
            pictures.append(self.processor.postprocess([planes])["pixel_values"][0].transpose(1, 2, 0))
        golden |= {"graph/picture/0/in/sequences": np.stack(sequences)}
        golden |= {"graph/picture/0/out/pixels": np.stack(pictures)}
        golden |= {"run/greedy/out/sequences": np.stack(sequences), "run/greedy/margin/sequences": np.stack(clear)}
        golden |= {"run/greedy/out/pixels": np.stack(pictures)}
        source = f"transformers {transformers.__version__}, torch {torch.__version__}, fp32 on cpu"
        return Golden(source, golden, (Case(name="greedy", request={"prompt": texts, "temperature": 0.0}),))


@contextmanager
def _listening(model: Any) -> Iterator[list[Any]]:
    """The logits of conditional and unconditional rows, one of each token that is chosen."""
    heard: list[Any] = []
    hook = model.model.generation_head.register_forward_hook(lambda _, __, logits: heard.append(logits))
    try:
        yield heard
    finally:
        hook.remove()
