"""Texts to token ids and back, with the tokenizer files that the bundle brings."""

from __future__ import annotations

import codecs
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import tokenizers

from mmrt.runtime import placing, sentencepiece
from mmrt.runtime.arrays import Int64
from mmrt.runtime.cleaning import clean
from mmrt.runtime.errors import BundleError, RequestError, RequestWarning
from mmrt.runtime.manifest import Token, Tokenize
from mmrt.runtime.placing import Placed

Bool: TypeAlias = npt.NDArray[np.bool_]


class Tokenizer:
    """Texts to int64 ids (texts, tokens), the special tokens around them, padded at the right with one id."""

    def __init__(self, path: Path, spec: Tokenize) -> None:
        """Raises `BundleError` if the file is not a tokenizer."""
        self._path, self._spec, self._tokenizer = path, spec, _load(path)
        self._room = spec.length - len(spec.before) - len(spec.after)
        with _blame(path, "not a tokenizer file"):
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            if spec.mask is None:
                self._tokenizer.enable_truncation(self._room)
            mark = self._tokenizer.token_to_id(sentencepiece.MARK)
            self._vocabulary = None if mark is None else sentencepiece.Vocabulary(self._tokenizer, mark)

    def __call__(
        self,
        texts: Sequence[str],
        chosen: Mapping[str, int] | None = None,
        pictures: Sequence[Placed] = (),
    ) -> tuple[Int64, Bool]:
        """The ids, and a bool array like them that is true where a text's own tokens are.

        chosen: the token ids of the inputs that `before` and `after` name. pictures: each text's, if it has one. What
        becomes of a text that is too long is said at `Tokenize`: it is cut with a `RequestWarning`, or refused with a
        `RequestError`.
        """
        texts = [clean(text, self._spec.clean) for text in texts]
        spec, prefixes = self._spec.picture, [self._spec.prefix] * len(texts)
        if spec is not None:
            prefixes = [self._spec.prefix.replace(spec.word, placing.words(spec, each)) for each in pictures]
        with _blame(self._path, "the tokenizer fails"):
            encodings = self._tokenizer.encode_batch(
                [prefix + text + self._spec.suffix for prefix, text in zip(prefixes, texts, strict=True)]
            )
        for text, encoding in zip(texts, encodings, strict=True):
            self._check(text, encoding)
        before, after = (_resolve(tokens, chosen or {}) for tokens in (self._spec.before, self._spec.after))
        rows = [self._ids(encoding) for encoding in encodings]
        if spec is not None:
            rows = [placing.number(spec, ids, picture) for ids, picture in zip(rows, pictures, strict=True)]
        return self._pad([[*before, *ids, *after] for ids in rows])

    def _check(self, text: str, encoding: tokenizers.Encoding) -> None:
        if self._spec.needed and not encoding.ids:
            raise RequestError(f"the text has nothing that the model knows: {text[:40]!r}")
        if self._spec.mask is not None:
            count = len(encoding.ids) + self._spec.length - self._room
            if count > self._spec.length:
                raise RequestError(
                    f"the text has {count} tokens, at most {self._spec.length} are allowed: {text[:40]!r}..."
                )
        elif len(encoding.ids) > self._room:
            raise BundleError(f"{self._path}: the tokenizer does not keep to {self._spec.length} tokens")
        elif encoding.overflowing:
            self._warn(text, encoding)

    def _warn(self, text: str, encoding: tokenizers.Encoding) -> None:
        words = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
        kept = max((end for (_, end), special in words if not special), default=0)
        cut = text[kept:].strip()
        warnings.warn(
            f"the text is longer than {self._spec.length} tokens and was cut; left out: {cut!r}",
            RequestWarning,
            stacklevel=4,
        )

    def _ids(self, encoding: tokenizers.Encoding) -> list[int]:
        return self._vocabulary.ids(encoding.tokens) if self._vocabulary else list(encoding.ids)

    def _pad(self, rows: list[list[int]]) -> tuple[Int64, Bool]:
        longest = max([1, *map(len, rows)]) if self._spec.mask is not None else self._spec.length
        ids = np.full((len(rows), longest), self._spec.pad, dtype=np.int64)
        for row, own in zip(ids, rows, strict=True):
            row[: len(own)] = own
        lengths = np.array([len(own) for own in rows], dtype=np.int64)
        return ids, np.arange(longest) < lengths[:, None]


def _resolve(tokens: Sequence[Token], chosen: Mapping[str, int]) -> list[int]:
    return [chosen[token] if isinstance(token, str) else token for token in tokens]


def blanked(ids: Int64, mask: Bool, blank: int) -> Int64:
    """The ids (texts, tokens) with `blank` in place of each row's own tokens, but its first and its last."""
    last = mask.sum(axis=1, keepdims=True) - 1
    place = np.arange(ids.shape[1])
    return np.where((place > 0) & (place < last), blank, ids)


