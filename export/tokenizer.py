"""A transformers tokenizer as one file of the `tokenizers` library, proved to give the same ids."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import tokenizers

from mmrt.export.quiet import quiet
from mmrt.runtime.errors import ExportError
from mmrt.runtime.manifest import Tokenize
from mmrt.runtime.tokenizer import Tokenizer

PROBES = (
    "",
    " ",
    "a red heart",
    "红心，一辆蓝色的车",  # noqa: RUF001
    "👩‍👩‍👧 ❤️ 🇨🇳",
    "tabs\tlines\r\n\x00\x07 and \u200b\ufeff controls",
    "<|endoftext|> in the middle <|startoftext|>",
    "İstanbul Ünïcödé e\u0301 ﬁ ½ Ⅷ ß",
    "don't you'll 12345 3.14!!! ...---...",
    "Ωμέγα עברית العربية हिन्दी ไทย 한국어 日本語",
    "x" * 400,
    "many words " * 100,
    "\U0001d518\U0001d52b\U0001d526 \U0010ffff \ue000",
)


def tokenizer_file(tokenizer: Any, path: str) -> tuple[bytes, Tokenize]:
    """The file's content and the manifest's entry for it, which says that it is at `path` in the bundle.

    Raises `ExportError` where the tokenizer cannot be said so, or gives other ids for one of `PROBES`.
    """
    spec = Tokenize(file=path, length=tokenizer.model_max_length, pad=tokenizer.pad_token_id)
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:  # transformers before version 5 also has tokenizers in Python
        from transformers.convert_slow_tokenizer import convert_slow_tokenizer

        fast = convert_slow_tokenizer(tokenizer)
    copy = tokenizers.Tokenizer.from_str(fast.to_str())
    copy.no_truncation()
    copy.no_padding()
    content = copy.to_str(pretty=False).encode()
    _compare(tokenizer, content, spec)
    return content, spec


def _compare(tokenizer: Any, content: bytes, spec: Tokenize) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        file.write_bytes(content)
        ours = Tokenizer(file, spec)
    with quiet():
        found = ours(PROBES).tolist()
        wanted = tokenizer(list(PROBES), padding="max_length", max_length=spec.length, truncation=True)["input_ids"]
    for text, ids, theirs in zip(PROBES, found, wanted, strict=True):
        if ids != theirs:
            raise ExportError(
                f"tokenizer: {text[:40]!r} gives the ids {ids[:8]}..., transformers gives {theirs[:8]}..."
            )
