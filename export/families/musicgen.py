"""Texts to music: transformers' `MusicgenForConditionalGeneration` (arXiv 2306.05284), mono and stereo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import msgspec
import numpy as np
import torch

from mmrt.export import generation
from mmrt.export.checkpoint import Checkpoint
from mmrt.export.components import load_model, load_processor
from mmrt.export.decoder import cross_attention, decoder_graph, names, new_names, spread, with_cache
from mmrt.export.encodec import Codec, padding
from mmrt.export.quiet import quiet
from mmrt.export.recipe import Golden, Graph, Recipe
from mmrt.export.tokenizer import source_tokenizer
from mmrt.export.transformers_reference import cache_of, flat, margins, step
from mmrt.runtime import manifest as m
from mmrt.runtime.arrays import AnyArray
from mmrt.runtime.errors import ExportError
from mmrt.runtime.receipt import Case

CLASSES = ("MusicgenForConditionalGeneration",)
_TOKENIZER = "tokenizers/prompt.json"
_RELATIVE = 4096  # the most tokens of a text, whose positions are relative
_USUAL_K = 250  # of whom to draw from, where the checkpoint does not say
_TEXTS = ("a red heart", "slow piano in the rain, with a little bell")
_NEW = 16  # tokens of the receipts


def recipe(checkpoint: Checkpoint) -> Recipe:
    """Load the checkpoint and say how it becomes a bundle. Raises `ExportError`."""
    model = load_model(checkpoint, ".", f"transformers.{checkpoint.architecture}")
    return _Model(checkpoint, model, load_processor(checkpoint, "AutoTokenizer")).recipe()


class CodebookDecoder(torch.nn.Module):  # type: ignore[misc]
    """The decoder, called as a language model whose tokens are vectors: input_ids int64 (rows, sequence, codebooks) ->
    logits (rows, sequence, codebooks, vocabulary)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.codebooks = model.decoder, int(model.decoder.num_codebooks)
        self._supports_sdpa = model.decoder._supports_sdpa
        self.positions = _Positions(model.decoder.model.decoder.embed_positions)

    def forward(self, input_ids: Any, cache: Any, **rest: Any) -> Any:
        if input_ids.dim() == 2:
            input_ids = input_ids[:, :, None].expand(-1, -1, self.codebooks)
        rows, length, _ = input_ids.shape
        inner = self.decoder.model.decoder
        before, inner.embed_positions = inner.embed_positions, self.positions
        try:
            codes = input_ids.transpose(1, 2).reshape(rows * self.codebooks, length)
            found = self.decoder(input_ids=codes, **with_cache(self.decoder, cache), **rest)
        finally:
            inner.embed_positions = before
        found.logits = found.logits.reshape(rows, self.codebooks, length, -1).transpose(1, 2)
        return found


class _Positions(torch.nn.Module):  # type: ignore[misc]
    """`MusicgenSinusoidalPositionalEmbedding`, whose table is long enough, from any place on."""

    def __init__(self, embedding: Any) -> None:
        super().__init__()
        self.register_buffer("weights", embedding.weights)

    def forward(self, codes: Any, start: Any = 0) -> Any:
        return self.weights[start + torch.arange(codes.shape[2])]


class TextEncoder(torch.nn.Module):  # type: ignore[misc]
    """prompt_ids int64 (texts, tokens), prompt_mask bool, true at tokens -> source_mask bool, what the decoder looks
    at, and its keys and values of it. A text of no tokens is looked at as zeros."""

    def __init__(self, model: Any, decoder: CodebookDecoder) -> None:
        super().__init__()
        self.model, self.decoder = model, decoder

    def forward(self, prompt_ids: Any, prompt_mask: Any) -> Any:
        model = self.model
        seen = prompt_mask | ~prompt_mask.any(dim=1, keepdim=True)
        states = model.text_encoder(
            input_ids=prompt_ids, attention_mask=spread(seen, prompt_ids.shape[1])
        ).last_hidden_state
        if hasattr(model, "enc_to_dec_proj"):
            states = model.enc_to_dec_proj(states)
        states = states.where(prompt_mask[:, :, None], 0)
        return (seen, *cross_attention(self.decoder, states))


