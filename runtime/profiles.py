"""The sizes that engines are built for: what follows from a bundle's manifest, and what a user asks for.

TensorRT wants of every free dimension the least, the most and the usual size. Rows are free in all graphs (their
first dimension is that of rows); the other dimensions follow from the inputs, through the program, to every graph.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mmrt.runtime import manifest as m
from mmrt.runtime.errors import RequestError

_ROWS = 8  # the most, unless asked otherwise
_VECTORS = m.Range(min=1, opt=8, max=32)  # rows of which vectors are made: up to as many as `mmrt embed` takes at once
_TOKENS = 32  # of a usual text
_CAPACITY = 512  # places in the caches of engines, which have no free length there, unless asked otherwise
_WANTED = "NAME=SIZE or NAME=MIN:OPT:MAX, such as batch=1:2:8, denoiser.batch=2 or size=512x512:512x512:768x768"

Dim = m.Range | None  # None: nothing says it


@dataclass(frozen=True)
class Asked:
    """What a user wants: the ranges of dimensions by NAME or GRAPH.NAME, and of the pictures' sides."""

    ranges: Mapping[str, m.Range]
    sides: tuple[m.Range, m.Range] | None = None  # height, width


NOTHING = Asked({})


def read(texts: Iterable[str]) -> Asked:
    """`--shapes`: each text has some of NAME=SIZE, NAME=MIN:OPT:MAX, size=WIDTHxHEIGHT, separated by commas. Raises
    `RequestError`."""
    ranges: dict[str, m.Range] = {}
    sides = None
    for entry in (entry.strip() for text in texts for entry in text.split(",")):
        name, equals, sizes = entry.partition("=")
        parts = sizes.split(":")
        side = r"[1-9]\d{0,8}"
        legal = r"{0}x{0}" if name == "size" else r"{0}"
        fits = equals and len(parts) in (1, 3) and all(re.fullmatch(legal.format(side), part) for part in parts)
        if not fits:
            raise RequestError(f"shapes: {entry!r} is not {_WANTED}")
        if name == "size":
            widths, heights = zip(*(part.split("x") for part in parts), strict=True)
            sides = _range(entry, heights), _range(entry, widths)
        else:
            ranges[name] = _range(entry, parts)
    return Asked(ranges, sides)


def _range(entry: str, sizes: Sequence[str]) -> m.Range:
    least, usual, most = map(int, sizes if len(sizes) == 3 else [sizes[0]] * 3)
    if not least <= usual <= most:
        raise RequestError(f"shapes: {entry!r} is not in order: wanted MIN <= OPT <= MAX")
    return m.Range(min=least, opt=usual, max=most)


def profiles(manifest: m.Manifest, asked: Asked = NOTHING) -> dict[str, tuple[m.Sizes, ...]]:
    """For every graph, the ranges of its inputs' free dimensions, in one or more profiles.

    Raises `RequestError` where `asked` names what is not there, or nothing says how large a dimension gets.
    """
    _check_names(manifest, asked)
    found = _Program(manifest, asked).graphs()
    return {name: found[name] for name in manifest.graphs}


def _check_names(manifest: m.Manifest, asked: Asked) -> None:
    free = {f"{graph}.{dim}": dim for graph, spec in manifest.graphs.items() for dim in _free(spec)}
    for name in asked.ranges:
        if name not in {*free, *free.values()}:
            known = ", ".join(sorted({*free.values()}))
            raise RequestError(f"shapes: no graph has a free dimension {name!r}; there are {known}")
    if asked.sides and _size(manifest) is None:
        raise RequestError("shapes: size is given, and the bundle has no input of kind 'size'")


def _free(graph: m.Graph) -> list[str]:
    dims = (dim for array in graph.inputs.values() for dim in array.shape if isinstance(dim, str))
    return list(dict.fromkeys(dims))


def _size(manifest: m.Manifest) -> m.Size | None:
    return next((each for each in manifest.inputs.values() if isinstance(each, m.Size)), None)


