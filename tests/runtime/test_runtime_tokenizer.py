"""Texts to ids and back with files made here: length, mask, what stands around, and texts that grow."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

import mmrt
from mmrt.runtime import sentencepiece
from mmrt.runtime.errors import BundleError, RequestError
from mmrt.runtime.manifest import Tokenize
from mmrt.runtime.tokenizer import _CLEAN, Detokenizer, Tokenizer, _clean, _open, blanked

WORDS = ["<unk>", "<end>", "a", "red", "heart"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Words, and <end> after them."""
    made = tokenizers.Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<end>"])
    made.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 1)])
    return save(made, tmp_path)


def save(made: tokenizers.Tokenizer, folder: Path) -> Path:
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def spec(**changes: Any) -> Tokenize:
    return Tokenize(**{"file": "tokenizer.json", "length": 6, "pad": 1, "mask": "mask", **changes})


def test_the_longest_text_sets_the_length(file: Path) -> None:
    ids, mask = Tokenizer(file, spec())(["a red heart", "", "heart"])
    assert ids.tolist() == [[2, 3, 4, 1], [1, 1, 1, 1], [4, 1, 1, 1]]
    assert mask.tolist() == [[True] * 4, [True, False, False, False], [True, True, False, False]]
    assert (ids.dtype, mask.dtype) == (np.int64, np.bool_)


def test_what_stands_around(file: Path) -> None:
    ours = Tokenizer(file, spec(before=(9, "language"), after=("language", 8)))
    ids, mask = ours(["a", ""], {"language": 7})
    assert ids.tolist() == [[9, 7, 2, 1, 7, 8], [9, 7, 1, 7, 8, 1]]
    assert mask.sum(axis=1).tolist() == [6, 5]


def test_words_around_a_text(file: Path) -> None:
    ids, mask = Tokenizer(file, spec(prefix="a red ", suffix=" a", before=(9,)))(["heart", ""])
    assert ids.tolist() == [[9, 2, 3, 4, 2, 1], [9, 2, 3, 2, 1, 1]]
    assert mask.sum(axis=1).tolist() == [6, 5]


def test_blanks_between_the_first_and_the_last(file: Path) -> None:
    ids, mask = Tokenizer(file, spec(before=(9,)))(["a red heart", "a", ""])
    assert blanked(ids, mask, 7).tolist() == [[9, 7, 7, 7, 1], [9, 7, 1, 1, 1], [9, 1, 1, 1, 1]]


def test_a_text_that_is_too_long_is_refused(file: Path) -> None:
    with pytest.raises(RequestError, match="7 tokens, at most 6"):
        Tokenizer(file, spec(before=(9,)))(["a red heart a red"])


def test_all_of_one_length_without_a_mask(file: Path) -> None:
    ours = Tokenizer(file, spec(mask=None, length=4, before=(9,)))
    with pytest.warns(mmrt.RequestWarning, match="4 tokens and was cut; left out: 'heart a'"):
        ids, mask = ours(["a red heart a", ""])
    assert ids.tolist() == [[9, 2, 3, 1], [9, 1, 1, 1]]
    assert mask.sum(axis=1).tolist() == [4, 2]


def test_no_texts(file: Path) -> None:
    assert Tokenizer(file, spec())([])[0].shape == (0, 1)


def test_the_files_own_padding_does_not_count(file: Path) -> None:
    made = tokenizers.Tokenizer.from_file(str(file))
    made.enable_padding(length=5)
    made.enable_truncation(2)
    assert Tokenizer(save(made, file.parent), spec())(["a red heart"])[0].tolist() == [[2, 3, 4, 1]]


# ---------------------------------------------------------------- texts of ids

