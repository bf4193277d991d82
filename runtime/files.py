"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmrt.runtime.errors import RequestError


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end. Raises `RequestError` if it cannot be
    written; whatever is raised, what was at `path` stays."""
    path = Path(path)
    beside = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        try:
            yield beside
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise RequestError(f"{path}: cannot be written: {error.strerror or error}") from None
