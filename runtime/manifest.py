"""The manifest: all that export and runtime share. Its structs are frozen and refuse fields that they do not know.

A bundle's `manifest.json` is one `Manifest`; `manifest_file` reads, writes and checks it.
`FORMAT` counts the format's incompatible changes: a newer mmrt reads every older one, an older one refuses a newer.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from mmrt.runtime.samplers import Sampler
from mmrt.runtime.schedule import Schedule

FORMAT = 1

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,63}\Z")]
Label = Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,200}\Z")]  # is shown on terminals
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
Dtype = Literal["float32", "float16", "int64", "int32", "uint8", "bool"]
Dim = Positive | Name  # a number, or the name of a free dimension
_INT64 = msgspec.Meta(ge=-(2**63), le=2**63 - 1)


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Base of all that stands in a manifest."""


class Ratio(_Struct, frozen=True):
    """A dimension that follows from the request: the product of the sizes `of`, divided by `per`."""

    of: Annotated[tuple[Literal["height", "width"], ...], msgspec.Meta(min_length=1, max_length=2)]
    per: Positive


TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
Token = TokenId | Name  # an id, or the input of kind `choice` whose value has one
Shape = tuple[Positive | Name | Ratio, ...]
"""Of noise: "batch" first; the names of arrays int64 (rows,) stand for dimensions that differ from result to result."""


# ---------------------------------------------------------------- what a user gives


Cleaning = Literal["mend", "entities", "underscores", "pieces", "punctuation", "lower", "blanks"]


class Placing(_Struct, frozen=True):
    """How a picture of the input `image`, which has `split`, stands in a text: `word`, which the prefix has once,
    becomes `alone`, or, where there are several tiles, `tile` for each of them, row by row, with `line` after each row,
    and `last` for the whole.

    In these {row} and {column} are counted from 1, and {} is `word` once for each of a tile's `places`. Its id,
    `token`, becomes `first` and more: the number of the place in all tiles of the request, for graphs to look up.
    """

    image: Name
    word: Label
    token: TokenId
    places: Annotated[int, msgspec.Meta(ge=1, le=65536)]
    first: TokenId
    alone: str
    tile: str = ""
    line: str = ""
    last: str = ""


class Tokenize(_Struct, frozen=True):
    """How a text becomes ids: int64 (texts, tokens), at most `length` a text, padded at the right with the id `pad`.

    `prefix` and `suffix` are words put around the text. The special tokens that `file` adds are kept; `before` and
    `after` stand around them. Where the text has no negative, `blank` makes the unconditional rows of guidance: the
    same ids, but this one in place of all between a row's first and last. Without a `mask` all have
    `length` tokens, and longer texts are cut with a warning. `mask` names a bool array like the ids, true where a
    text's own tokens are: then the longest text sets the length, and a text over `length` is refused. `clean` are the
    steps of `cleaning.STEPS` that a text goes through first. A text of no tokens is refused where some are `needed`.
    `picture` says how a picture stands in the prefix. `absent` is as `blank`, but the unconditional rows have no tokens
    at all.
    """

    file: str
    length: Annotated[int, msgspec.Meta(ge=2, le=2**20)]
    pad: TokenId
    mask: Name | None = None
    before: tuple[Token, ...] = ()
    after: tuple[Token, ...] = ()
    prefix: str = ""
    suffix: str = ""
    blank: TokenId | None = None
    clean: tuple[Cleaning, ...] = ()
    needed: bool = False
    picture: Placing | None = None
    absent: bool = False


class Text(_Struct, frozen=True, tag="text", tag_field="kind"):
    """A text or several. `negative` names the text input that makes the unconditional rows of guidance. Without a
    `default` it must be given, unless `optional`."""

    tokenize: dict[Name, Tokenize] = {}
    default: str | None = None
    negative: Name | None = None
    optional: bool = False


