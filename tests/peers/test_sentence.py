"""Vectors of texts are those of transformers' own encoders, pooled as sentence-transformers documents it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from checkpoints import exports  # noqa: E402
from corpus import MADE  # noqa: E402

import mmrt  # noqa: E402
from mmrt.export.checkpoint import Checkpoint  # noqa: E402
from mmrt.export.families import sentence  # noqa: E402
from mmrt.export.quiet import quiet  # noqa: E402
from mmrt.runtime.errors import ExportError, RequestError  # noqa: E402

torch.set_num_threads(1)

TEXTS = ["a red heart", "The quick brown fox jumps over 13 lazy dogs, doesn't it?", "", "你好, 红心", "x"]
USUAL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
DISTIL = {"dim": 24, "hidden_dim": 40, "n_layers": 1, "n_heads": 2}
KINDS: dict[str, tuple[str, str, dict[str, Any], str | None]] = {  # class, tokenizer, sizes, pooling
    "BERT": ("Bert", "BERT", USUAL, "mean_tokens"),
    "DistilBERT": ("DistilBert", "BERT", DISTIL, None),
    "RoBERTa": ("Roberta", "RoBERTa", USUAL | {"num_attention_heads": 2}, "cls_token"),
}
POSITIONS = 66


def save(folder: Path, kind: str) -> Path:
    torch.manual_seed(0)
    name, tokenizer, sizes, pooling = KINDS[kind]
    made = MADE[tokenizer](folder.parent / "tokenizer")
    made.model_max_length = 512
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(made), max_position_embeddings=POSITIONS, initializer_range=0.2, pad_token_id=made.pad_token_id,
        **sizes,
    )  # fmt: skip
    for each in (getattr(transformers, f"{name}Model")(config), made):
        each.save_pretrained(folder)
    if pooling is not None:
        types = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
        modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in types.items()]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        modes = {f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens", "max_tokens")}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    made = exports(tmp_path_factory, save)

    @cache
    def loaded(kind: str) -> tuple[Path, Any]:
        checkpoint, bundle = made(kind)
        return checkpoint, mmrt.load(bundle, threads=1)

    return loaded


@pytest.mark.parametrize("kind", KINDS)
def test_vectors(sources: Callable[[str], tuple[Path, Any]], kind: str) -> None:
    checkpoint, pipeline = sources(kind)
    with quiet(), torch.no_grad():
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
        model = transformers.AutoModel.from_pretrained(checkpoint).eval()
        wanted = []
        for text in TEXTS:
            states = model(**tokenizer([text], return_tensors="pt", return_token_type_ids=False)).last_hidden_state[0]
            vector = states[0] if KINDS[kind][3] == "cls_token" else states.mean(dim=0)
            wanted.append((vector / vector.norm()).numpy())
    found = pipeline.generate(TEXTS).embeddings
    np.testing.assert_allclose(found, np.stack(wanted), atol=1e-4)
    assert (found * np.stack(wanted)).sum(axis=1).min() > 0.99999
    np.testing.assert_allclose(pipeline.generate(TEXTS[1]).embeddings[0], wanted[1], atol=1e-4)
    assert np.linalg.norm(found[0] - found[1]) > 0.01


def test_texts_up_to_the_models_room(sources: Callable[[str], tuple[Path, Any]]) -> None:
    for kind, room in (("BERT", POSITIONS), ("RoBERTa", POSITIONS - 2)):
        _, pipeline = sources(kind)
        with pytest.raises(RequestError, match=f"at most {room} are allowed"):
            pipeline.generate("many words " * 100)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", [{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}], "has a module Dense"),
        ("modules.json", {"path": 3}, "not a list of"),
        ("modules.json", [], "has 0 modules Pooling"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pools by .*max_tokens"),
        ("1_Pooling/config.json", {}, "pools by"),
    ],
)
def test_checkpoints_that_are_refused(
    sources: Callable[[str], tuple[Path, Any]], tmp_path: Path, file: str, content: Any, message: str
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(sources("BERT")[0], folder)
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ExportError, match=message):
        sentence.recipe(Checkpoint(folder))