class _Model:
    """A loaded checkpoint and its sizes."""

    def __init__(self, checkpoint: Checkpoint, model: Any, tokenizer: Any) -> None:
        self.checkpoint, self.model, self.tokenizer = checkpoint, model, tokenizer
        self.config, self.decoder, self.codec = (
            model.generation_config,
            model.decoder.config,
            model.audio_encoder.config,
        )
        self.codebooks, self.channels = int(self.decoder.num_codebooks), int(self.decoder.audio_channels)
        self.limit = int(self.decoder.max_position_embeddings)
        self.delays = tuple(book // self.channels for book in range(self.codebooks))
        self.start = self.config.decoder_start_token_id
        self._check()
        reach = [max(padding(each)) for each in model.audio_encoder.decoder.modules() if hasattr(each, "pad_mode")]
        self.least = max(self.delays) + max(*reach, max(self.delays)) + 1  # tokens, for as many frames as are mirrored

    def _check(self) -> None:
        where = self.checkpoint.path
        if type(self.model.text_encoder).__name__ != "T5EncoderModel":
            kind = type(self.model.text_encoder).__name__
            raise ExportError(f"{where}: the text encoder is {kind}, supported is T5EncoderModel")
        if type(self.model.audio_encoder).__name__ != "EncodecModel":
            kind = type(self.model.audio_encoder).__name__
            raise ExportError(f"{where}: the audio encoder is {kind}, supported is EncodecModel")
        if self.codec.chunk_length is not None or self.codec.normalize:
            raise ExportError(
                f"{where / 'config.json'}: the audio encoder works in chunks or normalizes, wanted neither"
            )
        quantizers = self.codebooks // self.channels
        if self.channels not in (1, 2) or self.codebooks % self.channels or quantizers > self.codec.num_quantizers:
            raise ExportError(
                f"{where / 'config.json'}: {self.codebooks} codebooks of {self.channels} channels, "
                f"the audio encoder has {self.codec.num_quantizers}"
            )
        if not isinstance(self.start, int) or self.start != self.config.pad_token_id:
            pad = self.config.pad_token_id
            raise ExportError(
                f"{where / 'generation_config.json'}: decoder_start_token_id is {self.start!r}, pad_token_id {pad!r}, "
                "wanted the same id"
            )
        if self.config.eos_token_id is not None:
            raise ExportError(f"{where / 'generation_config.json'}: eos_token_id is set; music has no end")

    def recipe(self) -> Recipe:
        source = CodebookDecoder(self.model)
        decoder, layers = decoder_graph(source, self.decoder.hidden_size, masked=True, codebooks=self.codebooks)
        cross = names("cross_", layers)
        content, tokenize = source_tokenizer(self.tokenizer, _TOKENIZER, _RELATIVE, "prompt_mask")
        texts, frames = {0: "texts", 1: "tokens"}, {0: "batch", 1: "frames"}
        ids = torch.zeros(2, 7, dtype=torch.int64)
        waveform = {"waveform": {0: "batch", self.channels: "samples"}}
        rate = self.codec.sampling_rate / float(np.prod(self.codec.upsampling_ratios))
        return Recipe(
            task="text-to-music",
            family="musicgen",
            inputs=self._inputs(msgspec.structs.replace(tokenize, absent=True)),
            outputs={"audio": m.AudioOutput(source="waveform", rate=self.codec.sampling_rate)},
            graphs={
                "text": Graph(
                    TextEncoder(self.model, source),
                    {"prompt_ids": ids, "prompt_mask": torch.ones(2, 7, dtype=torch.bool)},
                    ("source_mask", *cross),
                    {"prompt_ids": texts, "prompt_mask": texts, "source_mask": texts}
                    | {name: {0: "texts", 2: "tokens"} for name in cross},
                ),
                "decoder": decoder,
                "codec": Graph(
                    Codec(self.model.audio_encoder, self.channels),
                    {"sequences": torch.zeros(2, 50, self.codebooks, dtype=torch.int64)},
                    ("waveform",),
                    {"sequences": frames, **waveform},
                ),
            },
            program=(
                m.Once(graphs=("text",)),
                m.Autoregress(
                    graphs=("decoder",),
                    caches=new_names(layers),
                    limit=self.limit,
                    prompt=(self.start,),
                    pad=self.start,
                    ends=(),
                    guidance=m.Guidance(kind="classifier-free", scale="guidance"),
                    options={
                        "max_new_tokens": "max_new_tokens",
                        "temperature": "temperature",
                        "top_k": "top_k",
                        "top_p": "top_p",
                    },
                    delays=self.delays,
                ),
                m.Once(graphs=("codec",)),
            ),
            reference=self._reference,
            components=(".",),
            files={_TOKENIZER: content},
            notes=(
                f"{rate:g} tokens are a second: `--max-new-tokens {round(10 * rate) + max(self.delays)}` makes ten "
                f"seconds, with the {max(self.delays)} by which the last codebook is late.",
            ),
        )

    def _inputs(self, tokenize: m.Tokenize) -> dict[str, m.Input]:
        room = self.limit - 1
        told = generation.inputs(_without_guidance(self.config), room, 1)
        top_k = getattr(self.config, "top_k", None)
        longest = told["max_new_tokens"]
        assert isinstance(longest, m.Int)
        return {
            "prompt": m.Text(tokenize={"prompt_ids": tokenize}),
            "max_new_tokens": m.Int(default=max(longest.default, self.least), min=self.least, max=room),
            "guidance": m.Float(default=float(self.config.guidance_scale or 1.0), min=0.0, max=100.0),
            "temperature": told["temperature"],
            "top_k": m.Int(default=_USUAL_K if top_k is None else int(top_k), min=0, max=2**31),
            "top_p": told["top_p"],
            "num_sounds": m.Count(max=64),
            "seed": m.Seed(),
        }

    def _reference(self) -> Golden:
        """Two texts, greedy and guided, of transformers' `generate`; within, what its parts gave each other."""
        arrays: dict[str, AnyArray] = {}
        new = max(_NEW, self.least)
        for call, text in enumerate(_TEXTS):
            encoded = self.tokenizer([text], return_tensors="pt")
            with quiet(), _listening(self.model) as heard, torch.no_grad():
                found = self.model.generate(
                    **encoded, do_sample=False, guidance_scale=3.0, max_new_tokens=new, num_beams=1,
                    return_dict_in_generate=True, output_scores=True,
                )  # fmt: skip
            arrays |= self._calls(call, encoded, heard, found.sequences)
            arrays[f"run/{call}/margin/sequences"] = self._margins(margins(found.scores, found.scores))
        cases = tuple(
            Case(
                name=str(call),
                request={"prompt": text, "temperature": 0.0, "guidance": 3.0, "max_new_tokens": new},
            )
            for call, text in enumerate(_TEXTS)
        )
        return Golden(f"transformers {version('transformers')}, torch {torch.__version__}, fp32 on cpu", arrays, cases)

    def _margins(self, drawn: AnyArray) -> AnyArray:
        """(codebooks, tokens) as they are chosen -> (1, frames, codebooks), each beside those of its time."""
        frames = drawn.shape[1] - max(self.delays)
        return np.stack([row[late : late + frames] for row, late in zip(drawn, self.delays, strict=True)], axis=1)[None]

    def _calls(self, call: int, encoded: Any, heard: dict[str, Any], found: Any) -> dict[str, AnyArray]:
        """Of our graphs on a conditional row and an unconditional, as the source has them."""
        own, cross = (flat(each.layers) for each in heard["caches"])
        place = own[0].shape[2] - 1
        ids, mask = encoded["input_ids"].numpy(), encoded["attention_mask"].bool().numpy()
        prompts = {"prompt_ids": np.concatenate([ids, np.zeros_like(ids)])}
        prompts["prompt_mask"] = np.concatenate([mask, np.zeros_like(mask)])
        keys = dict(zip(names("cross_", len(cross) // 2), cross, strict=True))
        keys["source_mask"] = np.ones_like(prompts["prompt_mask"])
        tokens = heard["tokens"].reshape(2, self.codebooks, 1).transpose(0, 2, 1)
        logits = heard["logits"].reshape(2, self.codebooks, -1)
        sides = [each[0].numpy() for each in heard["codes"]]  # (1, codebooks, frames) of each side
        sequences = np.stack(sides, axis=2).reshape(1, self.codebooks, -1).transpose(0, 2, 1)
        waveform = found[:, 0].numpy() if self.channels == 1 else found.numpy()
        arrays = {f"graph/text/{call}/in/{name}": array for name, array in prompts.items()}
        arrays |= {f"graph/text/{call}/out/{name}": array for name, array in keys.items()}
        arrays |= step(f"graph/decoder/{call}", own, place, np.ascontiguousarray(tokens), logits, keys)
        arrays[f"graph/codec/{call}/in/sequences"] = np.ascontiguousarray(sequences)
        arrays[f"graph/codec/{call}/out/waveform"] = waveform
        arrays[f"run/{call}/out/sequences"] = np.ascontiguousarray(sequences)
        arrays[f"run/{call}/out/waveform"] = waveform
        return arrays


def _without_guidance(config: Any) -> Any:
    copy = type(config).from_dict(config.to_dict())
    copy.guidance_scale = None
    return copy


@contextmanager
def _listening(model: Any) -> Iterator[dict[str, Any]]:
    """Of a run of `generate`: the decoder's last tokens and logits and its caches, and the codes that become sound."""
    heard: dict[str, Any] = {"codes": []}

    def before(_: Any, __: Any, given: dict[str, Any]) -> None:
        heard["tokens"] = given["input_ids"].numpy()

    def after(_: Any, __: Any, found: Any) -> None:
        heard["logits"] = found.logits[:, -1].numpy()
        heard["caches"] = cache_of(found).self_attention_cache, cache_of(found).cross_attention_cache

    decode = model.audio_encoder.decode

    def decoded(codes: Any, *rest: Any, **more: Any) -> Any:
        heard["codes"].append(codes)
        return decode(codes, *rest, **more)

    hooks = [
        model.decoder.register_forward_pre_hook(before, with_kwargs=True),
        model.decoder.register_forward_hook(after),
    ]
    model.audio_encoder.decode = decoded
    try:
        yield heard
    finally:
        del model.audio_encoder.decode
        for hook in hooks:
            hook.remove()
