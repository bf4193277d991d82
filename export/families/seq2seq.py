"""Texts to texts: T5 (arXiv 1910.10683), BART (1910.13461), mBART (2001.08210), Marian, M2M100 (2010.11125), NLLB."""

from __future__ import annotations

from typing import Any

import torch

from mmrt.export import generation, transformers_reference
from mmrt.export.checkpoint import Checkpoint
from mmrt.export.components import load_model, load_processor
from mmrt.export.decoder import Seq2Seq, cross_attention, decoder_graph, names, new_names, spread
from mmrt.export.recipe import Golden, Graph, Recipe
from mmrt.export.tokenizer import languages, source_tokenizer, target_tokenizer
from mmrt.runtime import manifest as m
from mmrt.runtime.errors import ExportError

CLASSES = (
    "T5ForConditionalGeneration",
    "MT5ForConditionalGeneration",
    "BartForConditionalGeneration",
    "MBartForConditionalGeneration",
    "MarianMTModel",
    "M2M100ForConditionalGeneration",
)
_SOURCE, _TARGET = "tokenizers/source.json", "tokenizers/target.json"
_RELATIVE = 4096  # the most tokens where positions are relative and set no limit


def recipe(checkpoint: Checkpoint) -> Recipe:
    """Load the checkpoint and say how it becomes a bundle. Raises `ExportError`."""
    model = load_model(checkpoint, ".", f"transformers.{checkpoint.architecture}")
    return _Model(checkpoint, model, load_processor(checkpoint, "AutoTokenizer")).recipe()


class Encoder(torch.nn.Module):  # type: ignore[misc]
    """source_ids int64 (texts, source), source_mask bool, true at tokens -> the decoder's keys and values of them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.decoder = model, Seq2Seq(model)

    def forward(self, source_ids: Any, source_mask: Any) -> Any:
        mask = spread(source_mask, source_ids.shape[1])
        states = self.model.get_encoder()(input_ids=source_ids, attention_mask=mask).last_hidden_state
        return cross_attention(self.decoder, states)


class _Model:
    """A loaded checkpoint, its sizes, and the languages that a user chooses from.

    A multilingual tokenizer puts the source's language around the text and the target begins with its own; but Marian's
    puts the target's language before the source text.
    """

    def __init__(self, checkpoint: Checkpoint, model: Any, tokenizer: Any) -> None:
        self.checkpoint, self.model, self.tokenizer = checkpoint, model, tokenizer
        self.config = model.generation_config
        self.limit = int(getattr(model.config, "max_position_embeddings", None) or _RELATIVE)
        known = tokenizer.model_max_length
        self.length = min(self.limit, int(known)) if 1 < known < 2**20 else self.limit
        self.languages = languages(tokenizer)
        self.marian = hasattr(tokenizer, "spm_source")

    def recipe(self) -> Recipe:
        marked = "target_language" if self.marian else "source_language"
        language = marked if self.languages else None
        source, tokenize = source_tokenizer(self.tokenizer, _SOURCE, self.length, "source_mask", language)
        target, text = target_tokenizer(self.tokenizer, _TARGET)
        decoder, layers = decoder_graph(Seq2Seq(self.model), int(self.model.config.d_model), masked=True)
        cross = names("cross_", layers)
        prompt, forced = self._beginning()
        free = {0: "texts", 1: "source"}
        ids, mask = torch.ones(2, 7, dtype=torch.int64), torch.ones(2, 7, dtype=torch.bool)
        return Recipe(
            task="text-to-text",
            family="seq2seq",
            inputs={
                "text": m.Text(tokenize={"source_ids": tokenize}),
                **self._language_inputs(),
                **generation.inputs(self.config, self.limit - 1, 1),
            },
            outputs={"text": text},
            graphs={
                "encoder": Graph(
                    Encoder(self.model),
                    {"source_ids": ids, "source_mask": mask},
                    cross,
                    {"source_ids": free, "source_mask": free} | {name: {0: "texts", 2: "source"} for name in cross},
                ),
                "decoder": decoder,
            },
            program=(
                m.Once(graphs=("encoder",)),
                m.Autoregress(
                    graphs=("decoder",),
                    caches=new_names(layers),
                    limit=self.limit,
                    options=generation.options(),
                    prompt=prompt,
                    forced=forced,
                    **generation.fields(self.config),
                ),
            ),
            reference=self._reference,
            components=(".",),
            files={_SOURCE: source, _TARGET: target},
        )

    def _chosen(self) -> dict[str, str]:
        """The language inputs and their defaults; the target's is the one that the checkpoint itself begins with."""
        if not self.languages:
            return {}
        first = next(iter(self.languages))
        if self.marian:
            return {"target_language": first}
        starts = self.config.decoder_start_token_id, self.config.forced_bos_token_id
        begun = next((code for code, token in self.languages.items() if token in starts), None)
        source, target = (getattr(self.tokenizer, name, None) for name in ("src_lang", "tgt_lang"))
        return {"source_language": source or first, "target_language": begun or target or first}

    def _language_inputs(self) -> dict[str, m.Input]:
        codes = tuple(self.languages)
        return {
            name: m.Choice(default=default, choices=codes, tokens=self.languages)
            for name, default in self._chosen().items()
        }

    def _beginning(self) -> tuple[tuple[m.Token, ...], tuple[m.Token, ...]]:
        """Prompt and forced tokens: the target's language is the prompt of checkpoints that start so, else forced."""
        start, forced = self.config.decoder_start_token_id, self.config.forced_bos_token_id
        if start is None:
            raise ExportError(f"{self.checkpoint.path}: decoder_start_token_id is missing")
        prompted = start in self.languages.values()
        if self.languages and not self.marian and not prompted:
            return (start,), ("target_language",)
        return ("target_language" if prompted else start,), () if forced is None else (forced,)

    def _reference(self) -> Golden:
        texts = ["a red heart", "a small house by the sea, with a boat and two trees: 3 > 2!"]
        chosen, options = self._chosen(), {}
        for tokens, key in zip(self._beginning(), ("decoder_start_token_id", "forced_bos_token_id"), strict=True):
            if tokens == ("target_language",):
                options[key] = self.languages[chosen["target_language"]]
        if "source_language" in chosen:
            self.tokenizer.src_lang = chosen["source_language"]
        prefix = f">>{chosen['target_language']}<< " if self.marian and chosen else ""
        encoded = self.tokenizer([prefix + text for text in texts], padding=True, return_tensors="pt")
        encoded = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        arrays = {"source_ids": encoded["input_ids"].numpy(), "source_mask": encoded["attention_mask"].bool().numpy()}
        request = {"text": texts, **chosen}
        return transformers_reference.reference(
            self.model, encoded, arrays, request, given={}, room=self.limit - 1, **options
        )
