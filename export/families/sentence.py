"""Texts as vectors: encoders such as BERT's with what sentence-transformers puts on top (arXiv 1908.10084).

A checkpoint's `modules.json` says how the vectors of tokens become one; without it, it is their mean.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch

from mmrt.export.checkpoint import Checkpoint
from mmrt.export.components import load_model, load_processor
from mmrt.export.quiet import quiet
from mmrt.export.recipe import Golden, Graph, Recipe
from mmrt.export.tokenizer import source_tokenizer
from mmrt.runtime import manifest as m
from mmrt.runtime.arrays import AnyArray
from mmrt.runtime.errors import ExportError
from mmrt.runtime.receipt import Case

CLASSES = ("BertModel", "DistilBertModel", "MPNetModel", "RobertaModel", "XLMRobertaModel")
_TOKENIZER = "tokenizers/text.json"
_TEXTS = ("a red heart", "two blue cars in the rain, and a cat that looks at them")
_MODULES = ("Transformer", "Pooling", "Normalize")


def recipe(checkpoint: Checkpoint) -> Recipe:
    """Load the checkpoint and say how it becomes a bundle. Raises `ExportError`."""
    first = _pools_first(checkpoint)
    model = load_model(checkpoint, ".", f"transformers.{checkpoint.architecture}")
    tokenizer = load_processor(checkpoint, "AutoTokenizer")
    content, tokenize = source_tokenizer(tokenizer, _TOKENIZER, _length(checkpoint, model, tokenizer), "text_mask")
    free = {0: "texts", 1: "tokens"}
    ids = torch.full((2, 7), model.config.pad_token_id + 1, dtype=torch.int64)
    return Recipe(
        task="embedding",
        family="sentence",
        inputs={"text": m.Text(tokenize={"text_ids": tokenize})},
        outputs={"text_embeds": m.VectorOutput(source="text_embeds")},
        graphs={
            "text": Graph(
                TextEncoder(model, first),
                {"text_ids": ids, "text_mask": torch.ones(2, 7, dtype=torch.bool)},
                ("text_embeds",),
                {"text_ids": free, "text_mask": free, "text_embeds": {0: "texts"}},
            )
        },
        program=(m.Once(graphs=("text",)),),
        reference=lambda: _reference(model, tokenizer, first),
        components=(".",),
        files={_TOKENIZER: content},
    )


def _pools_first(checkpoint: Checkpoint) -> bool:
    """Whether the first token's vector stands for the text, rather than the mean of all."""
    file = checkpoint.path / "modules.json"
    if not file.is_file():
        return False
    try:
        modules = [(each["type"].rpartition(".")[2], each["path"]) for each in json.loads(file.read_bytes())]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ExportError(f"{file}: not a list of sentence-transformers' modules") from None
    pooling = [path for kind, path in modules if kind == "Pooling"]
    if strange := sorted({kind for kind, _ in modules} - {*_MODULES}):
        raise ExportError(f"{file}: has a module {strange[0]}, supported are {', '.join(_MODULES)}")
    if len(pooling) != 1 or pooling[0] != "1_Pooling":
        raise ExportError(f"{file}: has {len(pooling)} modules Pooling, wanted one, in the folder 1_Pooling")
    config = checkpoint.json("1_Pooling/config.json")
    modes = sorted(key for key, value in config.items() if key.startswith("pooling_mode") and value is True)
    modes += [f"pooling_mode_{config['pooling_mode']}"] if isinstance(config.get("pooling_mode"), str) else []
    wanted = {"pooling_mode_cls_token": True, "pooling_mode_cls": True}
    wanted |= {"pooling_mode_mean_tokens": False, "pooling_mode_mean": False}
    if len(modes) != 1 or modes[0] not in wanted:
        raise ExportError(f"{checkpoint.path / '1_Pooling/config.json'}: pools by {modes}, supported is mean or cls")
    return wanted[modes[0]]


def _length(checkpoint: Checkpoint, model: Any, tokenizer: Any) -> int:
    """The most tokens: what the checkpoint says, and the positions allow."""
    shifted = type(model).__name__ in ("MPNetModel", "RobertaModel", "XLMRobertaModel")
    room = int(model.config.max_position_embeddings) - (model.config.pad_token_id + 1 if shifted else 0)
    file = "sentence_bert_config.json"
    said = checkpoint.json(file).get("max_seq_length") if (checkpoint.path / file).is_file() else None
    return min(room, int(tokenizer.model_max_length), said if isinstance(said, int) and said > 1 else room)


class TextEncoder(torch.nn.Module):  # type: ignore[misc]
    """text_ids int64 (texts, tokens), text_mask bool, true at tokens -> text_embeds float32 (texts, width), each of
    length 1."""

    def __init__(self, model: Any, first: bool) -> None:
        super().__init__()
        self.model, self.first = model, first

    def forward(self, text_ids: Any, text_mask: Any) -> Any:
        states = self.model(input_ids=text_ids, attention_mask=text_mask.to(torch.int64)).last_hidden_state
        return _pooled(states, text_mask, self.first)


def _pooled(states: Any, mask: Any, first: bool) -> Any:
    weights = mask[:, :, None].to(states.dtype)
    vectors = states[:, 0] if first else (states * weights).sum(dim=1) / weights.sum(dim=1)
    return torch.nn.functional.normalize(vectors, dim=-1)


def _reference(model: Any, tokenizer: Any, first: bool) -> Golden:
    """What transformers' own forward pass gives, pooled."""
    with quiet(), torch.no_grad():
        encoded = tokenizer(list(_TEXTS), padding=True, return_tensors="pt")
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        vectors = _pooled(model(input_ids=ids, attention_mask=mask).last_hidden_state, mask.bool(), first).numpy()
    arrays: dict[str, AnyArray] = {
        "graph/text/0/in/text_ids": ids.numpy(),
        "graph/text/0/in/text_mask": mask.bool().numpy(),
        "graph/text/0/out/text_embeds": vectors,
        "run/texts/out/text_embeds": vectors,
    }
    source = f"transformers {version('transformers')}, torch {torch.__version__}, fp32 on cpu"
    return Golden(source, arrays, (Case(name="texts", request={"text": list(_TEXTS)}),))
