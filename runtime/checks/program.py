"""The stages of a program, checked: what they name is there, of the right kind, and made before it is used."""

from __future__ import annotations

from mmrt.runtime.checks.environment import Environment, Shaped, names, require
from mmrt.runtime.manifest import (
    Autoregress,
    Choice,
    Diffuse,
    Float,
    Image,
    Int,
    Once,
    Stage,
    Strings,
    Text,
    Tiles,
    Token,
    Windows,
)

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


def check_stage(env: Environment, where: str, stage: Stage) -> None:
    """That its graphs get what they take, and name the arrays that they make."""
    for name in stage.graphs:
        require(name in env.manifest.graphs, f"{where}.graphs", f"no graph is named {name!r}")
    if isinstance(stage, Once):
        env.refers(stage.when, (Image, Text), f"{where}.when")
        for name, shape in stage.draws.items():
            env.made[name] = env.drawn(shape, f"{where}.draws.{name}", stage.when)
        strange = set(stage.scattered) - stage.draws.keys()
        require(not strange, f"{where}.scattered", f"{names(strange)} are not drawn")
        if stage.tiles is not None:
            _tiles(env, f"{where}.tiles", stage.tiles, stage)
    elif isinstance(stage, Diffuse):
        _diffuse(env, where, stage)
    else:
        if stage.windows is not None:
            _windows(env, f"{where}.windows", stage.windows, stage)
        _autoregress(env, where, stage)
    for name in stage.graphs:
        _run(env, where, name, stage.when if isinstance(stage, Once) else None)
    if isinstance(stage, Diffuse):
        _prediction(env, where, stage)
    if isinstance(stage, Autoregress):
        _logits(env, where, stage)


def _tiles(env: Environment, where: str, tiles: Tiles, stage: Once) -> None:
    env.refers(tiles.size, (Int,), f"{where}.size")
    size = env.manifest.inputs[tiles.size]
    assert isinstance(size, Int)
    what = f"{tiles.size!r} can be {size.min}, which leaves tiles of overlap {tiles.overlap} no way to go on"
    require(size.array is None, f"{where}.size", f"{tiles.size!r} goes into graphs")
    require(size.min >= tiles.overlap + tiles.multiple, f"{where}.size", what)
    require(len(stage.graphs) == 1, where, f"tiles go through one graph, not {len(stage.graphs)}")
    graph = env.manifest.graphs[stage.graphs[0]]
    for side, name, arrays in (("source", tiles.source, graph.inputs), ("made", tiles.made, graph.outputs)):
        require(name in arrays, f"{where}.{side}", f"{name!r} is none of the graph's arrays")
        free = [isinstance(dim, str) for dim in arrays[name].shape[:3]]
        require(free == [True] * 3, f"{where}.{side}", f"{arrays[name]} is not free in its first three")
    require(len(graph.outputs) == 1, where, f"of tiles one array is made, not {len(graph.outputs)}")


def _run(env: Environment, where: str, name: str, when: str | None = None) -> None:
    graph = env.manifest.graphs[name]
    missing = graph.inputs.keys() - env.made.keys()
    require(not missing, f"{where}.graphs", f"nothing makes {names(missing)} for graph {name!r}")
    for key, array in graph.inputs.items():
        env.fits(key, array, f"$.graphs.{name}.inputs.{key}", f"graph {name!r}")
        env.certain(key, when, f"{where}.graphs")
    for key in graph.outputs:
        if when is None:
            env.perhaps.pop(key, None)
        elif key not in env.made:
            env.perhaps[key] = when
    env.made |= {key: Shaped.of(array) for key, array in graph.outputs.items()}
    env.whole -= graph.outputs.keys()
    if graph.inputs and graph.inputs.keys() <= env.whole:
        env.whole |= graph.outputs.keys()


def _windows(env: Environment, where: str, windows: Windows, stage: Autoregress) -> None:
    env.array(windows.lengths, Shaped("int64", (None,)), f"{where}.lengths")
    env.array(windows.source, Shaped("float32", (None, None, None)), f"{where}.source")
    features = env.made[windows.source].dims[1]
    env.make(windows.window, Shaped("float32", (None, features, windows.size)), f"{where}.window")
    env.switch(windows.timestamps.choice, f"{where}.timestamps.choice")
    require(stage.guidance is None, where, "windows are read without guidance")
    require(len(stage.ends) == 1, where, f"texts of windows have one end, not {len(stage.ends)}")
    for name in windows.graphs:
        require(name in env.manifest.graphs, f"{where}.graphs", f"no graph is named {name!r}")
        _run(env, where, name)