LETTERS = [" ", "  ", "n", "'", "v", "r", "e", "t", "s", "m", ".", "?", "!", ",", "n't", " '", "x"]
PIECES = [*(letter.replace(" ", sentencepiece.SPACE) for letter in LETTERS), "\u3000", "\t", "é", "<skip>"]
BYTES = ["x", "y", "\u0120", "Ã", "©", "ð", "Ł", "ĺ", "Ģ", "â", "\u0131", "ł", "日", "'", ".", "<skip>"]
SUBWORDS = ["a", "##b", "##", "n't", "'", "s", ".", ",", "##.", "é", "##n", "n", "<skip>"]
DECODERS: dict[str, tuple[list[str], Any]] = {
    "ByteLevel": (BYTES, decoders.ByteLevel()),
    "Metaspace": (PIECES, decoders.Metaspace()),
    "Metaspace, never": (PIECES, decoders.Metaspace(prepend_scheme="never")),
    "WordPiece": (SUBWORDS, decoders.WordPiece()),
    "WordPiece without cleanup": (SUBWORDS, decoders.WordPiece(cleanup=False)),
    "sentencepiece": (
        PIECES,
        decoders.Sequence(
            [
                decoders.Replace(sentencepiece.SPACE, " "),
                decoders.Fuse(),
                decoders.Replace(Regex(sentencepiece.STRIPPED), ""),
            ]
        ),
    ),
}


@pytest.fixture(scope="module", params=DECODERS)
def texts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tokenizers.Tokenizer, Path]:
    words, decoder = DECODERS[request.param]
    made = tokenizers.Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, "<skip>"))
    made.add_special_tokens(["<skip>"])
    made.decoder = decoder
    return made, save(made, tmp_path_factory.mktemp("texts"))


@given(ids=st.lists(st.integers(0, 22), max_size=40))
@pytest.mark.parametrize("clean", [False, True])
def test_a_text_grows_to_the_whole(texts: tuple[tokenizers.Tokenizer, Path], clean: bool, ids: list[int]) -> None:
    library, path = texts
    wanted = library.decode(ids)
    ours = Detokenizer(path, clean)
    stream, text = ours.stream(), ""
    for token in ids:
        text += stream.push(token)
    text += stream.finish()
    assert text == ours.text(np.array(ids)) == (_clean(wanted) if clean else wanted)


@given(st.text(alphabet=" .?!,'nmsvretx", max_size=30), st.text(alphabet=" .?!,'nmsvretx", max_size=30))
def test_nothing_before_the_open_end_changes(text: str, more: str) -> None:
    end = _open(text)
    assert _clean(text[:end]) + _clean(text[end:] + more) == _clean(text + more)


@pytest.mark.parametrize("pattern", _CLEAN)
def test_words_are_given_out_at_once(pattern: str, tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(models.WordLevel({"▁word": 0, "s": 1, pattern.replace(" ", "▁"): 2}, "s"))
    made.decoder = decoders.Metaspace()
    stream = Detokenizer(save(made, tmp_path), clean=True).stream()
    assert [stream.push(0), stream.push(1)] == ["word", "s"]


def test_half_a_character_waits(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(models.WordLevel({"ð": 0, "Ł": 1, "ĺ": 2, "Ģ": 3, "x": 4}, "x"))
    made.decoder = decoders.ByteLevel()
    ours = Detokenizer(save(made, tmp_path), clean=False)
    stream = ours.stream()
    assert [stream.push(token) for token in (4, 0, 1, 2, 3, 0, 4, 0)] == ["x", "", "", "", "😀", "", "\ufffdx", ""]
    assert stream.finish() == "\ufffd"


def test_ids_that_the_file_lacks_are_skipped(file: Path) -> None:
    made = tokenizers.Tokenizer.from_file(str(file))
    made.decoder = decoders.WordPiece()
    assert Detokenizer(save(made, file.parent), False).text([2, -1, 99, 2**31, 2**40, 3, 1]) == "a red"


# ---------------------------------------------------------------- sentencepiece's rules, damaged files


def as_sentencepiece(charsmap: bytes = b"") -> Any:
    first = ["  <unk>", " ", "▁", "▁a", "b", "c", sentencepiece.MARK]
    second = [" </s>", " <unk>", " ▁a", " b", " >>deu<<", " zz"]
    made = tokenizers.Tokenizer(models.Unigram([(piece, -1.0 * len(piece)) for piece in first + second], 0, False))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(sentencepiece.CODES), "isolated")
    content = json.loads(made.to_str())
    if charsmap:
        content["normalizer"] = {
            "type": "Precompiled",
            "precompiled_charsmap": base64.b64encode(charsmap).decode(),
        }
    return content


def write(content: Any, folder: Path) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "tokenizer.json"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", []),
        ("  ", []),
        ("a b", [2, 1, 3]),  # the blank is a piece, but not one of the vocabulary
        (" a  ", [2]),
        ("ac", [2, 1]),
        ("azz", [2, 5]),  # letters that no piece has, and yet the vocabulary
        ("azzz", [2, 1]),
        (">>deu<<ab", [4, 2, 3]),
        (">>deu<< ab", [4, 2, 3]),
        (">>fra<<ab", [1, 2, 3]),
        (">>deu<<", [4]),
        ("a <unk>", [2, 1, 1]),
    ],
)
def test_the_second_vocabulary(text: str, ids: list[int], tmp_path: Path) -> None:
    found, mask = Tokenizer(write(as_sentencepiece(), tmp_path), spec(length=20))([text])
    assert found[mask].tolist() == ids