class Fit(_Struct, frozen=True):
    """How a picture of any size becomes (height, width): stretched, or, with `shortest`, made so large that its shorter
    side has as many pixels, and the middle cut out; its first pixel's place is floored, or rounded, halves to the even.
    With `around` it is made so large that it just fits inside, and has that value around it."""

    width: Annotated[int, msgspec.Meta(ge=1, le=16384)]
    height: Annotated[int, msgspec.Meta(ge=1, le=16384)]
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
    shortest: Annotated[int, msgspec.Meta(ge=1, le=16384)] | None = None
    middle: Literal["floored", "rounded"] = "floored"
    around: Annotated[int, msgspec.Meta(ge=0, le=255)] | None = None


class Patches(_Struct, frozen=True):
    """How a picture of any size becomes at most `most` patches of `size` times `size` pixels: made as large as they
    allow, in nearly its own shape, and cut row by row. `shapes` names an array int64 (pictures, 2) of how many rows and
    columns each has."""

    size: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    most: Annotated[int, msgspec.Meta(ge=1, le=65536)]
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
    shapes: Name


class Split(_Struct, frozen=True):
    """How a picture of any size becomes tiles of `size` times `size` pixels: made so large that its longer side has
    `longest` pixels, and its shorter an even number, then stretched to one tile, or, if it is `cut`, to as many as it
    needs. Several are cut row by row, and after them comes the whole, stretched to one."""

    size: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    longest: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
    cut: bool = False

    @property
    def most(self) -> int:
        """How many tiles a picture can have."""
        side = -(-self.longest // self.size) if self.cut else 1
        return 1 if side == 1 else side**2 + 1


class Image(_Struct, frozen=True, tag="image", tag_field="kind"):
    """A picture as `array`, uint8 (pictures, height, width, 3), RGB. May be left out unless `required`.

    It takes the size that `fit` says, with one row for each distinct picture; without, the request's size, with one row
    for each result, or, where requests have none, its own, which all pictures of a request share. With `patches` it is
    uint8 (pictures, patches, values), zeros after a picture's own patches, whose values are row by row, RGB. With
    `split` it is uint8 (tiles, size, size, 3), all those of the request, which texts say the places of.
    """

    array: Name
    fit: Fit | None = None
    patches: Patches | None = None
    split: Split | None = None
    required: bool = False


class Audio(_Struct, frozen=True, tag="audio", tag_field="kind"):
    """A recording as `array`, float32 (recordings, samples) in [-1, 1], one channel, `rate` samples a second.

    One row for each distinct recording, with zeros after it; `lengths` names an array int64 (recordings,) of how many
    samples are its own, with the silence that fills it up to `window` seconds. One of more than `seconds` is refused,
    and one that is longer than the window needs the choice `timestamps` to be "yes", which it then is by itself.
    """

    array: Name
    lengths: Name
    rate: Annotated[int, msgspec.Meta(ge=1000, le=1_000_000)]
    window: Annotated[int, msgspec.Meta(ge=1, le=3600)]
    seconds: Annotated[int, msgspec.Meta(ge=1, le=36000)]
    timestamps: Name
    required: bool = False


class Int(_Struct, frozen=True, tag="int", tag_field="kind"):
    """A whole number in [min, max]. Without `array` it sets something of the program; with, it goes into graphs as
    int64 (numbers,), and each result may have its own."""

    default: Annotated[int, _INT64]
    min: Annotated[int, _INT64]
    max: Annotated[int, _INT64]
    array: Name | None = None


class Float(_Struct, frozen=True, tag="float", tag_field="kind"):
    """A number in [min, max]; as `Int`, with `array` as float32 (numbers,)."""

    default: float
    min: float
    max: float
    array: Name | None = None


Number = Int | Float
NUMBERS: dict[type, Dtype] = {Int: "int64", Float: "float32"}  # of their arrays


class Choice(_Struct, frozen=True, tag="choice", tag_field="kind"):
    """One of a few names; `tokens` are the ids that stand for them in a tokenized text or a prompt.

    In a prompt, `silent` is the name that no token stands for, and for `detected` it is the most likely of `tokens`.
    With `array`, the id goes into graphs as int64 (1,): a class, for instance.
    """

    default: str
    choices: tuple[Label, ...]
    tokens: dict[Label, TokenId] = {}
    silent: Label | None = None
    detected: Label | None = None
    array: Name | None = None


class Size(_Struct, frozen=True, tag="size", tag_field="kind"):
    """(width, height) in pixels, each a multiple of `multiple` in [multiple, max]."""

    default: tuple[Positive, Positive]
    multiple: Positive
    max: Annotated[int, msgspec.Meta(ge=1, le=16384)]


class Count(_Struct, frozen=True, tag="count", tag_field="kind"):
    """How many results for each prompt."""

    max: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    default: Literal[1] = 1


class Seed(_Struct, frozen=True, tag="seed", tag_field="kind"):
    """Where chance starts; result i of a request takes seed + i. `generator` names the input that chooses the kind of
    noise; without, it is that of torch on a CPU."""

    generator: Name | None = None


class Strings(_Struct, frozen=True, tag="strings", tag_field="kind"):
    """Some texts that hold for the whole request; none if left out."""


Input = Text | Image | Audio | Number | Choice | Size | Count | Seed | Strings


def arrays_of(spec: Input) -> tuple[str, ...]:
    """The names of the arrays that an input becomes."""
    match spec:
        case Text():
            return (*spec.tokenize, *(each.mask for each in spec.tokenize.values() if each.mask is not None))
        case Audio():
            return spec.array, spec.lengths
        case Image():
            return (spec.array, spec.patches.shapes) if spec.patches else (spec.array,)
        case Int() | Float() | Choice() if spec.array is not None:
            return (spec.array,)
    return ()


class ImageOutput(_Struct, frozen=True, tag="image", tag_field="kind"):
    """Pictures, from the array `source`: uint8 (batch, height, width, 3), RGB."""

    source: Name = msgspec.field(name="from")


class TextOutput(_Struct, frozen=True, tag="text", tag_field="kind"):
    """Texts, from the array `source`: int64 (batch, tokens), by the tokenizer `file` without its special tokens.

    `clean` takes the blanks before punctuation away, as transformers' `clean_up_tokenization_spaces` does.
    """

    source: Name = msgspec.field(name="from")
    file: str
    clean: bool = False


class VectorOutput(_Struct, frozen=True, tag="vector", tag_field="kind"):
    """Vectors of length 1, from the array `source`, float32 (rows, width); left out where nothing made it."""

    source: Name = msgspec.field(name="from")


class AudioOutput(_Struct, frozen=True, tag="audio", tag_field="kind"):
    """Sounds, from the array `source`: float32 (rows, samples), or (rows, channels, samples), in [-1, 1], of `rate`
    samples a second. `lengths` names an array int64 (rows,) of how many samples are a row's own."""

    source: Name = msgspec.field(name="from")
    rate: Annotated[int, msgspec.Meta(ge=1000, le=1_000_000)]
    lengths: Name | None = None


Output = ImageOutput | TextOutput | VectorOutput | AudioOutput


class Similarity(_Struct, frozen=True):
    """How alike the vectors of the outputs `text` and `image` are: their products, which are cosines, become logits by
    `scale` and `bias`, and these probabilities by a softmax over the texts, or by a sigmoid each."""

    text: Name
    image: Name
    scale: Annotated[float, msgspec.Meta(gt=0)]
    bias: float = 0.0
    probability: Literal["softmax", "sigmoid"] = "softmax"


# ---------------------------------------------------------------- graphs


class Array(_Struct, frozen=True):
    """An array at a graph's border. Equal names of free dimensions mean equal sizes within one graph."""

    dtype: Dtype
    shape: Annotated[tuple[Dim, ...], msgspec.Meta(max_length=8)]

    def __str__(self) -> str:
        return f"{self.dtype}({', '.join(map(str, self.shape))})"


Reason = Literal[
    "overflow", "underflow", "weights", "rounding", "choice", "accumulation", "unsupported", "between", "error"
]


class Island(_Struct, frozen=True):
    """An operator that a variant of lower precision leaves in fp32, and why; `range` is what it was seen to write.

    overflow: it reads or writes numbers too large for 16 bits; underflow: or too small; weights: its weights are;
    rounding: what it makes of inputs that are rounded is something else; choice: lengths or choices are made of
    what it writes, and would be others; accumulation: it adds up many numbers;
    unsupported: there is none in 16 bits; between: it stands between others in fp32; error: the graph as a whole came
    out wrong.
    """

    node: Label
    op: Label
    reason: Reason
    range: tuple[float, float] | None = None


class Range(_Struct, frozen=True):
    """The sizes that a free dimension of an engine may have; it is fastest at `opt`."""

    min: Positive
    opt: Positive
    max: Positive


Sizes = dict[Name, Range]  # of a graph's free dimensions


class Build(_Struct, frozen=True):
    """What an engine was built of, by and for; an engine for which any of it is not so is not loaded.

    `source` is the digest of the ONNX graph (`Bundle.digest`), `version` the library's, `capabilities` are those of
    the GPUs, such as 8.9. The engine takes sizes that lie in any of its `profiles`; a dimension with one size in all of
    them is fixed. It is `stripped` where its weights are the ONNX graph's, to be put in when it is loaded.
    """

    source: Sha256
    version: Label
    capabilities: Annotated[tuple[Label, ...], msgspec.Meta(min_length=1)]
    profiles: Annotated[tuple[Sizes, ...], msgspec.Meta(min_length=1, max_length=16)]
    stripped: bool = False


class Variant(_Struct, frozen=True):
    """One file that computes a graph. ONNX files, `*.onnx`, may have weights beside them, named in the file itself;
    those of the other engines, `*.engine`, have a `build`.

    `dtypes` are those of the graph's inputs and outputs that are others than in the graph: of 16 bits for float32, of
    arrays that are `carried`. `islands` are the operators in fp32 among others of lower precision.
    """

    engine: Literal["onnx", "tensorrt", "tensorrt-rtx"]
    precision: Literal["fp32", "fp16", "bf16", "int8"]
    file: str
    build: Build | None = None
    dtypes: dict[Name, Literal["float16", "bfloat16"]] = {}
    islands: Annotated[tuple[Island, ...], msgspec.Meta(max_length=65536)] = ()


class Graph(_Struct, frozen=True):
    """A function of named arrays, in one or more variants, of which one is chosen when it is loaded."""

    inputs: dict[Name, Array]
    outputs: dict[Name, Array]
    variants: Annotated[tuple[Variant, ...], msgspec.Meta(min_length=1)]

    def of(self, variant: Variant) -> Graph:
        """The graph with the dtypes that a variant of it has at its borders."""

        def typed(arrays: dict[Name, Array]) -> dict[Name, Array]:
            return {
                name: msgspec.structs.replace(array, dtype=variant.dtypes[name]) if name in variant.dtypes else array
                for name, array in arrays.items()
            }

        return msgspec.structs.replace(self, inputs=typed(self.inputs), outputs=typed(self.outputs))


# ---------------------------------------------------------------- the program


class Tiles(_Struct, frozen=True):
    """A large array that the graph sees in tiles, one after the other: `source`, (rows, height, width, ...).

    In height and width tiles have at most as many places as the input `size` says, at least `overlap` of them in common
    with the next, and begin at multiples of `multiple`. What is made of them, `made`, is `scale` times as high and as
    wide, and becomes one again, in which each tile fades into the next.
    """

    source: Name
    made: Name
    size: Name
    overlap: Positive
    multiple: Positive
    scale: Annotated[int, msgspec.Meta(ge=1, le=64)]


class Once(_Struct, frozen=True, tag="once", tag_field="stage"):
    """Run the graphs once. `when` names an input without which the stage is skipped; `draws` are arrays of noise. With
    `tiles`, the one graph is run on each of them.

    Where a dimension differs from result to result, each has noise of its own size, with zeros after it. `scattered`
    are those that the source draws into tensors that are not contiguous, for which torch takes other numbers.
    """

    graphs: tuple[Name, ...]
    when: Name | None = None
    draws: dict[Name, Shape] = {}
    scattered: tuple[Name, ...] = ()
    tiles: Tiles | None = None


class Guidance(_Struct, frozen=True):
    """`classifier-free`: two rows a picture, `[unconditional..., conditional...]`, joined with the input `scale`
    (on where it exceeds 1) and rescaled by the input `rescale` (0 to 1; arXiv 2305.08891, section 3.4).
    `embedded`: the scale goes into the graph as float32 `guidance` (batch,)."""

    kind: Literal["classifier-free", "embedded"]
    scale: Name
    rescale: Name | None = None


class Diffuse(_Struct, frozen=True, tag="diffuse", tag_field="stage"):
    """From noise of `latents`' shape, or from the array `start`, in sampler steps over the graphs, to `latents`.

    The loop gives the graphs `latents` and `timestep`, float32 (batch,), and takes `prediction`.
    `preview` is a matrix (channels + 1, 3) from latents to RGB in [-1, 1], its last row the constant. `steps`,
    `sampler` and `strength` name inputs.
    """

    graphs: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1)]
    latents: Annotated[Shape, msgspec.Meta(min_length=2, max_length=8)]
    schedule: Schedule
    samplers: dict[Label, Sampler]
    sampler: Name
    steps: Name
    guidance: Guidance | None = None
    start: Name | None = None
    strength: Name | None = None
    preview: tuple[tuple[float, float, float], ...] = ()