def _diffuse(env: Environment, where: str, stage: Diffuse) -> None:
    latents = env.drawn(stage.latents, f"{where}.latents")
    named = [dim for dim in stage.latents[1:] if isinstance(dim, str)]
    require(not named, f"{where}.latents", f"{names(named)} are no sizes of latents")
    env.refers(stage.sampler, (Choice,), f"{where}.sampler")
    env.refers(stage.steps, (Int,), f"{where}.steps")
    env.refers(stage.strength, (Float,), f"{where}.strength")
    if stage.guidance is not None:
        env.refers(stage.guidance.scale, (Float,), f"{where}.guidance.scale")
        env.refers(stage.guidance.rescale, (Float,), f"{where}.guidance.rescale")
    missing = set(env.choices(stage.sampler)) - stage.samplers.keys()
    require(not missing, f"{where}.samplers", f"no sampler is named {names(missing)}")
    if stage.start is not None:
        require(stage.start in env.made, f"{where}.start", f"nothing makes {stage.start!r}")
        env.fits(stage.start, latents, f"{where}.start", "the loop")
        require(stage.strength is not None, where, "a stage with `start` needs `strength`")
    if stage.preview:
        channels = stage.latents[1]
        fits = len(stage.preview) - 1 == channels and len(stage.latents) == 4 and env.sized
        require(fits, f"{where}.preview", f"{len(stage.preview)} rows do not fit {latents} of a given size")
    row = Shaped("float32", (None,))
    env.made |= {"latents": latents, "timestep": row, "guidance": row}


def _autoregress(env: Environment, where: str, stage: Autoregress) -> None:
    if stage.guidance is not None:
        env.refers(stage.guidance.scale, (Float,), f"{where}.guidance.scale")
        known = stage.guidance.kind == "classifier-free" and stage.guidance.rescale is None
        require(known, f"{where}.guidance", "tokens are guided by `classifier-free` without `rescale`")
    if isinstance(stage.prompt, str):
        env.array(stage.prompt, Shaped("int64", (None, None)), f"{where}.prompt")
    if stage.prompt_mask is not None:
        require(isinstance(stage.prompt, str), f"{where}.prompt_mask", "`prompt` is no array")
        env.array(stage.prompt_mask, Shaped("bool", (None, None)), f"{where}.prompt_mask")
    for option, name in stage.options.items():
        env.refers(name, _OPTIONS.get(option, (Int,)), f"{where}.options.{option}")
    stopping = stage.options.get("early_stopping")
    strangers = set(env.choices(stopping)) - {"no", "yes", "never"} if stopping else set()
    require(not strangers, f"{where}.options.early_stopping", f"{names(strangers)} are no ways to stop")
    env.tokens(stage.forced, where)
    env.tokens(_ids(stage.prompt), where, prompt=True)
    _prompt(env, _ids(stage.prompt), stage, f"{where}.prompt")
    graphs = [env.manifest.graphs[name] for name in stage.graphs]
    inputs = {name: array for graph in graphs for name, array in graph.inputs.items()}
    outputs = {name: array for graph in graphs for name, array in graph.outputs.items()}
    require(len(set(stage.caches.values())) == len(stage.caches), f"{where}.caches", "two become one output")
    for old, new in stage.caches.items():
        at = f"{where}.caches.{old}"
        require(old in inputs and new in outputs, at, f"no graph takes {old!r} and makes {new!r}")
        require(inputs[old] == outputs[new], at, f"{inputs[old]} becomes {outputs[new]}: wanted the same")
        shape = inputs[old].shape
        kinds = [isinstance(dim, int) for dim in shape]
        legal = kinds == [False, True, False, True] and shape[0] != shape[2]
        require(legal, at, f"{inputs[old]} is no cache (rows, heads, capacity, width)")
        env.make(old, Shaped.of(inputs[old]), at)
    if stage.delays:
        _codebooks(env, where, stage)
    books = (len(stage.delays),) if stage.delays else ()
    tokens = Shaped("int64", (None, None, *books))
    env.made |= {"tokens": tokens, "positions": Shaped("int64", (None,)), "sequences": tokens}


