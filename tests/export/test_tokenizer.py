"""Token ids in the runtime equal transformers'."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from hypothesis import given
from hypothesis import strategies as st

import mmrt
from mmrt.export.tokenizer import PROBES, tokenizer_file
from mmrt.runtime.manifest import Text
from mmrt.runtime.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def both(sd1_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, object]:
    """The exported tokenizer and transformers' own."""
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(sd1_checkpoint / "tokenizer")
    content, spec = tokenizer_file(theirs, "tokenizers/prompt.json")
    path = tmp_path_factory.mktemp("tokenizer") / "prompt.json"
    path.write_bytes(content)
    return Tokenizer(path, spec), theirs


def same_ids(both: tuple[Tokenizer, object], text: str) -> bool:
    ours, theirs = both
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mmrt.RequestWarning)
        found = ours([text]).tolist()
    return bool(found == theirs([text], padding="max_length", max_length=16, truncation=True)["input_ids"])  # type: ignore[operator]


@pytest.mark.parametrize("text", PROBES)
def test_odd_texts(both: tuple[Tokenizer, object], text: str) -> None:
    assert same_ids(both, text)


@given(st.text(max_size=40))
def test_any_text(both: tuple[Tokenizer, object], text: str) -> None:
    assert same_ids(both, text)


def test_the_files_settings_are_the_manifests(sd1_bundle: Path) -> None:
    prompt = mmrt.load(sd1_bundle).manifest.inputs["prompt"]
    assert isinstance(prompt, Text)
    assert prompt.tokenize["prompt_ids"].length == 16
    text = (sd1_bundle / "tokenizers/prompt.json").read_text(encoding="utf-8")
    assert '"truncation":null' in text
    assert '"padding":null' in text
