"""Texts to token ids, with the tokenizer file that the bundle brings."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers

from mmrt.runtime.arrays import Int64
from mmrt.runtime.errors import BundleError, RequestWarning
from mmrt.runtime.manifest import Tokenize


class Tokenizer:
    """Texts to int64 ids (texts, length): special tokens added, cut at the right, padded with one id."""

    def __init__(self, path: Path, spec: Tokenize) -> None:
        """Raises `BundleError` if the file is not a tokenizer."""
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{path}: not a tokenizer file: {error}") from None
        self._tokenizer.enable_truncation(spec.length)
        self._tokenizer.enable_padding(length=spec.length, pad_id=spec.pad)
        self._path, self._length = path, spec.length

    def __call__(self, texts: Sequence[str]) -> Int64:
        """The ids; a text that is too long is cut, with a `RequestWarning` that says what was cut."""
        try:
            encodings = self._tokenizer.encode_batch(list(texts))
        except Exception as error:  # as above
            raise BundleError(f"{self._path}: the tokenizer fails: {error}") from None
        if any(len(encoding.ids) != self._length for encoding in encodings):
            raise BundleError(f"{self._path}: the tokenizer does not keep to {self._length} tokens")
        for text, encoding in zip(texts, encodings, strict=True):
            if encoding.overflowing:
                self._warn(text, encoding)
        return np.array([encoding.ids for encoding in encodings], dtype=np.int64)

    def _warn(self, text: str, encoding: tokenizers.Encoding) -> None:
        words = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
        kept = max((end for (_, end), special in words if not special), default=0)
        cut = text[kept:].strip()
        warnings.warn(
            f"the text is longer than {self._length} tokens and was cut; left out: {cut!r}",
            RequestWarning,
            stacklevel=2,
        )