Option = Literal[
    "max_new_tokens",
    "min_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "beams",
    "length_penalty",
    "early_stopping",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "stop",
]


class Timestamps(_Struct, frozen=True):
    """Tokens for times: the id `first` is where a window begins, each next one is `frames` and `seconds` later.

    They come where the input `choice` is "yes": around each segment of the text, rising, the first of a window at most
    `initial` steps from its beginning; `without`, which stands in prompts that do without them, never does.
    """

    choice: Name
    first: TokenId
    without: TokenId
    frames: Positive
    seconds: Annotated[float, msgspec.Meta(gt=0, le=60)]
    initial: Annotated[int, msgspec.Meta(ge=0, le=2**20)] | None = None


class Windows(_Struct, frozen=True):
    """A long array that is read in windows: with timestamps each from where the one before was understood to, until the
    end; without them the first alone.

    `source` is float32 (rows, features, frames), and `lengths`, int64 (rows,), how many frames are a row's own. Of it
    the loop makes `window`, (rows, features, size), zeros after the end, and runs `graphs` on it before it goes on.
    """

    source: Name
    lengths: Name
    window: Name
    size: Positive
    graphs: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1)]
    timestamps: Timestamps


class Autoregress(_Struct, frozen=True, tag="autoregress", tag_field="stage"):
    """From the tokens of `prompt`, one token after the other, to `sequences`: int64 (batch, tokens), the new tokens,
    padded with `pad`.

    `prompt` may also name an array, int64 (rows, tokens), with `prompt_mask`, bool, true at a row's own tokens, which
    come first. A prompt may hold ids beyond the vocabulary, which the graphs read and never write.

    The loop gives the graphs `tokens`, int64 (rows, sequence), and `positions`, int64 (rows,), how many tokens of a row
    came before; it takes `logits`, float32 (rows, vocabulary), for what follows the last, and, if a graph makes them,
    `likeliest`, int64 (rows,), each row's most likely token, where that is all it needs. `caches` says which output is
    the new content of which input, float32 (rows, heads, capacity, width), written in place; `limit` is the most tokens
    that a row can have, prompt and all. Without the option `max_new_tokens`, rows become that long, or get `count` new
    tokens. With `guidance`, of the kind `classifier-free`, the logits of unconditional and conditional rows are joined.

    A row ends with any of `ends`. `forced` are its first new tokens, `forced_end` its last if `max_new_tokens` is
    reached; `suppressed` never come, `begin_suppressed` not as the first that is chosen. `options` names the inputs
    that set the options of `search.Rules`. With `windows` all this holds for each of them, and `sequences` are what was
    understood of all.

    With `delays` a token is a vector, of a code from each of as many codebooks: `tokens` (rows, sequence, codebooks),
    `logits` (rows, codebooks, vocabulary), `likeliest` (rows, codebooks), `sequences` (batch, tokens, codebooks).
    Codebook k comes delays[k] tokens late: it reads `pad` until then, and again when it has as many as the others. Its
    codes end up beside those of the same time, and the longest delay is what `sequences` are shorter than the number of
    new tokens.
    """

    graphs: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1)]
    caches: Annotated[dict[Name, Name], msgspec.Meta(min_length=1)]
    limit: Annotated[int, msgspec.Meta(ge=2, le=2**20)]
    prompt: Annotated[tuple[Token, ...], msgspec.Meta(min_length=1)] | Name
    pad: TokenId
    ends: tuple[TokenId, ...]
    options: dict[Option, Name]
    prompt_mask: Name | None = None
    guidance: Guidance | None = None
    forced: tuple[Token, ...] = ()
    forced_end: TokenId | None = None
    suppressed: tuple[TokenId, ...] = ()
    begin_suppressed: tuple[TokenId, ...] = ()
    count: Positive | None = None
    windows: Windows | None = None
    delays: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, le=1024)], ...], msgspec.Meta(max_length=64)] = ()