class _Program:
    """A walk through the program with ranges instead of arrays: the dimensions after the first of each array so far."""

    def __init__(self, manifest: m.Manifest, asked: Asked) -> None:
        self.manifest, self.asked = manifest, asked
        self.height, self.width = asked.sides or self._sides()
        self.dims: dict[str, tuple[Dim, ...]] = dict(self._inputs())
        self.found: dict[str, tuple[m.Sizes, ...]] = {}

    def graphs(self) -> dict[str, tuple[m.Sizes, ...]]:
        for stage in self.manifest.program:
            vectors = all(isinstance(output, m.VectorOutput) for output in self.manifest.outputs.values())
            rows = _VECTORS if vectors else m.Range(min=1, opt=2 if _guided(stage) else 1, max=_ROWS)
            if isinstance(stage, m.Autoregress):
                self._autoregress(stage, rows)
                continue
            draws = stage.draws if isinstance(stage, m.Once) else {"latents": stage.latents}
            for name, shape in draws.items():
                self.dims[name] = tuple(self._dim(dim) for dim in shape[1:])
            for graph in stage.graphs:
                self.found[graph] = (self._graph(graph, rows, {}),)
        return self.found

    def _sides(self) -> tuple[Dim, Dim]:
        """From the smallest that is legal to twice the default."""
        if (size := _size(self.manifest)) is None:
            return None, None
        width, height = (
            m.Range(
                min=size.multiple, opt=side, max=max(side, min(2 * side, size.max // size.multiple * size.multiple))
            )
            for side in size.default
        )
        return height, width

    def _inputs(self) -> Iterator[tuple[str, tuple[Dim, ...]]]:
        for spec in self.manifest.inputs.values():
            if isinstance(spec, m.Text):
                for name, tokenize in spec.tokenize.items():
                    length = _up_to(tokenize.length) if tokenize.mask else _exactly(tokenize.length)
                    yield name, (length,)
                    if tokenize.mask:
                        yield tokenize.mask, (length,)
            elif isinstance(spec, m.Image):
                sides = (_exactly(spec.fit.height), _exactly(spec.fit.width)) if spec.fit else (self.height, self.width)
                if spec.split:
                    sides = _exactly(spec.split.size), _exactly(spec.split.size)
                yield spec.array, (*sides, _exactly(3))
            elif isinstance(spec, m.Audio):
                window, most = spec.rate * spec.window, spec.rate * spec.seconds
                yield spec.array, (m.Range(min=window, opt=window, max=most),)
                yield spec.lengths, ()

    def _dim(self, dim: int | str | m.Ratio) -> Dim:
        if isinstance(dim, int):
            return _exactly(dim)
        if isinstance(dim, str):
            return None
        sides = [{"height": self.height, "width": self.width}[side] for side in dim.of]
        if any(side is None for side in sides):
            return None
        least, usual, most = (
            max(1, math.prod(getattr(side, end) for side in sides) // dim.per) for end in ("min", "opt", "max")
        )
        return m.Range(min=least, opt=usual, max=most)

    def _autoregress(self, stage: m.Autoregress, rows: m.Range) -> None:
        """A profile for one new token and one for several; caches have one length, and no more tokens come out."""
        if stage.windows is not None:
            features = self.dims.get(stage.windows.source, (None, None))[0]
            self.dims[stage.windows.window] = (features, _exactly(stage.windows.size))
            for graph in stage.windows.graphs:
                self.found[graph] = (self._graph(graph, rows, {}),)
        capacity = _exactly(min(_power_of_two(stage.limit), _CAPACITY))
        longest = capacity.max
        for graph in stage.graphs:
            inputs = self.manifest.graphs[graph].inputs
            caches = {inputs[name].shape[2]: capacity for name in stage.caches if name in inputs}
            tokens = inputs["tokens"].shape[1] if "tokens" in inputs else None
            if not isinstance(tokens, str):
                self.found[graph] = (self._graph(graph, rows, caches),)
                continue
            most = self._asked(graph, str(next(iter(caches), "")), capacity).max
            longest = min(longest, most)
            several = m.Range(min=1, opt=min(_TOKENS, most), max=most)
            self.found[graph] = tuple(
                self._graph(graph, rows, caches | {tokens: length}) for length in (_exactly(1), several)
            )
        made = m.Range(min=1, opt=longest, max=longest) if stage.count is None else _exactly(stage.count)
        self.dims["sequences"] = (made,)

    def _graph(self, name: str, rows: m.Range, known: Mapping[int | str, m.Range]) -> m.Sizes:
        """The ranges of its inputs' free dimensions; leaves those of its outputs."""
        graph = self.manifest.graphs[name]
        ranges: dict[str, Dim] = {str(dim): range_ for dim, range_ in known.items()}
        for array, spec in graph.inputs.items():
            for dim, range_ in zip(spec.shape[1:], self.dims.get(array, ()), strict=False):
                if isinstance(dim, str) and ranges.get(dim) is None:
                    ranges[dim] = range_
        ranges |= {
            spec.shape[0]: rows for spec in graph.inputs.values() if spec.shape and isinstance(spec.shape[0], str)
        }
        sizes = {}
        for dim in _free(graph):
            found = self.asked.ranges.get(f"{name}.{dim}", self.asked.ranges.get(dim, ranges.get(dim)))
            if found is None:
                raise RequestError(f"{name}: nothing says how large {dim!r} gets: --shapes {name}.{dim}=MIN:OPT:MAX")
            sizes[dim] = found
        for array, spec in graph.outputs.items():
            self.dims[array] = tuple(
                _exactly(dim) if isinstance(dim, int) else sizes.get(dim, ranges.get(dim)) for dim in spec.shape[1:]
            )
        return sizes

    def _asked(self, graph: str, dim: str, otherwise: m.Range) -> m.Range:
        return self.asked.ranges.get(f"{graph}.{dim}", self.asked.ranges.get(dim, otherwise))


def _guided(stage: m.Stage) -> bool:
    guidance = None if isinstance(stage, m.Once) else stage.guidance
    return guidance is not None and guidance.kind == "classifier-free"


def _exactly(size: int) -> m.Range:
    return m.Range(min=size, opt=size, max=size)


def _up_to(size: int) -> m.Range:
    return m.Range(min=1, opt=min(size, _TOKENS), max=size)


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