def test_the_character_map(tmp_path: Path) -> None:
    """A trie of one key: "A" becomes "a"."""
    units = np.zeros(256, dtype="<u4")
    units[0] = 1 << 10  # the root's children are at 1 ^ byte
    at = 1 ^ ord("A")
    units[at] = (2 << 10) | 1 << 8 | ord("A")  # has a value, at `at ^ 2`
    units[at ^ 2] = 1 << 31
    charsmap = len(units.tobytes()).to_bytes(4, "little") + units.tobytes() + b"a\0"
    ids, mask = Tokenizer(write(as_sentencepiece(charsmap), tmp_path), spec(length=20))(["AAb"])
    assert ids[mask].tolist() == [2, 1, 3]
    assert sentencepiece.normalized(" A  Ab\t ", sentencepiece.Charsmap(charsmap)) == "▁a▁ab\t"


def no_unknown() -> Any:
    content = as_sentencepiece()
    content["model"]["vocab"] = content["model"]["vocab"][:7]
    return content


@pytest.mark.parametrize("content", [no_unknown, lambda: as_sentencepiece(b"\xff\xff\xff\0x"), dict, list])
def test_damaged_sources(content: Callable[[], Any], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Tokenizer(write(content(), tmp_path), spec())(["a"])


@pytest.mark.parametrize("seed", range(30))
def test_hostile_character_maps(seed: int, tmp_path: Path) -> None:
    """Chance as a trie: every end is a `BundleError` or some ids."""
    noise = np.random.default_rng(seed).integers(0, 256, 64, dtype=np.uint8).tobytes()
    low = bytes(byte & (15 if place % 4 else 255) for place, byte in enumerate(noise))
    path = write(as_sentencepiece((48).to_bytes(4, "little") + low), tmp_path)
    with contextlib.suppress(BundleError):
        Tokenizer(path, spec(length=100))(["abc ÄÖÜ \x00\x01\x02\x03 あ", *map(chr, range(256))])


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "Fuse"},
        {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": False},
        {"type": "?"},
    ],
)
def test_damaged_targets(decoder: Any, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Detokenizer(write(as_sentencepiece() | {"decoder": decoder}, tmp_path), False)


def test_normalizers_of_the_library_stay(tmp_path: Path, file: Path) -> None:
    made = tokenizers.Tokenizer.from_file(str(file))
    made.normalizer = normalizers.Lowercase()
    assert Tokenizer(save(made, tmp_path), spec())(["A RED"])[0].tolist() == [[2, 3, 1]]