Stage = Once | Diffuse | Autoregress


# ---------------------------------------------------------------- the whole


class Source(_Struct, frozen=True):
    """Where the bundle came from."""

    family: Label
    checkpoint: dict[str, Sha256]  # its weight files
    versions: dict[Label, Label]
    licence: Label | None = None


class File(_Struct, frozen=True):
    """A file of the bundle."""

    bytes: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Sha256


class Manifest(_Struct, frozen=True):
    """What a bundle is, what goes in and comes out, its graphs and its program."""

    format: int
    task: Label
    name: Label
    source: Source
    inputs: dict[Name, Input]
    outputs: Annotated[dict[Name, Output], msgspec.Meta(min_length=1)]
    graphs: Annotated[dict[Name, Graph], msgspec.Meta(min_length=1)]
    program: Annotated[tuple[Stage, ...], msgspec.Meta(min_length=1)]
    files: dict[str, File]
    similarity: Similarity | None = None

    def carried(self) -> set[str]:
        """The float32 arrays that wait while a loop goes on: its caches, and what graphs made for it before it began.

        No loop and no output reads them, graphs alone do: so they may have another dtype between two graphs.
        """
        found: set[str] = set()
        made: set[str] = set()  # by graphs so far
        read = {output.source for output in self.outputs.values()}
        for stage in self.program:
            if not isinstance(stage, Once):
                graphs = [self.graphs[name] for name in stage.graphs]
                own = {name for graph in graphs for name in graph.outputs}
                if isinstance(stage, Diffuse):
                    read |= {stage.start} if stage.start else set()
                elif stage.windows is not None:
                    read.add(stage.windows.source)
                    made |= {name for each in stage.windows.graphs for name in self.graphs[each].outputs}
                found |= {name for graph in graphs for name in graph.inputs} & made - own
                if isinstance(stage, Autoregress):
                    for old, new in stage.caches.items():
                        takers = [graph for graph in graphs if old in graph.inputs]
                        found |= {old, new} if len(takers) == 1 and new in takers[0].outputs else set()
            made |= {name for each in stage.graphs for name in self.graphs[each].outputs}
        borders = [
            (name, array) for graph in self.graphs.values() for name, array in (graph.inputs | graph.outputs).items()
        ]
        return found - read - {name for name, array in borders if array.dtype != "float32"}

    def size(self, file: str) -> int:
        """The bytes of a file and of those that lie beside it, such as an ONNX file's weights."""
        return sum(each.bytes for name, each in self.files.items() if name == file or name.startswith(f"{file}."))

    def text_inputs(self) -> dict[str, Text]:
        """The text inputs that become ids."""
        return {name: value for name, value in self.inputs.items() if isinstance(value, Text) and value.tokenize}
