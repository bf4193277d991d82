"""Pictures in prompts: cut into tiles, each of which stands in a text as so many places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mmrt.runtime.arrays import UInt8
from mmrt.runtime.errors import RequestError
from mmrt.runtime.manifest import Placing


class Placed(NamedTuple):
    """A picture of a request: its first tile among all of the request's, and how many rows and columns it has."""

    first: int
    rows: int
    columns: int

    @property
    def tiles(self) -> int:
        """How many, with the one of the whole that comes after several."""
        return 1 if self.rows == self.columns == 1 else self.rows * self.columns + 1


def placed(pictures: Sequence[UInt8], size: int) -> list[Placed]:
    """Where pictures (rows size, columns size, 3) are, of which several may be the same, in the order they come."""
    found: dict[int, Placed] = {}
    first = 0
    for picture in pictures:
        if id(picture) not in found:
            found[id(picture)] = Placed(first, picture.shape[0] // size, picture.shape[1] // size)
            first += found[id(picture)].tiles
    return [found[id(picture)] for picture in pictures]


def words(spec: Placing, picture: Placed) -> str:
    """What stands for the picture in a text."""
    places = spec.word * spec.places
    if picture.tiles == 1:
        return spec.alone.replace("{}", places)
    found = ""
    for row in range(1, picture.rows + 1):
        for column in range(1, picture.columns + 1):
            found += spec.tile.replace("{row}", str(row)).replace("{column}", str(column)).replace("{}", places)
        found += spec.line
    return found + spec.last.replace("{}", places)


def number(spec: Placing, ids: list[int], picture: Placed) -> list[int]:
    """The ids of a text with the number of its place in all the request's tiles for each of the picture's tokens.

    Raises `RequestError` where these are more than the picture's: one was written.
    """
    if ids.count(spec.token) != picture.tiles * spec.places:
        raise RequestError(f"the text contains {spec.word!r}, which stands for the picture: leave it out")
    next_place = iter(range(spec.first + picture.first * spec.places, spec.first + 2**40))
    return [next(next_place) if token == spec.token else token for token in ids]
