"""What tokenizers do to a text first."""

from __future__ import annotations

import sys

import pytest

from mmrt.runtime.cleaning import STEPS, clean
from mmrt.runtime.errors import RequestError


@pytest.mark.parametrize(
    ("step", "text", "wanted"),
    [
        ("entities", "&amp;lt; &#39;", "< '"),
        ("underscores", "a_b", "a b"),
        ("pieces", "\u2581a\u2581b", " a b"),
        ("punctuation", "a, b! 'c' \u3002 \\", "a b c \u3002 "),
        ("lower", "\u0130 \u039f\u0394\u039f\u03a3", "i\u0307 \u03bf\u03b4\u03bf\u03c2"),
        ("blanks", "\u3000 a\t\n b\x85", "a b"),
        ("mend", "plain, 100 % ~", "plain, 100 % ~"),
    ],
)
def test_steps(step: str, text: str, wanted: str) -> None:
    assert STEPS[step](text) == wanted


def test_their_order() -> None:
    assert clean("a_b", ("underscores", "punctuation")) == "a b"
    assert clean("a_b", ("punctuation", "underscores")) == "ab"
    assert clean("A_", ()) == "A_"


@pytest.mark.parametrize("text", ["caf\u00e9", "a &amp; b", "a\tb"])
def test_without_ftfy(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain texts do without; of others it is said what they need."""
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert clean("a red heart", ("mend",)) == "a red heart"
    with pytest.raises(RequestError, match="pip install ftfy"):
        clean(text, ("mend",))
