"""A request: what the caller gave, checked against the inputs that the manifest offers, with nothing left open."""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import math
import operator
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mmrt.runtime import manifest as m
from mmrt.runtime.errors import BundleError, RequestError

if TYPE_CHECKING:
    from mmrt.runtime.arrays import AnyArray

SEEDS = range(-(2**63), 2**64)  # what torch.manual_seed takes


@dataclass(frozen=True)
class Request:
    """`values` has each input's value; texts, pictures, recordings and numbers that become arrays are lists with one
    for each `batch` result.

    Each `count` results in a row are of one prompt. `chosen` has the token of each choice that has one; `detected` the
    tokens of those that leave it to the model.
    """

    values: Mapping[str, Any]
    chosen: Mapping[str, int]
    batch: int
    count: int
    width: int
    height: int
    seeds: tuple[int, ...]
    noise: str
    detected: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def given(self, name: str) -> bool:
        """Whether the input has a value."""
        return self.values[name] is not None

    def tokens(self, tokens: Sequence[m.Token]) -> tuple[int, ...]:
        """The ids: names of choices stand for the token that was chosen, if one was."""
        ids = (self.chosen.get(token) if isinstance(token, str) else token for token in tokens)
        return tuple(token for token in ids if token is not None)

    def single(self, manifest: m.Manifest, index: int, together: bool) -> dict[str, Any]:
        """The request that makes result `index` alone, as JSON values; pictures and recordings as their
        arrays' sha256.

        Where the results of a prompt only come `together`, as the beams of a search do, it makes all of that prompt's.
        """
        return {
            name: _as_json(self._single(spec, self.values[name], index, together))
            for name, spec in manifest.inputs.items()
            if self.values[name] is not None
        }

    def _single(self, spec: m.Input, value: Any, index: int, together: bool) -> Any:
        if _each(spec):
            return value[index]
        match spec:
            case m.Count():
                return self.count if together else 1
            case m.Seed():
                return self.seeds[index - index % self.count if together else index]
            case m.Size():
                return f"{self.width}x{self.height}"
        return value


