"""What types cannot say of a manifest: that names refer to something, of the right kind, made before it is used."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from mmrt.runtime.checks.environment import Environment, Shaped, names, require
from mmrt.runtime.checks.inputs import check_inputs
from mmrt.runtime.checks.program import check_stage
from mmrt.runtime.manifest import (
    Array,
    AudioOutput,
    Autoregress,
    Graph,
    Manifest,
    TextOutput,
    Variant,
    VectorOutput,
)

_CHANNELS = 8  # of a sound


def check(manifest: Manifest) -> None:
    """Raises `BundleError` naming the place."""
    env = Environment(manifest)
    _files(env)
    _graphs(env)
    check_inputs(env)
    for index, stage in enumerate(manifest.program):
        check_stage(env, f"$.program[{index}]", stage)
    _variants(env)
    _outputs(env)
    _similarity(env)


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


def _files(env: Environment) -> None:
    for path in env.manifest.files:
        require(legal_path(path), "$.files", f"{path!r} is not a plain relative path")


def _graphs(env: Environment) -> None:
    for name, graph in env.manifest.graphs.items():
        where = f"$.graphs.{name}"
        for index, variant in enumerate(graph.variants):
            _variant(env, graph, variant, f"{where}.variants[{index}]")
        both = graph.inputs.keys() & graph.outputs.keys()
        require(not both, where, f"{names(both)} cannot be an input and an output")
        for side, arrays in (("inputs", graph.inputs), ("outputs", graph.outputs)):
            for key, array in arrays.items():
                env.not_absurd(array.shape, f"{where}.{side}.{key}.shape")


def _variant(env: Environment, graph: Graph, variant: Variant, where: str) -> None:
    env.file(variant.file, f"{where}.file")
    ending = ".onnx" if variant.engine == "onnx" else ".engine"  # ONNX Runtime reads other formats by their names
    require(variant.file.endswith(ending), f"{where}.file", f"{variant.file!r} is not named *{ending}")
    built = variant.build is not None
    require(built == (ending == ".engine"), where, "`build` is what engines have, and ONNX graphs have not")
    free = {dim for array in graph.inputs.values() for dim in array.shape if isinstance(dim, str)}
    for number, sizes in enumerate(variant.build.profiles if variant.build else ()):
        at = f"{where}.build.profiles[{number}]"
        require(sizes.keys() == free, at, f"sizes are those of {names(sizes)}, free are {names(free)}")
        for name, size in sizes.items():
            require(size.min <= size.opt <= size.max, f"{at}.{name}", "wanted min <= opt <= max")


def _variants(env: Environment) -> None:
    """That only what is carried between graphs has another dtype, and of a cache both sides."""
    carried = env.manifest.carried()
    caches: dict[str, str] = {}
    for stage in env.manifest.program:
        caches |= stage.caches if isinstance(stage, Autoregress) else {}
    for name, graph in env.manifest.graphs.items():
        for index, variant in enumerate(graph.variants):
            where = f"$.graphs.{name}.variants[{index}]"
            for array in variant.dtypes:
                known = array in graph.inputs or array in graph.outputs
                require(known, f"{where}.dtypes", f"graph {name!r} has no {array!r}")
                what = f"{array!r} is not carried from graph to graph in float32, so its dtype is the graph's"
                require(array in carried, f"{where}.dtypes", what)
            for old, new in caches.items():
                both = variant.dtypes.get(old) == variant.dtypes.get(new)
                known = old in graph.inputs and new in graph.outputs
                what = f"the cache {old!r} becomes {new!r} of another dtype"
                require(both or not known, f"{where}.dtypes", what)
            for number, island in enumerate(variant.islands):
                low, high = island.range or (0.0, 0.0)
                require(low <= high, f"{where}.islands[{number}].range", f"{low} is more than {high}")


def _outputs(env: Environment) -> None:
    for name, output in env.manifest.outputs.items():
        where = f"$.outputs.{name}.from"
        require(output.source in env.made, where, f"no graph makes {output.source!r}")
        require(output.source not in env.whole, where, f"{output.source!r} has no rows for results")
        if isinstance(output, VectorOutput):
            env.fits(output.source, Shaped("float32", (None, None)), where, "a vector")
            continue
        env.certain(output.source, None, where)
        if isinstance(output, TextOutput):
            env.file(output.file, f"$.outputs.{name}.file")
            env.fits(output.source, Shaped("int64", (None, None)), where, "a text")
        elif isinstance(output, AudioOutput):
            _sound(env, output, f"$.outputs.{name}")
        else:
            pixels = Array(dtype="uint8", shape=("batch", "height", "width", 3))
            env.fits(output.source, pixels, where, "a picture")
            known = env.sized or env.free or None not in env.made[output.source].dims[1:]
            require(known, where, "a picture of a free size needs an input of kind 'size'")


def _sound(env: Environment, output: AudioOutput, where: str) -> None:
    made = env.made[output.source]
    channels = made.dims[1] if len(made.dims) == 3 else 1
    legal = made.dtype == "float32" and len(made.dims) in (2, 3) and channels is not None and channels <= _CHANNELS
    what = f"{output.source!r} is made as {made}, a sound is float32(?, ?), or (?, channels, ?) with up to {_CHANNELS}"
    require(legal, f"{where}.from", what)
    if output.lengths is not None:
        env.array(output.lengths, Shaped("int64", (None,)), f"{where}.lengths")
        env.certain(output.lengths, None, f"{where}.lengths")


def _similarity(env: Environment) -> None:
    if (similarity := env.manifest.similarity) is not None:
        for field in ("text", "image"):
            name = getattr(similarity, field)
            known = isinstance(env.manifest.outputs.get(name), VectorOutput)
            require(known, f"$.similarity.{field}", f"{name!r} is not an output of kind vector")
