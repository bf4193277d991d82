"""What some models' tokenizers do to a text before they look for tokens: steps by name, done one after the other."""

from __future__ import annotations

import html
import string
from collections.abc import Callable, Sequence

from mmrt.runtime.errors import RequestError


def clean(text: str, steps: Sequence[str]) -> str:
    """The text after the steps. Raises `RequestError` where one needs a package that is missing."""
    for step in steps:
        text = STEPS[step](text)
    return text


def _mended(text: str) -> str:
    """ftfy's repair of broken Unicode, which leaves plain ASCII without entities and control signs as it is."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text
    try:
        import ftfy
    except ImportError:
        raise RequestError(
            f"{text[:40]!r} has signs that the model's tokenizer mends with ftfy: pip install ftfy"
        ) from None
    return str(ftfy.fix_text(text))


_PUNCTUATION = str.maketrans("", "", string.punctuation)
STEPS: dict[str, Callable[[str], str]] = {
    "mend": _mended,
    "entities": lambda text: html.unescape(html.unescape(text)),
    "underscores": lambda text: text.replace("_", " "),
    "pieces": lambda text: text.replace("\u2581", " "),  # sentencepiece's own sign for a blank
    "punctuation": lambda text: text.translate(_PUNCTUATION),
    "lower": str.lower,
    "blanks": lambda text: " ".join(text.split()),
}
