"""Tokenizers against transformers' own, of every class that the text families use: ids of texts, texts of ids."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")

from corpus import MADE, SENTENCES, lines

from mmrt.export.quiet import quiet
from mmrt.export.tokenizer import languages, source_tokenizer, target_tokenizer
from mmrt.runtime.tokenizer import Detokenizer, Tokenizer

LINES = lines()
ROOMY = 2**20


class Pair(NamedTuple):
    """transformers' tokenizer, and its files."""

    theirs: Any
    ours: Tokenizer
    texts: Detokenizer
    known: Mapping[str, int]


@pytest.fixture(scope="module", params=MADE)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("tokenizer")
    with quiet():
        theirs = MADE[request.param](folder / "made")
    marian = hasattr(theirs, "spm_source")
    known = {} if marian else languages(theirs)
    source, spec = source_tokenizer(theirs, "source.json", ROOMY, "mask", "language" if known else None)
    target, output = target_tokenizer(theirs, "target.json")
    (folder / "source.json").write_bytes(source)
    (folder / "target.json").write_bytes(target)
    texts = Detokenizer(folder / "target.json", output.clean)
    return Pair(theirs, Tokenizer(folder / "source.json", spec), texts, known)


def their_ids(theirs: Any, texts: list[str]) -> list[list[int]]:
    with quiet():
        return [theirs(text)["input_ids"] for text in texts]


def our_ids(ours: Tokenizer, texts: list[str], chosen: Mapping[str, int]) -> list[list[int]]:
    ids, mask = ours(texts, chosen)
    return [row[own].tolist() for row, own in zip(ids, mask, strict=True)]


def differences(texts: list[Any], found: list[Any], wanted: list[Any]) -> list[Any]:
    return [each for each in zip(texts, found, wanted, strict=True) if each[1] != each[2]][:5]


def test_the_corpus_is_of_many_scripts() -> None:
    assert len(LINES) == 5000
    assert len(SENTENCES) > 40
    assert lines() == LINES


def test_ids_and_their_texts(pair: Pair) -> None:
    theirs, ours, texts, known = pair
    code = [*known][-1] if known else ""
    if code:
        theirs.src_lang = code
    wanted = their_ids(theirs, LINES)
    found = our_ids(ours, LINES, {"language": known[code]} if code else {})
    assert differences(LINES, found, wanted) == []
    decoded = [theirs.decode(row, skip_special_tokens=True) for row in wanted]
    assert differences(wanted, [texts.text(row) for row in wanted], decoded) == []
    some = wanted[::5]  # what is given out on the way stays
    assert differences(some, [streamed(texts, row) for row in some], decoded[::5]) == []


def test_texts_of_any_ids(pair: Pair) -> None:
    theirs, _, texts, _ = pair
    vocabulary = theirs.get_vocab()
    times = {token for text, token in vocabulary.items() if text.startswith("<|") and "." in text}  # see _prove_target
    tokens = sorted(set(vocabulary.values()) - times)
    chance = random.Random(3)
    rows = [chance.choices(tokens, k=chance.randint(0, 30)) for _ in range(1000)]
    with quiet():
        wanted = [theirs.decode(row, skip_special_tokens=True) for row in rows]
    assert differences(rows, [texts.text(row) for row in rows], wanted) == []
    assert [streamed(texts, row) for row in rows] == wanted


def streamed(texts: Detokenizer, row: list[int]) -> str:
    stream = texts.stream()
    return "".join([*[stream.push(token) for token in row], stream.finish()])


def test_a_target_language_for_marian(tmp_path: Path) -> None:
    """Its token comes before the text, as transformers takes `>>fra<<` off the text's beginning."""
    with quiet():
        theirs = MADE["Marian"](tmp_path / "made")
    content, spec = source_tokenizer(theirs, "source.json", ROOMY, "mask", "target_language")
    assert languages(theirs).keys() == {"deu", "fra"}
    assert spec.before == ("target_language",)
    (tmp_path / "source.json").write_bytes(content)
    some = [line for line in LINES[:1500] if ">>" not in line]
    found = our_ids(Tokenizer(tmp_path / "source.json", spec), some, {"target_language": languages(theirs)["fra"]})
    assert differences(some, found, their_ids(theirs, [f">>fra<<{line}" for line in some])) == []
