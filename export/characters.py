"""Tokenizers of single characters, with blanks between them, as files of the `tokenizers` library: VITS's."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from mmrt.export.quiet import quiet
from mmrt.export.tokenizer import PROBES, read_back, same_ids, serialized
from mmrt.runtime.errors import ExportError
from mmrt.runtime.manifest import Tokenize
from mmrt.runtime.tokenizer import Tokenizer

_BLANK = "\U000f0ab1"  # what is between characters, where its id is no character's
_STRANGE = "\U000f0ab2"  # a character that is not in the vocabulary


def character_tokenizer(tokenizer: Any, path: str, length: int, mask: str) -> tuple[bytes, Tokenize]:
    """The content of the file at `path`, and the manifest's entry for it: texts of at least one and up to `length`
    tokens, with a mask.

    tokenizer: transformers' `VitsTokenizer`, which takes texts here as it takes them from its phonemizer or romanizer.
    Raises `ExportError` where ids differ from transformers' for one of `PROBES`.
    """
    if type(tokenizer).__name__ != "VitsTokenizer":
        raise ExportError(f"tokenizer: {type(tokenizer).__name__}, wanted VitsTokenizer")
    if 0 not in tokenizer.decoder:
        raise ExportError("tokenizer: vocab.json gives nothing the id 0, which is what stands between characters")
    made = _made(tokenizer)
    spec = Tokenize(file=path, length=length, pad=0, mask=mask, needed=True)
    content = serialized(made)
    ours = read_back(content, lambda file: Tokenizer(file, msgspec.structs.replace(spec, length=2**20, needed=False)))
    characters = "".join(each for each in tokenizer.encoder if len(each) == 1)
    special = tokenizer.all_special_tokens
    probes = [
        *PROBES,
        characters,
        characters[::-1],
        characters.upper(),
        *(f"{each}a{each}{each} b" for each in special),
    ]
    with quiet(), as_written(tokenizer):
        ids, own = ours(probes)
        wanted = [tokenizer(text)["input_ids"] for text in probes]
    same_ids(probes, [row[places].tolist() for row, places in zip(ids, own, strict=True)], wanted)
    return content, spec


@contextmanager
def as_written(tokenizer: Any) -> Iterator[None]:
    """Let the tokenizer take phonemes, or Latin letters, where it would make them of a text itself."""
    before = {name: getattr(tokenizer, name) for name in ("phonemize", "normalize", "is_uroman")}
    tokenizer.is_uroman = False
    if tokenizer.phonemize:
        tokenizer.phonemize = tokenizer.normalize = False
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(tokenizer, name, value)


def _made(tokenizer: Any) -> tokenizers.Tokenizer:
    """Characters by themselves; a blank at every border of one that is no special token, where there are blanks."""
    vocabulary = {text: token for text, token in tokenizer.encoder.items() if len(text) == 1}
    special = set(tokenizer.all_special_tokens)
    unknown, normalized = tokenizer.unk_token_id, tokenizer.normalize and not tokenizer.phonemize
    if unknown is None:
        raise ExportError(f"tokenizer: {tokenizer.unk_token!r}, which stands for unknown characters, has no id")
    named = {token: text for text, token in vocabulary.items()}
    blank, other = named.setdefault(0, _BLANK), named.setdefault(unknown, tokenizer.unk_token)  # one text for an id
    model = models.WordLevel({text: token for token, text in named.items()}, unk_token=other)
    made = tokenizers.Tokenizer(model)
    plain = [each for each in vocabulary if each not in special]
    steps: list[Any] = []
    if blank == _BLANK and not normalized:
        steps = [normalizers.Replace(_BLANK, _STRANGE), normalizers.Replace(tokenizer.decoder[0], _BLANK)]
    if normalized:
        steps += _lowered({*vocabulary, "ț"} if tokenizer.language == "ron" else {*vocabulary})
    steps += [normalizers.Replace("ț", "ţ")] if tokenizer.language == "ron" else []
    if normalized:
        steps += [normalizers.Replace(Regex(f"[^{_class(vocabulary)}]"), ""), normalizers.Strip()]
    if tokenizer.add_blank:
        kind = _class(plain) if normalized else f"^{_class({_BLANK, *special & vocabulary.keys()})}"
        steps.append(normalizers.Replace(Regex(f"(?<=[{kind}])|(?=[{kind}])"), blank))
    made.normalizer = normalizers.Sequence(steps)
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    if not normalized:
        apart = [text for text in special if text != tokenizer.decoder[0]]
        made.add_special_tokens([tokenizers.AddedToken(text, normalized=False, special=True) for text in apart])
    return made


def _lowered(known: set[str]) -> list[Any]:
    """Replacements of the characters that are known in lower case alone."""
    every: Iterable[str] = map(chr, range(sys.maxunicode + 1))
    upper = (each for each in every if each.lower() != each and each not in known)
    return [normalizers.Replace(each, each.lower()) for each in upper if known & {*each.lower()}]


def _class(characters: Iterable[str]) -> str:
    """The inside of a character class."""
    return "".join(f"\\x{{{ord(each):x}}}" for each in characters)