def _codebooks(env: Environment, where: str, stage: Autoregress) -> None:
    """Nothing is asked for that would look at the codes of one codebook alone."""
    once = isinstance(stage.prompt, tuple) and len(stage.prompt) == 1 and isinstance(stage.prompt[0], int)
    require(once, f"{where}.prompt", "with `delays` it is one id")
    forced = stage.forced or stage.forced_end is not None or stage.begin_suppressed
    whole = not (stage.ends or forced or stage.suppressed or stage.windows)
    what = "with `delays` there are no `ends`, `windows`, nor forced or suppressed tokens"
    require(whole, where, what)
    strange = stage.options.keys() - _DRAWN
    require(not strange, f"{where}.options", f"{names(strange)} cannot be set with `delays`")
    longest, count = max(stage.delays), stage.count
    require(count is None or count > longest, f"{where}.count", f"{count} tokens, delayed by {longest}")


def _prompt(env: Environment, tokens: tuple[Token, ...], stage: Autoregress, where: str) -> None:
    """The first token is certain, for others are detected after it."""
    choices = [env.manifest.inputs[token] for token in tokens if isinstance(token, str)]
    detects = any(isinstance(choice, Choice) and choice.detected is not None for choice in choices)
    require(not detects or isinstance(tokens[0], int), where, "what is detected needs a token before it")
    require(not detects or stage.guidance is None, where, "nothing is detected with guidance")
    certain = not choices or any(not isinstance(c, Choice) or c.silent is None for c in choices)
    require(certain or len(choices) < len(tokens), where, "a prompt can come to have no tokens")


def _logits(env: Environment, where: str, stage: Autoregress) -> None:
    """A graph of the loop makes them for a vocabulary that has all ids that the stage names."""
    graphs = {name: env.manifest.graphs[name] for name in stage.graphs}
    made = [graph.outputs["logits"] for graph in graphs.values() if "logits" in graph.outputs]
    require(bool(made), f"{where}.graphs", "no graph makes 'logits'")
    vocabulary, books = made[0].shape[-1], (len(stage.delays),) if stage.delays else ()
    shaped = len(made[0].shape) == 2 + len(books) and made[0].shape[1:-1] == books
    legal = made[0].dtype == "float32" and shaped and isinstance(vocabulary, int)
    wanted = ", ".join(("rows", *map(str, books), "vocabulary"))
    require(legal, f"{where}.graphs", f"logits are made as {made[0]}, wanted float32({wanted})")
    for name, graph in graphs.items():
        if (likeliest := graph.outputs.get("likeliest")) is not None:
            legal = likeliest.dtype == "int64" and likeliest.shape[1:] == books and bool(likeliest.shape)
            what = f"'likeliest' is made as {likeliest}, wanted int64({', '.join(('rows', *map(str, books)))})"
            require(legal, f"$.graphs.{name}.outputs.likeliest", what)
        taken = graph.outputs.keys() & {"tokens", "positions", "sequences", "scores"}
        require(not taken, f"$.graphs.{name}.outputs", f"{names(taken)} are the loop's own")
    named = (*_ids(stage.prompt), *stage.forced, *stage.ends, *stage.suppressed, *stage.begin_suppressed)
    ids = {*named, stage.pad, stage.forced_end if stage.forced_end is not None else 0}
    if stage.delays:  # what stands there before and after codes need not be one
        ids = set()
    if stage.windows is not None:
        ids |= {stage.windows.timestamps.first, stage.windows.timestamps.without}
    choices = (env.manifest.inputs[token] for token in named if isinstance(token, str))
    ids |= {token for choice in choices if isinstance(choice, Choice) for token in choice.tokens.values()}
    assert isinstance(vocabulary, int)
    strange = sorted(token for token in ids if isinstance(token, int) and token >= vocabulary)
    require(not strange, where, f"tokens {strange[:3]} are not in the vocabulary of {vocabulary}")


def _prediction(env: Environment, where: str, stage: Diffuse) -> None:
    """The graphs of the loop make it, like the latents, and take nothing away from the loop."""
    graphs = {name: env.manifest.graphs[name] for name in stage.graphs}
    makers = [name for name, graph in graphs.items() if "prediction" in graph.outputs]
    require(bool(makers), f"{where}.graphs", "no graph makes 'prediction'")
    env.fits("prediction", env.drawn(stage.latents, where), f"{where}.graphs", "the loop")
    for name, graph in graphs.items():
        taken = graph.outputs.keys() & {"latents", "timestep", "guidance"}
        require(not taken, f"$.graphs.{name}.outputs", f"{names(taken)} are the loop's own")
        known = {dim for array in graph.inputs.values() for dim in array.shape}
        free = {dim for array in graph.outputs.values() for dim in array.shape if isinstance(dim, str)} - known
        require(not free, f"$.graphs.{name}.outputs", f"{names(free)} are no sizes of its inputs")


def _ids(prompt: tuple[Token, ...] | str) -> tuple[Token, ...]:
    return () if isinstance(prompt, str) else prompt
