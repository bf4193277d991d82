"""Token ids in the runtime equal transformers'."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from corpus import MADE, gemma, lines, marian, siglip
from hypothesis import given
from hypothesis import strategies as st

import mmrt
from mmrt.export.quiet import quiet
from mmrt.export.tokenizer import PROBES, languages, source_tokenizer, target_tokenizer, tokenizer_file
from mmrt.runtime.errors import ExportError
from mmrt.runtime.manifest import Text, TextOutput
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
        found = ours([text])[0].tolist()
    return bool(found == theirs([text], padding="max_length", max_length=16, truncation=True)["input_ids"])  # type: ignore[operator]


@pytest.mark.parametrize("text", PROBES)
def test_odd_texts(both: tuple[Tokenizer, object], text: str) -> None:
    assert same_ids(both, text)


@given(st.text(max_size=40))
def test_any_text(both: tuple[Tokenizer, object], text: str) -> None:
    assert same_ids(both, text)


@pytest.mark.parametrize("make", [siglip, gemma])
def test_texts_of_one_length(make: Callable[[Path], Any], tmp_path: Path) -> None:
    """SigLIP's, but for texts that spell out a special token, which are text to us; and SigLIP 2's."""
    with quiet():
        theirs = make(tmp_path / "made")
    content, spec = tokenizer_file(theirs, "text.json")
    (tmp_path / "text.json").write_bytes(content)
    texts = [line for line in lines(3000, seed=7) if make is gemma or not re.search("</s>|<unk>", line)]
    with quiet():
        found = Tokenizer(tmp_path / "text.json", spec)(texts)[0].tolist()
        wanted = theirs(texts, padding="max_length", max_length=spec.length, truncation=True)["input_ids"]
    assert [each for each in zip(texts, found, wanted, strict=True) if each[1] != each[2]] == []
    assert {len(row) for row in found} == {64}


def test_padding_at_the_left_is_refused(tmp_path: Path) -> None:
    theirs = gemma(tmp_path)
    theirs.padding_side = "left"
    with pytest.raises(ExportError, match="padding_side is 'left', wanted 'right'"):
        tokenizer_file(theirs, "text.json")


def test_the_files_settings_are_the_manifests(sd1_bundle: Path) -> None:
    prompt = mmrt.load(sd1_bundle).manifest.inputs["prompt"]
    assert isinstance(prompt, Text)
    assert prompt.tokenize["prompt_ids"].length == 16
    text = (sd1_bundle / "tokenizers/prompt.json").read_text(encoding="utf-8")
    assert '"truncation":null' in text
    assert '"padding":null' in text


# ---------------------------------------------------------------- what stands around a text, and what is refused


@pytest.mark.parametrize(
    ("name", "before", "after", "code"),
    [
        ("mBART", (), (2, "language"), "ro_RO"),
        ("mBART-50", ("language",), (2,), "ro_RO"),
        ("M2M100", ("language",), (2,), "ro"),
        ("NLLB", ("language",), (2,), "ron_Latn"),
        ("Marian", ("language",), (0,), "fra"),
    ],
)
def test_languages_stand_around_the_text(
    name: str, before: tuple[object, ...], after: tuple[object, ...], code: str, tmp_path: Path
) -> None:
    pytest.importorskip("sentencepiece")
    with quiet():
        theirs = MADE[name](tmp_path)
    _, spec = source_tokenizer(theirs, "source.json", 64, "mask", "language")
    assert (spec.before, spec.after, spec.length, spec.mask) == (before, after, 64, "mask")
    assert code in languages(theirs)
    assert getattr(theirs, "src_lang", None) == MADE_LANGUAGES.get(name)  # as it was


MADE_LANGUAGES = {"mBART": "en_XX", "mBART-50": "en_XX", "M2M100": "en", "NLLB": "eng_Latn"}


def test_no_languages(tmp_path: Path) -> None:
    theirs = MADE["GPT-2"](tmp_path)
    assert languages(theirs) == {}
    with pytest.raises(ExportError, match="has no languages"):
        source_tokenizer(theirs, "source.json", 64, "mask", "language")


def test_the_entry_for_texts(tmp_path: Path) -> None:
    _, output = target_tokenizer(MADE["BERT"](tmp_path), "target.json")
    assert output == TextOutput(source="sequences", file="target.json", clean=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"add_dummy_prefix": False}, "add_dummy_prefix off"),
        ({"remove_extra_whitespaces": False}, "remove_extra_whitespaces off"),
        ({"user_defined_symbols": ["fox"]}, "user-defined pieces"),
        ({"byte_fallback": True}, "byte pieces"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
    ],
)
def test_sentencepiece_settings_that_cannot_be_said(options: dict[str, object], message: str, tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    with quiet():
        theirs = marian(tmp_path, **options)
    with pytest.raises(ExportError, match=message):
        source_tokenizer(theirs, "source.json", 64, "mask")
    with pytest.raises(ExportError, match=message):
        target_tokenizer(theirs, "target.json")


def test_another_normalizer_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probes see it where a tokenizer does more than its files say."""
    theirs = MADE["GPT-2"](tmp_path)
    whole = type(theirs)._encode_plus
    monkeypatch.setattr(type(theirs), "_encode_plus", lambda self, text, **rest: whole(self, text.upper(), **rest))
    with pytest.raises(ExportError, match="transformers gives"):
        source_tokenizer(theirs, "source.json", 64, "mask")


def test_another_decoder_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = MADE["GPT-2"](tmp_path)
    whole = type(theirs)._decode
    monkeypatch.setattr(type(theirs), "_decode", lambda self, *ids, **rest: whole(self, *ids, **rest).title())
    with pytest.raises(ExportError, match="transformers gives"):
        target_tokenizer(theirs, "target.json")