class Detokenizer:
    """Token ids to texts without special tokens. Ids that the file does not have are skipped."""

    def __init__(self, path: Path, clean: bool) -> None:
        """Raises `BundleError` if the file is not a tokenizer, or joins tokens in a way that is not known here."""
        tokenizer = _load(path)
        decoder = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else {"type": "no decoder"}
        kind = decoder["type"]
        if kind not in ("ByteLevel", "Metaspace", "WordPiece") and decoder != sentencepiece.DECODER:
            raise BundleError(f"{path}: tokens are joined by {kind}, wanted ByteLevel, Metaspace or WordPiece")
        self._path, self._tokenizer, self.bytes = path, tokenizer, kind == "ByteLevel"
        self._decoder = tokenizer.decoder if kind in ("Metaspace", "WordPiece") else None
        added = tokenizer.get_added_tokens_decoder().values()
        self._special = {token.content for token in added if token.special}
        self.strip, self.clean = kind == "Sequence", clean
        self._parts: dict[tuple[int, bool], str | bytes | None] = {}

    def text(self, ids: Iterable[int]) -> str:
        """What transformers' `decode(ids, skip_special_tokens=True)` gives."""
        stream = self.stream()
        return "".join([*map(stream.push, ids), stream.finish()])

    def stream(self) -> TextStream:
        """A new text, token by token."""
        return TextStream(self)

    def part(self, token: int, first: bool) -> str | bytes | None:
        """What a token adds to the text, or, where that is no whole characters, to its UTF-8; None if it is special.

        Tokens are joined one by one.
        """
        key = token, first
        if key not in self._parts:
            with _blame(self._path, "the tokenizer fails"):
                self._parts[key] = self._part(token, first)
        return self._parts[key]

    def _part(self, token: int, first: bool) -> str | bytes | None:
        piece = self._tokenizer.id_to_token(int(token)) if 0 <= token < 2**32 else None
        if piece is None or piece in self._special:
            return None
        if self.bytes:
            known = all(each in _BYTES for each in piece)
            return _whole(bytes(_BYTES[each] for each in piece) if known else piece.encode())
        if self._decoder is None:
            return str(piece.replace(sentencepiece.SPACE, " "))
        return str(self._decoder.decode([piece] if first else ["", piece]))


def _whole(utf8: bytes) -> str | bytes:
    try:
        return utf8.decode()
    except UnicodeDecodeError:
        return utf8


class TextStream:
    """A text that grows with each token: what is given out never changes."""

    def __init__(self, parts: Detokenizer) -> None:
        self._parts = parts
        self._first = True
        self._utf8, self._open = codecs.getincrementaldecoder("utf-8")("replace"), False
        self._blanks, self._begun = "", False
        self._unclean = ""

    def push(self, token: int) -> str:
        """The text that is certain now and was not before; "" while a character or a blank is open."""
        part = self._parts.part(token, self._first)
        if part is None:
            return ""
        self._first = False
        if self._open or isinstance(part, bytes):
            part = self._utf8.decode(part.encode() if isinstance(part, str) else part)
            self._open = self._utf8.getstate()[0] != b""
        return self._add(part)

    def finish(self) -> str:
        """What was still open."""
        text = self._add(self._utf8.decode(b"", final=True))
        return text + _clean(self._unclean) if self._parts.clean else text

    def _add(self, text: str) -> str:
        if self._parts.strip:
            text = self._strip(text)
        if self._parts.clean:
            text = self._unclean + text
            end = _open(text)
            text, self._unclean = _clean(text[:end]), text[end:]
        return text

    def _strip(self, text: str) -> str:
        text = self._blanks + text if self._begun else text.lstrip()
        body = text.rstrip()
        self._blanks, self._begun = text[len(body) :], self._begun or bool(body)
        return body


_CLEAN = {
    " .": ".",
    " ?": "?",
    " !": "!",
    " ,": ",",
    " ' ": "'",
    " n't": "n't",
    " 'm": "'m",
    " 's": "'s",
    " 've": "'ve",
    " 're": "'re",
}
_OPEN = re.compile(r" [ n']*[vr]?\Z")


def _clean(text: str) -> str:
    """`PreTrainedTokenizerBase.clean_up_tokenization` of transformers."""
    for old, new in _CLEAN.items():
        text = text.replace(old, new)
    return text


def _open(text: str) -> int:
    """From where on what follows may change what `_clean` makes of the text.

    Before that, no letter is one that a pattern may still have in it: a pattern has one blank or two, one of them in
    front, and only n, ', v and r come before another of its characters.
    """
    found = _OPEN.search(text)
    return found.start() if found else len(text)


def _alphabet() -> dict[str, int]:
    """The characters that stand for bytes in byte-level vocabularies, as GPT-2 made them up."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


_BYTES = _alphabet()


def _load(path: Path) -> tokenizers.Tokenizer:
    with _blame(path, "not a tokenizer file"):
        return tokenizers.Tokenizer.from_file(str(path))


@contextmanager
def _blame(path: Path, what: str) -> Iterator[None]:
    """`BundleError` for all that the library raises: bare `Exception`, and, where it panics, a bare `BaseException`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise BundleError(f"{path}: {what}: {error}") from None
