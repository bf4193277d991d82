"""What a bundle's inputs are called on the command line, where `negative_prompt` is `--negative-prompt`, and so on."""

from __future__ import annotations

from collections.abc import Iterable

_SHORT = {"negative_prompt": "--negative", "num_images": "-n", "num_texts": "-n", "num_sounds": "-n"}
OWN = frozenset(  # of the commands that take inputs, `mmrt generate` and `mmrt bench`
    {"--output", "-o", "--grid", "--rank", "--keep", "--preview", "--repeat", "--json", "--quiet", "-q", "--help", "-h"}
    | {"--device", "--engine", "--precision", "--memory", "--build", "--no-build"}
)


def flags(name: str) -> tuple[str, ...]:
    """How the input is given."""
    return f"--{name.replace('_', '-')}", *([_SHORT[name]] if name in _SHORT else [])


def clash(names: Iterable[str]) -> str | None:
    """What is wrong with inputs of these names, in a line: two, or one and a command's own, are given alike."""
    given: dict[str, str] = {}
    for name in names:
        for flag in flags(name):
            if flag in OWN:
                return f"the input {name!r} is {flag} on the command line, an option of mmrt itself: name it otherwise"
            if (other := given.setdefault(flag, name)) != name:
                return f"the inputs {other!r} and {name!r} are both {flag} on the command line: name one otherwise"
    return None