def resolve(manifest: m.Manifest, given: Mapping[str, Any]) -> Request:
    """Check what was given, fill in the rest. Raises `RequestError` naming the input, its value and what was wanted."""
    for name in given:
        if name not in manifest.inputs:
            near = difflib.get_close_matches(name, manifest.inputs, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise RequestError(
                f"{name!r} is not an input of {manifest.name}: it has {', '.join(manifest.inputs)}{hint}"
            )
    values = {name: _KINDS[type(spec)](name, spec, given.get(name)) for name, spec in manifest.inputs.items()}
    kinds = {type(spec): (spec, values[name]) for name, spec in manifest.inputs.items()}
    lists = {name: values[name] for name, spec in manifest.inputs.items() if _each(spec)}
    for name, spec in manifest.inputs.items():
        if isinstance(spec, m.Audio) and values[name] is not None:
            values[spec.timestamps] = _timestamps(name, spec, values[name], given.get(spec.timestamps), values)
    contents = [name for name in lists if not isinstance(manifest.inputs[name], m.Number)]
    if contents and all(values[name] is None for name in contents):
        raise RequestError(f"nothing is given: {manifest.name} takes {' or '.join(contents)}")
    prompts = _common_length(lists)
    _, count = kinds.get(m.Count, (None, 1))
    batch = prompts * count
    width, height = _size_of(manifest, values)
    _check_memory(manifest, values, batch, width, height)
    _resize(manifest, values, width, height)
    for name in lists:
        if (items := values[name]) is not None:
            values[name] = [item for item in items * (prompts // len(items)) for _ in range(count)]
    seed_spec, seed = kinds.get(m.Seed, (None, 0))
    if seed + batch - 1 not in SEEDS:
        raise RequestError(f"seed {seed} leaves no room for {batch} results: the last seed is {SEEDS.stop - 1}")
    noise = values[seed_spec.generator] if isinstance(seed_spec, m.Seed) and seed_spec.generator else "cpu"
    choices = {name: spec for name, spec in manifest.inputs.items() if isinstance(spec, m.Choice)}
    chosen = {name: spec.tokens[values[name]] for name, spec in choices.items() if values[name] in spec.tokens}
    detected = {
        name: tuple(sorted(spec.tokens.values())) for name, spec in choices.items() if values[name] == spec.detected
    }
    return Request(values, chosen, batch, count, width, height, tuple(range(seed, seed + batch)), noise, detected)


def _each(spec: m.Input) -> bool:
    """Whether each result may have its own."""
    return isinstance(spec, m.Text | m.Image | m.Audio) or (isinstance(spec, m.Number) and spec.array is not None)


def _common_length(lists: Mapping[str, list[Any] | None]) -> int:
    lengths = {name: len(items) for name, items in lists.items() if items is not None}
    longest = max(lengths.values(), default=1)
    for name, length in lengths.items():
        if length not in (1, longest):
            raise RequestError(f"{name} has {length} values, wanted 1 or {longest}, as many as the others have")
    return longest


def _size_of(manifest: m.Manifest, values: dict[str, Any]) -> tuple[int, int]:
    """The request's (width, height), also put into `values`; (0, 0) where the bundle has no sizes."""
    for name, spec in manifest.inputs.items():
        if isinstance(spec, m.Size):
            values[name] = _size_for(name, spec, manifest, values)
            width, height = values[name]
            return width, height
    return 0, 0


def _resize(manifest: m.Manifest, values: dict[str, Any], width: int, height: int) -> None:
    """Make the pictures in `values` arrays of that size, or of the size that the input says."""
    for name, other in manifest.inputs.items():
        if isinstance(other, m.Image) and values[name] is not None:
            from mmrt.runtime import media  # pillow is needed for pictures only

            if (patches := other.patches) is not None:
                values[name] = [media.fit_patches(picture, patches) for picture in values[name]]
            elif (split := other.split) is not None:
                values[name] = [media.fit_split(picture, split) for picture in values[name]]
            elif (fit := other.fit) is not None:
                values[name] = [media.fit(picture, fit) for picture in values[name]]
            elif width:
                values[name] = [media.to_array(picture, width, height) for picture in values[name]]
            else:
                sizes = {picture.size: f"{picture.width}x{picture.height}" for picture in values[name]}
                if len(sizes) > 1:
                    raise RequestError(f"{name} has pictures of {' and '.join(sizes.values())}, wanted one size")
                values[name] = [media.to_array(picture, *picture.size) for picture in values[name]]


def _size_for(name: str, spec: m.Size, manifest: m.Manifest, values: Mapping[str, Any]) -> tuple[int, int]:
    if values[name] is not None:
        size: tuple[int, int] = values[name]
        return size
    for other, value in manifest.inputs.items():
        if isinstance(value, m.Image) and not (value.fit or value.patches or value.split) and values[other] is not None:
            width, height = (side - side % spec.multiple for side in values[other][0].size)
            if min(width, height) < spec.multiple or max(width, height) > spec.max:
                raise RequestError(
                    f"{other} is {values[other][0].width}x{values[other][0].height} pixels; "
                    f"sides from {spec.multiple} to {spec.max} can be used: give {name}"
                )
            return width, height
    return spec.default


def _check_memory(manifest: m.Manifest, values: Mapping[str, Any], batch: int, width: int, height: int) -> None:
    """Refuse what cannot fit: noise, the loop's latents, caches and the pictures are the least that a request needs."""
    floats = 0
    for stage in manifest.program:
        if isinstance(stage, m.Autoregress):
            floats += _cache_floats(manifest, stage, values)
            continue
        if isinstance(stage, m.Once) and stage.tiles is not None:
            floats += _tiled_floats(manifest, stage.tiles, values)
        shapes = list(stage.draws.values()) if isinstance(stage, m.Once) else [stage.latents] * 3
        floats += sum(math.prod(dimensions(shape, width, height)) for shape in shapes)
    needed = batch * (4 * floats + 3 * width * height * len(manifest.outputs))
    if needed > (present := _memory()):
        each = f" of {width}x{height}" if width else ""
        raise RequestError(
            f"{batch} result{'s' * (batch > 1)}{each} need at least {needed / 1e9:,.0f} GB of memory, "
            f"this machine has {present / 1e9:,.0f} GB: ask for fewer or smaller ones"
        )


def _tiled_floats(manifest: m.Manifest, tiles: m.Tiles, values: Mapping[str, Any]) -> int:
    """What is made of a picture's tiles: its bytes, twice while they are put together."""
    given = [values[name] for name, spec in manifest.inputs.items() if tiles.source in m.arrays_of(spec)]
    pixels = max((picture.width * picture.height for pictures in given if pictures for picture in pictures), default=0)
    return 2 * 3 * tiles.scale**2 * pixels // 4


def _cache_floats(manifest: m.Manifest, stage: m.Autoregress, values: Mapping[str, Any]) -> int:
    """What the caches of one result come to hold."""
    beams, tokens = (
        values[stage.options[name]] if name in stage.options else 1 for name in ("beams", "max_new_tokens")
    )
    specs = {name: spec for graph in stage.graphs for name, spec in manifest.graphs[graph].inputs.items()}
    widths = (math.prod(dim for dim in specs[name].shape if isinstance(dim, int)) for name in stage.caches)
    length = tokens if isinstance(stage.prompt, str) else tokens + len(stage.prompt)
    return int(beams * length * sum(widths))


@functools.cache
def _memory() -> int:
    """Bytes of memory that this machine has, or its container may use."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else []
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits, default=1 << 40)


def dimensions(
    shape: m.Shape, width: int, height: int, lengths: Mapping[str, int] = MappingProxyType({})
) -> tuple[int, ...]:
    """A manifest's shape at this size, less its first dimension, the batch. What is not among `lengths` counts as 1."""
    sizes = {"height": height, "width": width}
    found = []
    for dim in shape[1:]:
        if isinstance(dim, str):
            found.append(lengths.get(dim, 1))
        else:
            found.append(math.prod(sizes[name] for name in dim.of) // dim.per if isinstance(dim, m.Ratio) else dim)
    return tuple(found)


def check_noise(sizes: Sequence[tuple[int, ...]]) -> None:
    """Refuse arrays of noise of such sizes where they are none, or do not fit into memory."""
    if (least := min((dim for size in sizes for dim in size), default=1)) < 1:
        raise BundleError(f"noise is of the size {least}, wanted 1 or more in each dimension")
    if (needed := 4 * len(sizes) * math.prod(map(max, zip(*sizes, strict=True)))) > _memory():
        raise RequestError(f"{len(sizes)} results need {needed / 1e9:,.0f} GB of noise: ask for fewer or shorter ones")


def _text(name: str, spec: m.Text, value: Any) -> list[str] | None:
    if value is None and spec.optional:
        return None
    if value is None:
        if spec.default is None:
            raise RequestError(f"{name} is missing: give a text")
        return [spec.default]
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise RequestError(f"{name} is {value!r}, wanted a text or a list of texts")
    if not texts:
        raise RequestError(f"{name} is an empty list, wanted at least one text")
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError(f"{name} is {text!r}, which is not valid Unicode") from None
    return list(texts)


def _image(name: str, spec: m.Image, value: Any) -> list[Any] | None:
    if value is None:
        if spec.required:
            raise RequestError(f"{name} is missing: give a picture")
        return None
    from mmrt.runtime import media

    sources = list(value) if isinstance(value, list | tuple) else [value]
    if not sources:
        raise RequestError(f"{name} is an empty list, wanted at least one picture")
    return [media.open_picture(source) for source in sources]


def _audio(name: str, spec: m.Audio, value: Any) -> list[Any] | None:
    if value is None:
        if spec.required:
            raise RequestError(f"{name} is missing: give a recording")
        return None
    from mmrt.runtime import audio  # recordings only

    files = isinstance(value, tuple) and all(isinstance(each, str | os.PathLike) for each in value)
    sources = list(value) if files or isinstance(value, list) else [value]  # other tuples are a recording and its rate
    if not sources:
        raise RequestError(f"{name} is an empty list, wanted at least one recording")
    found = []
    for source in sources:
        samples = audio.open_recording(source, spec.rate)
        if len(samples) > spec.rate * spec.seconds:
            raise RequestError(f"{name} is {audio.seconds(len(samples), spec.rate)} long, at most {spec.seconds} s")
        found.append(audio.fill(samples, max(len(samples), spec.rate * spec.window)))
    return found


def _timestamps(name: str, spec: m.Audio, recordings: list[Any], given: Any, values: Mapping[str, Any]) -> Any:
    """The value of the choice: recordings of several windows need timestamps."""
    if max(map(len, recordings)) <= spec.rate * spec.window:
        return values[spec.timestamps]
    if given == "no":
        raise RequestError(f"{spec.timestamps} is 'no', wanted 'yes' where {name} is longer than {spec.window} s")
    return "yes"


def _strings(name: str, spec: m.Strings, value: Any) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else value or ()
    if not isinstance(strings, tuple) or not all(isinstance(string, str) and string for string in strings):
        raise RequestError(f"{name} is {value!r}, wanted texts that are not empty")
    return strings


def _numbers(name: str, spec: m.Number, value: Any) -> Any:
    """The number, or a list of them where each result may have its own."""
    if spec.array is None:
        return _number(name, spec, value)
    values = value if isinstance(value, list | tuple) else [value]
    if not values:
        raise RequestError(f"{name} is an empty list, wanted at least one number")
    return [_number(name, spec, each) for each in values]


def _number(name: str, spec: m.Number, value: Any) -> int | float:
    return _int(name, spec, value) if isinstance(spec, m.Int) else _float(name, spec, value)


def _int(name: str, spec: m.Int, value: Any) -> int:
    return _whole(name, spec.default if value is None else value, spec.min, spec.max)


def _count(name: str, spec: m.Count, value: Any) -> int:
    return _whole(name, spec.default if value is None else value, 1, spec.max)


def _seed(name: str, spec: m.Seed, value: Any) -> int:
    return _whole(name, secrets.randbits(32) if value is None else value, SEEDS.start, SEEDS.stop - 1)


def _whole(name: str, value: Any, least: int, most: int) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise RequestError(f"{name} is {value!r}, wanted a whole number from {least} to {most}") from None
    if not least <= number <= most:
        raise RequestError(f"{name} is {number}, wanted {least} to {most}")
    return number


def _float(name: str, spec: m.Float, value: Any) -> float:
    if value is None:
        return spec.default
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number) or not spec.min <= number <= spec.max:
        raise RequestError(f"{name} is {value!r}, wanted a number from {spec.min:g} to {spec.max:g}")
    return number


def _choice(name: str, spec: m.Choice, value: Any) -> str:
    if value is None:
        return spec.default
    if not isinstance(value, str) or value not in spec.choices:
        raise RequestError(f"{name} is {value!r}, wanted one of {', '.join(spec.choices)}")
    return str(value)


def _size(name: str, spec: m.Size, value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    if isinstance(value, str) and (match := re.fullmatch(r"(\d{1,6})(?:[x×](\d{1,6}))?", value)):  # noqa: RUF001
        value = (int(match[1]), int(match[2] or match[1]))
    if not (isinstance(value, Sequence) and len(value) == 2 and all(type(side) is int for side in value)):
        raise RequestError(f"{name} is {value!r}, wanted WIDTHxHEIGHT or a pair (width, height)")
    for side in value:
        if side % spec.multiple or not spec.multiple <= side <= spec.max:
            raise RequestError(
                f"{name} is {value[0]}x{value[1]}, wanted sides that are multiples of {spec.multiple} up to {spec.max}"
            )
    return value[0], value[1]


_KINDS: dict[type, Callable[[str, Any, Any], Any]] = {
    m.Text: _text,
    m.Image: _image,
    m.Audio: _audio,
    m.Int: _numbers,
    m.Float: _numbers,
    m.Choice: _choice,
    m.Size: _size,
    m.Count: _count,
    m.Seed: _seed,
    m.Strings: _strings,
}


def _as_json(value: Any) -> Any:
    return value if isinstance(value, str | int | float | tuple) else f"sha256:{_sha256(value)}"


def _sha256(array: AnyArray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()
