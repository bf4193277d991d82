"""Sentencepiece's rules that the `tokenizers` library only comes near to: its normalization, and a second vocabulary.

The model's vocabulary of a file "as sentencepiece" has two blanks and the unknown token, a blank, the .spm file's
pieces, `MARK`, and then, for each id, a blank and the token's text. Normalized texts have no blanks, so nothing that
has one is ever found in them. The id of a found piece is its text's place after `MARK`; a piece without one is unknown.
Of the normalizer, the file says the character map only. Where it has a pre-tokenizer, a `>>code<<` at the start of a
text, or of what follows an added token, is one piece.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers import normalizers

MARK = " as sentencepiece "
SPACE = "\u2581"
CODES = rf"\A [^{SPACE}]*"  # what the pre-tokenizer keeps apart

# Joined pieces as text: blanks for SPACE, then Python's str.strip(), as transformers does for Marian and M2M100.
_BLANKS = r"\x{9}-\x{d}\x{1c}-\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"
STRIPPED = rf"\A[{_BLANKS}]+|[{_BLANKS}]+\z"
DECODER: dict[str, Any] = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "Fuse"},
        {"type": "Replace", "pattern": {"Regex": STRIPPED}, "content": ""},
    ],
}


class Vocabulary:
    """The ids of found pieces."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, mark: int) -> None:
        """Makes the tokenizer normalize as sentencepiece does; `mark` is the place of `MARK`.

        Raises `ValueError` if the file is not as said above.
        """
        self._tokenizer, self._first, self._unknown = tokenizer, mark + 1, str(tokenizer.id_to_token(0))[1:]
        if self._place(self._unknown) < self._first:
            raise ValueError("the unknown token has no id")
        normalizer = json.loads(tokenizer.normalizer.__getstate__()) if tokenizer.normalizer else {}
        charsmap = base64.b64decode(normalizer.get("precompiled_charsmap", ""), validate=True)
        tokenizer.normalizer = normalizers.Normalizer.custom(
            _Normalizer(Charsmap(charsmap), self if tokenizer.pre_tokenizer else None)
        )

    def ids(self, pieces: Sequence[str]) -> list[int]:
        """The ids of pieces as the tokenizer found them."""
        unknown = self._place(self._unknown)
        places = (self._place(piece if piece.startswith(" ") else f" {piece}") for piece in pieces)
        return [(place if place >= self._first else unknown) - self._first for place in places]

    def _place(self, text: str) -> int:
        return self._tokenizer.token_to_id(text) or 0

    def code(self, code: str) -> str:
        """A language's code as the piece that the tokenizer keeps apart; a blank, which has no id, if it is unknown."""
        return f" {code}" if self._place(f" {code}") >= self._first else " "


class _Normalizer:
    """What the `tokenizers` library calls with each stretch of text between added tokens."""

    def __init__(self, charsmap: Charsmap, codes: Vocabulary | None) -> None:
        self._charsmap, self._codes = charsmap, codes

    def normalize(self, stretch: tokenizers.NormalizedString) -> None:
        text, code = stretch.normalized, ""
        if self._codes and text.startswith(">>") and (end := text.find("<<")) >= 0:
            code, text = self._codes.code(text[: end + 2]), text[end + 2 :]
        stretch.clear()
        stretch.append(code + normalized(text, self._charsmap))


class Charsmap:
    """Sentencepiece's `precompiled_charsmap`: a double-array trie (darts-clone) of UTF-8, and what its keys become."""

    def __init__(self, blob: bytes) -> None:
        """Raises `ValueError` where the sizes contradict each other."""
        size = int.from_bytes(blob[:4], "little")
        if size % 4 or size > max(len(blob) - 4, 0):
            raise ValueError(f"the character map has {len(blob)} bytes, its trie {size}")
        self._units = struct.unpack_from(f"<{size // 4}I", blob, 4) if size else ()
        self._values = blob[4 + size :]

    def longest(self, text: bytes, start: int) -> tuple[int, bytes] | None:
        """The end of the longest key that `text` has at `start`, and what it becomes."""
        if not self._units:
            return None
        units, values, found = self._units, self._values, None
        node = _offset(units[0])
        for place in range(start, len(text)):
            node ^= text[place]
            if node >= len(units) or units[node] & 0x800000FF != text[place]:
                break
            leaf = units[node] >> 8 & 1
            node ^= _offset(units[node])
            if leaf:
                begin = units[node] & 0x7FFFFFFF
                found = place + 1, values[begin : values.index(0, begin)]
        return found


def _offset(unit: int) -> int:
    return unit >> 10 << ((unit & 512) >> 6)


def normalized(text: str, charsmap: Charsmap) -> str:
    """`Normalizer::Normalize` of sentencepiece with its usual settings: blanks become `SPACE`, one for several, none at
    the end, and always one in front."""
    data, place, after_blank, parts = text.encode(), 0, True, []
    while place < len(data):
        if found := charsmap.longest(data, place):
            place, part = found
        else:
            width = 1 + (data[place] >= 0xC0) + (data[place] >= 0xE0) + (data[place] >= 0xF0)
            place, part = place + width, data[place : place + width]
        if after_blank:
            part = part.lstrip(b" ")
        if part:
            after_blank = part.endswith(b" ")
            parts.append(part)
    if not parts:
        return ""
    return (SPACE + b"".join(parts).decode(errors="replace").replace(" ", SPACE)).rstrip(SPACE)
