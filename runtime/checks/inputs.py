"""What a user gives, checked."""

from __future__ import annotations

from mmrt.runtime.checks.environment import Environment, Shaped, names, require
from mmrt.runtime.manifest import (
    NUMBERS,
    Audio,
    Choice,
    Count,
    Float,
    Image,
    Int,
    Placing,
    Seed,
    Size,
    Strings,
    Text,
    Tokenize,
    arrays_of,
)
from mmrt.runtime.noise import GENERATORS


def check_inputs(env: Environment) -> None:
    """Each of them, and name the arrays that they become."""
    for kind in (Size, Count, Seed):
        same = [name for name, value in env.manifest.inputs.items() if isinstance(value, kind)]
        what = f"{names(same)} are all of kind '{kind.__name__.lower()}', of which there can be one"
        require(len(same) < 2, "$.inputs", what)
    for name, value in env.manifest.inputs.items():
        where = f"$.inputs.{name}"
        match value:
            case Text():
                for ids, tokenize in value.tokenize.items():
                    env.file(tokenize.file, f"{where}.tokenize.{ids}.file")
                    env.tokens((*tokenize.before, *tokenize.after), f"{where}.tokenize.{ids}")
                    env.make(ids, Shaped("int64", (None, None if tokenize.mask else tokenize.length)), where)
                    if tokenize.mask:
                        env.make(tokenize.mask, Shaped("bool", (None, None)), where)
                    if tokenize.picture is not None:
                        _placing(env, value, tokenize, tokenize.picture, f"{where}.tokenize.{ids}.picture")
                    shown = bool(tokenize.mask) or not tokenize.absent
                    require(shown, f"{where}.tokenize.{ids}", "a text can be absent only where it has a mask")
                env.refers(value.negative, (Text,), f"{where}.negative")
                if value.optional:
                    require(value.default is None, where, "a text with a default is not optional")
                    env.perhaps |= dict.fromkeys(arrays_of(value), name)
            case Image():
                _image(env, value, where)
                if not value.required:
                    env.perhaps |= dict.fromkeys(arrays_of(value), name)
            case Audio():
                env.make(value.array, Shaped("float32", (None, None)), f"{where}.array")
                env.make(value.lengths, Shaped("int64", (None,)), f"{where}.lengths")
                env.switch(value.timestamps, f"{where}.timestamps")
                what = f"{value.seconds} s are less than the window of {value.window} s"
                require(value.window <= value.seconds, where, what)
                if not value.required:
                    env.perhaps |= dict.fromkeys(arrays_of(value), name)
            case Int() | Float():
                require(value.min <= value.default <= value.max, where, f"default {value.default} is not in its range")
                if value.array is not None:
                    env.make(value.array, Shaped(NUMBERS[type(value)], (None,)), f"{where}.array")
            case Choice():
                require(value.default in value.choices, where, f"default {value.default!r} is not a choice")
                without = {name for name in (value.silent, value.detected) if name is not None}
                complete = set(value.tokens) == set(value.choices) - without if value.tokens else not without
                require(complete, f"{where}.tokens", "a choice with tokens has one for each of its names")
                if value.array is not None:
                    certain = bool(value.tokens) and not without
                    require(certain, f"{where}.array", "a choice that goes into graphs has a token for each name")
                    env.make(value.array, Shaped("int64", (None,)), f"{where}.array")
            case Size():
                legal = all(side % value.multiple == 0 and side <= value.max for side in value.default)
                require(legal, where, f"default {value.default} is not a legal size")
            case Seed():
                env.refers(value.generator, (Choice,), f"{where}.generator")
                if value.generator is not None:
                    strangers = set(env.choices(value.generator)) - GENERATORS.keys()
                    require(not strangers, f"{where}.generator", f"no generator is named {names(strangers)}")
            case Count() | Strings():
                pass


def _image(env: Environment, image: Image, where: str) -> None:
    ways = [way for way in (image.fit, image.patches, image.split) if way is not None]
    require(len(ways) < 2, where, "an image has `fit` or `patches` or `split`, not several")
    if (split := image.split) is not None:
        env.make(image.array, Shaped("uint8", (None, split.size, split.size, 3)), f"{where}.array")
        env.whole.add(image.array)
        return
    if (patches := image.patches) is not None:
        values = 3 * patches.size**2
        env.not_absurd((patches.most, values), f"{where}.patches")
        env.make(image.array, Shaped("uint8", (None, patches.most, values)), f"{where}.array")
        env.make(patches.shapes, Shaped("int64", (None, 2)), f"{where}.patches.shapes")
        return
    height, width = (image.fit.height, image.fit.width) if image.fit else (None, None)
    env.make(image.array, Shaped("uint8", (None, height, width, 3)), f"{where}.array")


def _placing(env: Environment, text: Text, tokenize: Tokenize, placing: Placing, where: str) -> None:
    image = env.manifest.inputs.get(placing.image)
    split = image.split if isinstance(image, Image) and image.required else None
    require(split is not None, where, f"{placing.image!r} is no required image with `split`")
    assert split is not None
    once = tokenize.prefix.count(placing.word) == 1
    require(once, where, f"the prefix has not once {placing.word!r}")
    alone = text.negative is None and tokenize.blank is None and tokenize.mask is not None
    require(alone, where, "a text with a picture has a mask, and no unconditional rows")
    places = split.most * placing.places
    require(places <= tokenize.length, where, f"a picture can have {places:,} places, of {tokenize.length:,}")
