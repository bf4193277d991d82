"""What a manifest has so far while it is checked: its inputs, and the arrays that are made of them, in order."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from mmrt.runtime.errors import BundleError
from mmrt.runtime.manifest import Array, Choice, Image, Manifest, Number, Ratio, Shape, Size, Token

_LARGEST = 2**31  # elements of an array in its fixed dimensions


def require(condition: bool, where: str, what: str) -> None:
    """Raises `BundleError` naming the place."""
    if not condition:
        raise BundleError(f"manifest.json: {what} - at `{where}`")


def names(names: Iterable[Any]) -> str:
    """As a message has them."""
    return ", ".join(repr(name) for name in sorted(names))


class Shaped(NamedTuple):
    """An array's dtype and what is known of its dimensions."""

    dtype: str
    dims: tuple[int | None, ...]

    @staticmethod
    def of(array: Array) -> Shaped:
        return Shaped(array.dtype, tuple(dim if isinstance(dim, int) else None for dim in array.shape))

    def like(self, other: Shaped) -> bool:
        """Whether one array can be both."""
        same_kind = self.dtype == other.dtype and len(self.dims) == len(other.dims)
        return same_kind and all(a == b or None in (a, b) for a, b in zip(self.dims, other.dims, strict=True))

    def __str__(self) -> str:
        return f"{self.dtype}({', '.join('?' if dim is None else str(dim) for dim in self.dims)})"


class Environment:
    """The arrays that there are so far, and what may be said of them: each of its methods raises `BundleError`."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.sized = any(isinstance(value, Size) for value in manifest.inputs.values())
        self.free = any(  # pictures of their own size
            isinstance(value, Image) and not (value.fit or value.patches or value.split)
            for value in manifest.inputs.values()
        )
        self.made: dict[str, Shaped] = {}  # the arrays that there are so far
        self.whole: set[str] = set()  # those of them that have no rows for results
        self.perhaps: dict[str, str] = {}  # those of them that there are only where an input is given

    def file(self, path: str, where: str) -> None:
        require(path in self.manifest.files, where, f"{path!r} is not listed in `files`")

    def not_absurd(self, shape: Iterable[int | str | Ratio], where: str) -> None:
        elements = math.prod(dim for dim in shape if isinstance(dim, int))
        require(elements <= _LARGEST, where, f"{elements:,} elements are more than {_LARGEST:,}")

    def switch(self, name: str, where: str) -> None:
        self.refers(name, (Choice,), where)
        require(set(self.choices(name)) == {"no", "yes"}, where, f"{name!r} is not a choice of 'no' and 'yes'")

    def make(self, name: str, shape: Shaped, where: str) -> None:
        require(name not in self.made, where, f"{name!r} is made twice")
        self.made[name] = shape

    def tokens(self, tokens: Iterable[Token], where: str, prompt: bool = False) -> None:
        """Those that are names are names of choices with tokens: for every one of their names but in a `prompt`."""
        for token in tokens:
            if isinstance(token, str):
                self.refers(token, (Choice,), where)
                choice = self.manifest.inputs[token]
                known = isinstance(choice, Choice) and bool(choice.tokens)
                require(known, where, f"the choice {token!r} has no tokens")
                assert isinstance(choice, Choice)
                certain = choice.silent is None and choice.detected is None
                require(prompt or certain, where, f"the choice {token!r} has names without a token")

    def refers(self, name: str | None, kinds: tuple[type, ...], where: str) -> None:
        if name is not None:
            wanted = " or ".join(kind.__name__.lower() for kind in kinds)
            found = self.manifest.inputs.get(name)
            require(isinstance(found, kinds), where, f"{name!r} is not an input of kind {wanted}")
            each = isinstance(found, Number) and found.array is not None
            require(not each, where, f"{name!r} has an array, so each result may have its own")

    def choices(self, name: str) -> tuple[str, ...]:
        choice = self.manifest.inputs[name]
        assert isinstance(choice, Choice)
        return choice.choices

    def certain(self, array: str, when: str | None, where: str) -> None:
        wanted = self.perhaps.get(array)
        require(wanted in (None, when), where, f"{array!r} is there only where {wanted!r} is given")

    def array(self, name: str, wanted: Shaped, where: str) -> None:
        require(name in self.made, where, f"nothing makes {name!r}")
        require(name not in self.whole, where, f"{name!r} has no rows for results")
        self.fits(name, wanted, where, "the loop")

    def fits(self, name: str, wanted: Array | Shaped, where: str, taker: str) -> None:
        made, shape = self.made[name], wanted if isinstance(wanted, Shaped) else Shaped.of(wanted)
        require(made.like(shape), where, f"{name!r} is made as {made}, {taker} takes {shape}")

    def drawn(self, shape: Shape, where: str, when: str | None = None) -> Shaped:
        require(bool(shape) and shape[0] == "batch", where, "the first dimension of noise is 'batch'")
        require("batch" not in shape[1:], where, "only the first dimension of noise is 'batch'")
        self.not_absurd(shape, where)
        for name in (dim for dim in shape[1:] if isinstance(dim, str)):
            self.array(name, Shaped("int64", (None,)), where)
            self.certain(name, when, where)
        ratios = [dim for dim in shape if isinstance(dim, Ratio)]
        require(self.sized or not ratios, where, "a size that follows from the request needs an input of kind 'size'")
        least = min((value.multiple for value in self.manifest.inputs.values() if isinstance(value, Size)), default=1)
        require(all(least ** len(ratio.of) >= ratio.per for ratio in ratios), where, "a dimension can come to be 0")
        return Shaped("float32", (None, *(dim if isinstance(dim, int) else None for dim in shape[1:])))
