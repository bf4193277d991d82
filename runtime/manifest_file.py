"""manifest.json: read, written, and checked for what types cannot say.

Errors name the place in it (`$.graphs.decoder.variants[0].file`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import msgspec

from mmrt.runtime.errors import BundleError
from mmrt.runtime.manifest import (
    FORMAT,
    NUMBERS,
    Array,
    Audio,
    AudioOutput,
    Autoregress,
    Choice,
    Count,
    Diffuse,
    Float,
    Graph,
    Image,
    Int,
    Manifest,
    Number,
    Once,
    Placing,
    Ratio,
    Seed,
    Shape,
    Size,
    Stage,
    Strings,
    Text,
    TextOutput,
    Tiles,
    Token,
    Tokenize,
    Variant,
    VectorOutput,
    Windows,
    arrays_of,
)
from mmrt.runtime.noise import GENERATORS
from mmrt.version import __version__

_OPTIONS: dict[str, tuple[type, ...]] = {  # the kinds of input that set an option; all others take whole numbers
    "temperature": (Float,),
    "top_p": (Float,),
    "min_p": (Float,),
    "typical_p": (Float,),
    "length_penalty": (Float,),
    "repetition_penalty": (Float,),
    "early_stopping": (Choice,),
    "stop": (Strings,),
}
_DRAWN = {"max_new_tokens", "temperature", "top_k", "top_p", "min_p", "typical_p"}  # options of codes
_LARGEST = 2**31  # elements of an array in its fixed dimensions
_CHANNELS = 8  # of a sound


class _Version(msgspec.Struct):
    format: int


def decode(data: bytes) -> Manifest:
    """Read and check a manifest. Raises `BundleError` naming the place."""
    try:
        version = msgspec.json.decode(data, type=_Version).format
        if version > FORMAT:
            raise BundleError(
                f"the bundle has format {version}, mmrt {__version__} reads formats up to {FORMAT}: use a newer mmrt"
            )
        if version < 1:
            raise BundleError(f"the bundle has format {version}; the first format is 1")
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BundleError(f"manifest.json: {error}") from None
    _Check(manifest).all()
    return manifest


def encode(manifest: Manifest) -> bytes:
    """The manifest as indented JSON. Raises `BundleError` where `decode` would."""
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    decode(data)
    return data


def legal_path(path: str) -> bool:
    """Whether `path` is relative, plain and stays inside the bundle."""
    parts = PurePosixPath(path).parts
    return (
        bool(re.fullmatch(r"[A-Za-z0-9._/-]{1,200}", path))
        and not path.startswith("/")
        and str(PurePosixPath(path)) == path
        and bool(parts)
        and ".." not in parts
    )


class _Check:
    """What types cannot say: that names refer to something, of the right kind, made before it is used."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.sized = any(isinstance(value, Size) for value in manifest.inputs.values())
        self.free = any(  # pictures of their own size
            isinstance(value, Image) and not (value.fit or value.patches or value.split)
            for value in manifest.inputs.values()
        )
        self.made: dict[str, _Shape] = {}  # the arrays that there are so far
        self.whole: set[str] = set()  # those of them that have no rows for results
        self.perhaps: dict[str, str] = {}  # those of them that there are only where an input is given

    def all(self) -> None:
        self._files()
        self._graphs()
        self._inputs()
        for index, stage in enumerate(self.manifest.program):
            self._stage(f"$.program[{index}]", stage)
        self._variants()
        for name, output in self.manifest.outputs.items():
            where = f"$.outputs.{name}.from"
            self._require(output.source in self.made, where, f"no graph makes {output.source!r}")
            self._require(output.source not in self.whole, where, f"{output.source!r} has no rows for results")
            if isinstance(output, VectorOutput):
                self._fits(output.source, _Shape("float32", (None, None)), where, "a vector")
                continue
            self._certain(output.source, None, where)
            if isinstance(output, TextOutput):
                self._file(output.file, f"$.outputs.{name}.file")
                self._fits(output.source, _Shape("int64", (None, None)), where, "a text")
            elif isinstance(output, AudioOutput):
                self._sound(output, f"$.outputs.{name}")
            else:
                pixels = Array(dtype="uint8", shape=("batch", "height", "width", 3))
                self._fits(output.source, pixels, where, "a picture")
                known = self.sized or self.free or None not in self.made[output.source].dims[1:]
                self._require(known, where, "a picture of a free size needs an input of kind 'size'")
        if (similarity := self.manifest.similarity) is not None:
            for field in ("text", "image"):
                name = getattr(similarity, field)
                known = isinstance(self.manifest.outputs.get(name), VectorOutput)
                self._require(known, f"$.similarity.{field}", f"{name!r} is not an output of kind vector")

    @staticmethod
    def _require(condition: bool, where: str, what: str) -> None:
        if not condition:
            raise BundleError(f"manifest.json: {what} - at `{where}`")

    def _file(self, path: str, where: str) -> None:
        self._require(path in self.manifest.files, where, f"{path!r} is not listed in `files`")

    def _files(self) -> None:
        for path in self.manifest.files:
            self._require(legal_path(path), "$.files", f"{path!r} is not a plain relative path")

    def _graphs(self) -> None:
        for name, graph in self.manifest.graphs.items():
            where = f"$.graphs.{name}"
            for index, variant in enumerate(graph.variants):
                self._variant(graph, variant, f"{where}.variants[{index}]")
            both = graph.inputs.keys() & graph.outputs.keys()
            self._require(not both, where, f"{_names(both)} cannot be an input and an output")
            for side, arrays in (("inputs", graph.inputs), ("outputs", graph.outputs)):
                for key, array in arrays.items():
                    self._not_absurd(array.shape, f"{where}.{side}.{key}.shape")

    def _variants(self) -> None:
        """That only what is carried between graphs has another dtype, and of a cache both sides."""
        carried = self.manifest.carried()
        caches: dict[str, str] = {}
        for stage in self.manifest.program:
            caches |= stage.caches if isinstance(stage, Autoregress) else {}
        for name, graph in self.manifest.graphs.items():
            for index, variant in enumerate(graph.variants):
                where = f"$.graphs.{name}.variants[{index}]"
                for array in variant.dtypes:
                    known = array in graph.inputs or array in graph.outputs
                    self._require(known, f"{where}.dtypes", f"graph {name!r} has no {array!r}")
                    what = f"{array!r} is not carried from graph to graph in float32, so its dtype is the graph's"
                    self._require(array in carried, f"{where}.dtypes", what)
                for old, new in caches.items():
                    both = (old in variant.dtypes) == (new in variant.dtypes)
                    known = old in graph.inputs and new in graph.outputs
                    what = f"the cache {old!r} becomes {new!r} of another dtype"
                    self._require(both or not known, f"{where}.dtypes", what)
                for number, island in enumerate(variant.islands):
                    low, high = island.range or (0.0, 0.0)
                    self._require(low <= high, f"{where}.islands[{number}].range", f"{low} is more than {high}")

    def _variant(self, graph: Graph, variant: Variant, where: str) -> None:
        self._file(variant.file, f"{where}.file")
        ending = ".onnx" if variant.engine == "onnx" else ".engine"  # ONNX Runtime reads other formats by their names
        self._require(variant.file.endswith(ending), f"{where}.file", f"{variant.file!r} is not named *{ending}")
        built = variant.build is not None
        self._require(built == (ending == ".engine"), where, "`build` is what engines have, and ONNX graphs have not")
        free = {dim for array in graph.inputs.values() for dim in array.shape if isinstance(dim, str)}
        for number, sizes in enumerate(variant.build.profiles if variant.build else ()):
            at = f"{where}.build.profiles[{number}]"
            self._require(sizes.keys() == free, at, f"sizes are those of {_names(sizes)}, free are {_names(free)}")
            for name, size in sizes.items():
                self._require(size.min <= size.opt <= size.max, f"{at}.{name}", "wanted min <= opt <= max")

    def _not_absurd(self, shape: Iterable[int | str | Ratio], where: str) -> None:
        elements = math.prod(dim for dim in shape if isinstance(dim, int))
        self._require(elements <= _LARGEST, where, f"{elements:,} elements are more than {_LARGEST:,}")

    def _inputs(self) -> None:
        for kind in (Size, Count, Seed):
            same = [name for name, value in self.manifest.inputs.items() if isinstance(value, kind)]
            what = f"{_names(same)} are all of kind '{kind.__name__.lower()}', of which there can be one"
            self._require(len(same) < 2, "$.inputs", what)
        for name, value in self.manifest.inputs.items():
            where = f"$.inputs.{name}"
            match value:
                case Text():
                    for ids, tokenize in value.tokenize.items():
                        self._file(tokenize.file, f"{where}.tokenize.{ids}.file")
                        self._tokens((*tokenize.before, *tokenize.after), f"{where}.tokenize.{ids}")
                        self._make(ids, _Shape("int64", (None, None if tokenize.mask else tokenize.length)), where)
                        if tokenize.mask:
                            self._make(tokenize.mask, _Shape("bool", (None, None)), where)
                        if tokenize.picture is not None:
                            self._placing(value, tokenize, tokenize.picture, f"{where}.tokenize.{ids}.picture")
                        shown = bool(tokenize.mask) or not tokenize.absent
                        self._require(shown, f"{where}.tokenize.{ids}", "a text can be absent only where it has a mask")
                    self._refers(value.negative, (Text,), f"{where}.negative")
                    if value.optional:
                        self._require(value.default is None, where, "a text with a default is not optional")
                        self.perhaps |= dict.fromkeys(arrays_of(value), name)
                case Image():
                    self._image(value, where)
                    if not value.required:
                        self.perhaps |= dict.fromkeys(arrays_of(value), name)
                case Audio():
                    self._make(value.array, _Shape("float32", (None, None)), f"{where}.array")
                    self._make(value.lengths, _Shape("int64", (None,)), f"{where}.lengths")
                    self._switch(value.timestamps, f"{where}.timestamps")
                    what = f"{value.seconds} s are less than the window of {value.window} s"
                    self._require(value.window <= value.seconds, where, what)
                    if not value.required:
                        self.perhaps |= dict.fromkeys(arrays_of(value), name)
                case Int() | Float():
                    self._require(
                        value.min <= value.default <= value.max, where, f"default {value.default} is not in its range"
                    )
                    if value.array is not None:
                        self._make(value.array, _Shape(NUMBERS[type(value)], (None,)), f"{where}.array")
                case Choice():
                    self._require(value.default in value.choices, where, f"default {value.default!r} is not a choice")
                    without = {name for name in (value.silent, value.detected) if name is not None}
                    complete = set(value.tokens) == set(value.choices) - without if value.tokens else not without
                    self._require(complete, f"{where}.tokens", "a choice with tokens has one for each of its names")
                    if value.array is not None:
                        certain = bool(value.tokens) and not without
                        self._require(
                            certain, f"{where}.array", "a choice that goes into graphs has a token for each name"
                        )
                        self._make(value.array, _Shape("int64", (None,)), f"{where}.array")
                case Size():
                    legal = all(side % value.multiple == 0 and side <= value.max for side in value.default)
                    self._require(legal, where, f"default {value.default} is not a legal size")
                case Seed():
                    self._refers(value.generator, (Choice,), f"{where}.generator")
                    if value.generator is not None:
                        strangers = set(self._choices(value.generator)) - GENERATORS.keys()
                        self._require(not strangers, f"{where}.generator", f"no generator is named {_names(strangers)}")
                case Count() | Strings():
                    pass

    def _image(self, image: Image, where: str) -> None:
        ways = [way for way in (image.fit, image.patches, image.split) if way is not None]
        self._require(len(ways) < 2, where, "an image has `fit` or `patches` or `split`, not several")
        if (split := image.split) is not None:
            self._make(image.array, _Shape("uint8", (None, split.size, split.size, 3)), f"{where}.array")
            self.whole.add(image.array)
            return
        if (patches := image.patches) is not None:
            values = 3 * patches.size**2
            self._not_absurd((patches.most, values), f"{where}.patches")
            self._make(image.array, _Shape("uint8", (None, patches.most, values)), f"{where}.array")
            self._make(patches.shapes, _Shape("int64", (None, 2)), f"{where}.patches.shapes")
            return
        height, width = (image.fit.height, image.fit.width) if image.fit else (None, None)
        self._make(image.array, _Shape("uint8", (None, height, width, 3)), f"{where}.array")

    def _placing(self, text: Text, tokenize: Tokenize, placing: Placing, where: str) -> None:
        image = self.manifest.inputs.get(placing.image)
        split = image.split if isinstance(image, Image) and image.required else None
        self._require(split is not None, where, f"{placing.image!r} is no required image with `split`")
        assert split is not None
        once = tokenize.prefix.count(placing.word) == 1
        self._require(once, where, f"the prefix has not once {placing.word!r}")
        alone = text.negative is None and tokenize.blank is None and tokenize.mask is not None
        self._require(alone, where, "a text with a picture has a mask, and no unconditional rows")
        places = split.most * placing.places
        self._require(places <= tokenize.length, where, f"a picture can have {places:,} places, of {tokenize.length:,}")

    def _switch(self, name: str, where: str) -> None:
        self._refers(name, (Choice,), where)
        self._require(set(self._choices(name)) == {"no", "yes"}, where, f"{name!r} is not a choice of 'no' and 'yes'")

    def _make(self, name: str, shape: _Shape, where: str) -> None:
        self._require(name not in self.made, where, f"{name!r} is made twice")
        self.made[name] = shape

    def _tokens(self, tokens: Iterable[Token], where: str, prompt: bool = False) -> None:
        """Those that are names are names of choices with tokens: for every one of their names but in a `prompt`."""
        for token in tokens:
            if isinstance(token, str):
                self._refers(token, (Choice,), where)
                choice = self.manifest.inputs[token]
                known = isinstance(choice, Choice) and bool(choice.tokens)
                self._require(known, where, f"the choice {token!r} has no tokens")
                assert isinstance(choice, Choice)
                certain = choice.silent is None and choice.detected is None
                self._require(prompt or certain, where, f"the choice {token!r} has names without a token")

    def _refers(self, name: str | None, kinds: tuple[type, ...], where: str) -> None:
        if name is not None:
            wanted = " or ".join(kind.__name__.lower() for kind in kinds)
            found = self.manifest.inputs.get(name)
            self._require(isinstance(found, kinds), where, f"{name!r} is not an input of kind {wanted}")
            each = isinstance(found, Number) and found.array is not None
            self._require(not each, where, f"{name!r} has an array, so each result may have its own")

    def _choices(self, name: str) -> tuple[str, ...]:
        choice = self.manifest.inputs[name]
        assert isinstance(choice, Choice)
        return choice.choices

    def _stage(self, where: str, stage: Stage) -> None:
        for name in stage.graphs:
            self._require(name in self.manifest.graphs, f"{where}.graphs", f"no graph is named {name!r}")
        if isinstance(stage, Once):
            self._refers(stage.when, (Image, Text), f"{where}.when")
            for name, shape in stage.draws.items():
                self.made[name] = self._drawn(shape, f"{where}.draws.{name}", stage.when)
            strange = set(stage.scattered) - stage.draws.keys()
            self._require(not strange, f"{where}.scattered", f"{_names(strange)} are not drawn")
            if stage.tiles is not None:
                self._tiles(f"{where}.tiles", stage.tiles, stage)
        elif isinstance(stage, Diffuse):
            self._diffuse(where, stage)
        else:
            if stage.windows is not None:
                self._windows(f"{where}.windows", stage.windows, stage)
            self._autoregress(where, stage)
        for name in stage.graphs:
            self._run(where, name, stage.when if isinstance(stage, Once) else None)
        if isinstance(stage, Diffuse):
            self._prediction(where, stage)
        if isinstance(stage, Autoregress):
            self._logits(where, stage)

    def _tiles(self, where: str, tiles: Tiles, stage: Once) -> None:
        self._refers(tiles.size, (Int,), f"{where}.size")
        size = self.manifest.inputs[tiles.size]
        assert isinstance(size, Int)
        what = f"{tiles.size!r} can be {size.min}, which leaves tiles of overlap {tiles.overlap} no way to go on"
        self._require(size.array is None, f"{where}.size", f"{tiles.size!r} goes into graphs")
        self._require(size.min >= tiles.overlap + tiles.multiple, f"{where}.size", what)
        self._require(len(stage.graphs) == 1, where, f"tiles go through one graph, not {len(stage.graphs)}")
        graph = self.manifest.graphs[stage.graphs[0]]
        for side, name, arrays in (("source", tiles.source, graph.inputs), ("made", tiles.made, graph.outputs)):
            self._require(name in arrays, f"{where}.{side}", f"{name!r} is none of the graph's arrays")
            free = [isinstance(dim, str) for dim in arrays[name].shape[:3]]
            self._require(free == [True] * 3, f"{where}.{side}", f"{arrays[name]} is not free in its first three")
        self._require(len(graph.outputs) == 1, where, f"of tiles one array is made, not {len(graph.outputs)}")

    def _certain(self, array: str, when: str | None, where: str) -> None:
        wanted = self.perhaps.get(array)
        self._require(wanted in (None, when), where, f"{array!r} is there only where {wanted!r} is given")

    def _run(self, where: str, name: str, when: str | None = None) -> None:
        graph = self.manifest.graphs[name]
        missing = graph.inputs.keys() - self.made.keys()
        self._require(not missing, f"{where}.graphs", f"nothing makes {_names(missing)} for graph {name!r}")
        for key, array in graph.inputs.items():
            self._fits(key, array, f"$.graphs.{name}.inputs.{key}", f"graph {name!r}")
            self._certain(key, when, f"{where}.graphs")
        for key in graph.outputs:
            if when is None:
                self.perhaps.pop(key, None)
            elif key not in self.made:
                self.perhaps[key] = when
        self.made |= {key: _Shape.of(array) for key, array in graph.outputs.items()}
        self.whole -= graph.outputs.keys()
        if graph.inputs and graph.inputs.keys() <= self.whole:
            self.whole |= graph.outputs.keys()

    def _windows(self, where: str, windows: Windows, stage: Autoregress) -> None:
        self._array(windows.lengths, _Shape("int64", (None,)), f"{where}.lengths")
        self._array(windows.source, _Shape("float32", (None, None, None)), f"{where}.source")
        features = self.made[windows.source].dims[1]
        self._make(windows.window, _Shape("float32", (None, features, windows.size)), f"{where}.window")
        self._switch(windows.timestamps.choice, f"{where}.timestamps.choice")
        self._require(stage.guidance is None, where, "windows are read without guidance")
        self._require(len(stage.ends) == 1, where, f"texts of windows have one end, not {len(stage.ends)}")
        for name in windows.graphs:
            self._require(name in self.manifest.graphs, f"{where}.graphs", f"no graph is named {name!r}")
            self._run(where, name)

    def _diffuse(self, where: str, stage: Diffuse) -> None:
        latents = self._drawn(stage.latents, f"{where}.latents")
        named = [dim for dim in stage.latents[1:] if isinstance(dim, str)]
        self._require(not named, f"{where}.latents", f"{_names(named)} are no sizes of latents")
        self._refers(stage.sampler, (Choice,), f"{where}.sampler")
        self._refers(stage.steps, (Int,), f"{where}.steps")
        self._refers(stage.strength, (Float,), f"{where}.strength")
        if stage.guidance is not None:
            self._refers(stage.guidance.scale, (Float,), f"{where}.guidance.scale")
            self._refers(stage.guidance.rescale, (Float,), f"{where}.guidance.rescale")
        missing = set(self._choices(stage.sampler)) - stage.samplers.keys()
        self._require(not missing, f"{where}.samplers", f"no sampler is named {_names(missing)}")
        if stage.start is not None:
            self._require(stage.start in self.made, f"{where}.start", f"nothing makes {stage.start!r}")
            self._fits(stage.start, latents, f"{where}.start", "the loop")
            self._require(stage.strength is not None, where, "a stage with `start` needs `strength`")
        if stage.preview:
            channels = stage.latents[1]
            fits = len(stage.preview) - 1 == channels and len(stage.latents) == 4 and self.sized
            self._require(fits, f"{where}.preview", f"{len(stage.preview)} rows do not fit {latents} of a given size")
        row = _Shape("float32", (None,))
        self.made |= {"latents": latents, "timestep": row, "guidance": row}

    def _autoregress(self, where: str, stage: Autoregress) -> None:
        if stage.guidance is not None:
            self._refers(stage.guidance.scale, (Float,), f"{where}.guidance.scale")
            known = stage.guidance.kind == "classifier-free" and stage.guidance.rescale is None
            self._require(known, f"{where}.guidance", "tokens are guided by `classifier-free` without `rescale`")
        if isinstance(stage.prompt, str):
            self._array(stage.prompt, _Shape("int64", (None, None)), f"{where}.prompt")
        if stage.prompt_mask is not None:
            self._require(isinstance(stage.prompt, str), f"{where}.prompt_mask", "`prompt` is no array")
            self._array(stage.prompt_mask, _Shape("bool", (None, None)), f"{where}.prompt_mask")
        for option, name in stage.options.items():
            self._refers(name, _OPTIONS.get(option, (Int,)), f"{where}.options.{option}")
        stopping = stage.options.get("early_stopping")
        strangers = set(self._choices(stopping)) - {"no", "yes", "never"} if stopping else set()
        self._require(not strangers, f"{where}.options.early_stopping", f"{_names(strangers)} are no ways to stop")
        self._tokens(stage.forced, where)
        self._tokens(_ids(stage.prompt), where, prompt=True)
        self._prompt(_ids(stage.prompt), stage, f"{where}.prompt")
        graphs = [self.manifest.graphs[name] for name in stage.graphs]
        inputs = {name: array for graph in graphs for name, array in graph.inputs.items()}
        outputs = {name: array for graph in graphs for name, array in graph.outputs.items()}
        self._require(len(set(stage.caches.values())) == len(stage.caches), f"{where}.caches", "two become one output")
        for old, new in stage.caches.items():
            at = f"{where}.caches.{old}"
            self._require(old in inputs and new in outputs, at, f"no graph takes {old!r} and makes {new!r}")
            self._require(inputs[old] == outputs[new], at, f"{inputs[old]} becomes {outputs[new]}: wanted the same")
            shape = inputs[old].shape
            kinds = [isinstance(dim, int) for dim in shape]
            legal = kinds == [False, True, False, True] and shape[0] != shape[2]
            self._require(legal, at, f"{inputs[old]} is no cache (rows, heads, capacity, width)")
            self._make(old, _Shape.of(inputs[old]), at)
        if stage.delays:
            self._codebooks(where, stage)
        books = (len(stage.delays),) if stage.delays else ()
        tokens = _Shape("int64", (None, None, *books))
        self.made |= {"tokens": tokens, "positions": _Shape("int64", (None,)), "sequences": tokens}

    def _codebooks(self, where: str, stage: Autoregress) -> None:
        """Nothing is asked for that would look at the codes of one codebook alone."""
        once = isinstance(stage.prompt, tuple) and len(stage.prompt) == 1 and isinstance(stage.prompt[0], int)
        self._require(once, f"{where}.prompt", "with `delays` it is one id")
        forced = stage.forced or stage.forced_end is not None or stage.begin_suppressed
        whole = not (stage.ends or forced or stage.suppressed or stage.windows)
        what = "with `delays` there are no `ends`, `windows`, nor forced or suppressed tokens"
        self._require(whole, where, what)
        strange = stage.options.keys() - _DRAWN
        self._require(not strange, f"{where}.options", f"{_names(strange)} cannot be set with `delays`")
        longest, count = max(stage.delays), stage.count
        self._require(count is None or count > longest, f"{where}.count", f"{count} tokens, delayed by {longest}")

    def _prompt(self, tokens: tuple[Token, ...], stage: Autoregress, where: str) -> None:
        """The first token is certain, for others are detected after it."""
        choices = [self.manifest.inputs[token] for token in tokens if isinstance(token, str)]
        detects = any(isinstance(choice, Choice) and choice.detected is not None for choice in choices)
        self._require(not detects or isinstance(tokens[0], int), where, "what is detected needs a token before it")
        self._require(not detects or stage.guidance is None, where, "nothing is detected with guidance")
        certain = not choices or any(not isinstance(c, Choice) or c.silent is None for c in choices)
        self._require(certain or len(choices) < len(tokens), where, "a prompt can come to have no tokens")

    def _logits(self, where: str, stage: Autoregress) -> None:
        """A graph of the loop makes them for a vocabulary that has all ids that the stage names."""
        graphs = {name: self.manifest.graphs[name] for name in stage.graphs}
        made = [graph.outputs["logits"] for graph in graphs.values() if "logits" in graph.outputs]
        self._require(bool(made), f"{where}.graphs", "no graph makes 'logits'")
        vocabulary, books = made[0].shape[-1], (len(stage.delays),) if stage.delays else ()
        shaped = len(made[0].shape) == 2 + len(books) and made[0].shape[1:-1] == books
        legal = made[0].dtype == "float32" and shaped and isinstance(vocabulary, int)
        wanted = ", ".join(("rows", *map(str, books), "vocabulary"))
        self._require(legal, f"{where}.graphs", f"logits are made as {made[0]}, wanted float32({wanted})")
        for name, graph in graphs.items():
            if (likeliest := graph.outputs.get("likeliest")) is not None:
                legal = likeliest.dtype == "int64" and likeliest.shape[1:] == books and bool(likeliest.shape)
                what = f"'likeliest' is made as {likeliest}, wanted int64({', '.join(('rows', *map(str, books)))})"
                self._require(legal, f"$.graphs.{name}.outputs.likeliest", what)
            taken = graph.outputs.keys() & {"tokens", "positions", "sequences", "scores"}
            self._require(not taken, f"$.graphs.{name}.outputs", f"{_names(taken)} are the loop's own")
        named = (*_ids(stage.prompt), *stage.forced, *stage.ends, *stage.suppressed, *stage.begin_suppressed)
        ids = {*named, stage.pad, stage.forced_end if stage.forced_end is not None else 0}
        if stage.delays:  # what stands there before and after codes need not be one
            ids = set()
        if stage.windows is not None:
            ids |= {stage.windows.timestamps.first, stage.windows.timestamps.without}
        choices = (self.manifest.inputs[token] for token in named if isinstance(token, str))
        ids |= {token for choice in choices if isinstance(choice, Choice) for token in choice.tokens.values()}
        assert isinstance(vocabulary, int)
        strange = sorted(token for token in ids if isinstance(token, int) and token >= vocabulary)
        self._require(not strange, where, f"tokens {strange[:3]} are not in the vocabulary of {vocabulary}")

    def _prediction(self, where: str, stage: Diffuse) -> None:
        """The graphs of the loop make it, like the latents, and take nothing away from the loop."""
        graphs = {name: self.manifest.graphs[name] for name in stage.graphs}
        makers = [name for name, graph in graphs.items() if "prediction" in graph.outputs]
        self._require(bool(makers), f"{where}.graphs", "no graph makes 'prediction'")
        self._fits("prediction", self._drawn(stage.latents, where), f"{where}.graphs", "the loop")
        for name, graph in graphs.items():
            taken = graph.outputs.keys() & {"latents", "timestep", "guidance"}
            self._require(not taken, f"$.graphs.{name}.outputs", f"{_names(taken)} are the loop's own")
            known = {dim for array in graph.inputs.values() for dim in array.shape}
            free = {dim for array in graph.outputs.values() for dim in array.shape if isinstance(dim, str)} - known
            self._require(not free, f"$.graphs.{name}.outputs", f"{_names(free)} are no sizes of its inputs")

    def _array(self, name: str, wanted: _Shape, where: str) -> None:
        self._require(name in self.made, where, f"nothing makes {name!r}")
        self._require(name not in self.whole, where, f"{name!r} has no rows for results")
        self._fits(name, wanted, where, "the loop")

    def _fits(self, name: str, wanted: Array | _Shape, where: str, taker: str) -> None:
        made, shape = self.made[name], wanted if isinstance(wanted, _Shape) else _Shape.of(wanted)
        self._require(made.like(shape), where, f"{name!r} is made as {made}, {taker} takes {shape}")

    def _sound(self, output: AudioOutput, where: str) -> None:
        made = self.made[output.source]
        channels = made.dims[1] if len(made.dims) == 3 else 1
        legal = made.dtype == "float32" and len(made.dims) in (2, 3) and channels is not None and channels <= _CHANNELS
        what = (
            f"{output.source!r} is made as {made}, a sound is float32(?, ?), or (?, channels, ?) with up to {_CHANNELS}"
        )
        self._require(legal, f"{where}.from", what)
        if output.lengths is not None:
            self._array(output.lengths, _Shape("int64", (None,)), f"{where}.lengths")
            self._certain(output.lengths, None, f"{where}.lengths")

    def _drawn(self, shape: Shape, where: str, when: str | None = None) -> _Shape:
        self._require(bool(shape) and shape[0] == "batch", where, "the first dimension of noise is 'batch'")
        self._require("batch" not in shape[1:], where, "only the first dimension of noise is 'batch'")
        self._not_absurd(shape, where)
        for name in (dim for dim in shape[1:] if isinstance(dim, str)):
            self._array(name, _Shape("int64", (None,)), where)
            self._certain(name, when, where)
        ratios = [dim for dim in shape if isinstance(dim, Ratio)]
        self._require(
            self.sized or not ratios, where, "a size that follows from the request needs an input of kind 'size'"
        )
        least = min((value.multiple for value in self.manifest.inputs.values() if isinstance(value, Size)), default=1)
        self._require(
            all(least ** len(ratio.of) >= ratio.per for ratio in ratios), where, "a dimension can come to be 0"
        )
        return _Shape("float32", (None, *(dim if isinstance(dim, int) else None for dim in shape[1:])))


class _Shape(NamedTuple):
    """An array's dtype and what is known of its dimensions."""

    dtype: str
    dims: tuple[int | None, ...]

    @staticmethod
    def of(array: Array) -> _Shape:
        return _Shape(array.dtype, tuple(dim if isinstance(dim, int) else None for dim in array.shape))

    def like(self, other: _Shape) -> bool:
        """Whether one array can be both."""
        same_kind = self.dtype == other.dtype and len(self.dims) == len(other.dims)
        return same_kind and all(a == b or None in (a, b) for a, b in zip(self.dims, other.dims, strict=True))

    def __str__(self) -> str:
        return f"{self.dtype}({', '.join('?' if dim is None else str(dim) for dim in self.dims)})"


def _names(names: Iterable[Any]) -> str:
    return ", ".join(repr(name) for name in sorted(names))


def _ids(prompt: tuple[Token, ...] | str) -> tuple[Token, ...]:
    return () if isinstance(prompt, str) else prompt
