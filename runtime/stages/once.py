"""`once`: run the graphs, one after the other, over the request's arrays, or one of them over an array's tiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from mmrt.runtime import manifest, tiles
from mmrt.runtime.arrays import AnyArray, Int64, fitted
from mmrt.runtime.devices import Array
from mmrt.runtime.engines import Engine
from mmrt.runtime.errors import BundleError, RequestError
from mmrt.runtime.events import Event, Step
from mmrt.runtime.stages import Run

if TYPE_CHECKING:
    from mmrt.runtime.media import Picture

_FEWEST = 8  # rows that are worth a call of their own


def once(stage: manifest.Once, engines: Mapping[str, Engine], run: Run) -> Iterator[Event]:
    """Draw the noise that the stage asks for, then run its graphs on the distinct values of their inputs."""
    if stage.when is not None and not run.request.given(stage.when):
        return
    for name, shape in stage.draws.items():
        run.bring(name, run.drawn(shape, name in stage.scattered), np.arange(run.request.batch))
    if stage.tiles is not None:
        yield from _tiled(stage.tiles, engines[stage.graphs[0]], run)
        return
    for graph in stage.graphs:
        engine = engines[graph]
        rows = run.join(engine.inputs)
        given = fitted(run.arrays, engine.inputs, run.device.cast)
        with run.clock(graph):
            outputs = _in_buckets(engine, given, run) or engine.run(given, run.device)
        for name, array in outputs.items():
            run.put(name, array, rows)
    yield from ()


def _in_buckets(engine: Engine, given: Mapping[str, Array], run: Run) -> dict[str, AnyArray]:
    """The outputs of a graph that makes one row of each text, texts of like length together; none where that is no use.

    So none is computed with much more padding than it needs.
    """
    ids = next((name for name in engine.inputs if name in run.lengths), None)
    if ids is None or run.device.kind != "cpu":
        return {}
    texts, tokens = engine.inputs[ids].shape
    apart = all(spec.shape == (texts, tokens) for spec in engine.inputs.values())
    consumed = all(spec.shape[0] == texts and tokens not in spec.shape for spec in engine.outputs.values())
    lengths = run.lengths[ids]
    if not (isinstance(tokens, str) and apart and consumed and len(given[ids]) == len(lengths)):
        return {}
    if len(found := buckets(lengths)) == 1:
        return {}
    parts = [
        engine.run(
            {name: np.ascontiguousarray(array[rows, : max(lengths[rows].max(), 1)]) for name, array in given.items()}
        )
        for rows in found
    ]
    back = np.argsort(np.concatenate(found))
    return {name: np.concatenate([part[name] for part in parts])[back] for name in engine.outputs}


def buckets(lengths: Int64) -> list[Int64]:
    """Rows of like length together, shortest first: at least `_FEWEST`, until one is half as long again as the first of
    them."""
    order = np.argsort(lengths, kind="stable")
    starts = [0]
    for place, row in enumerate(order):
        if place - starts[-1] >= _FEWEST and 2 * lengths[row] > 3 * lengths[order[starts[-1]]]:
            starts.append(place)
    return np.split(order, starts[1:])


def _tiled(spec: manifest.Tiles, engine: Engine, run: Run) -> Iterator[Event]:
    """Yield a `Step` for each tile where there are several."""
    rows = run.join(engine.inputs)
    whole = run.device.get(run.arrays[spec.source])
    down, across = (
        tiles.spans(length, run.request.values[spec.size], spec.overlap, spec.multiple) for length in whole.shape[1:3]
    )
    strips: list[tuple[tiles.Span, AnyArray]] = []
    total = len(down) * len(across)
    for y in down:
        made = []
        for x in across:
            tile = np.ascontiguousarray(whole[:, y.start : y.stop, x.start : x.stop])
            made.append((x, _run_tile(spec, engine, run, tile)))
            if total > 1:
                yield Step(len(strips) * len(across) + len(made), total, _no_preview)
        strips.append((y, tiles.joined(made, whole.shape[2], spec.scale, axis=2)))
    run.bring(spec.made, tiles.joined(strips, whole.shape[1], spec.scale, axis=1), rows)


def _run_tile(spec: manifest.Tiles, engine: Engine, run: Run, tile: AnyArray) -> AnyArray:
    arrays = {**run.arrays, spec.source: run.device.put(tile)}
    with run.clock(engine.graph):
        outputs = engine.run(fitted(arrays, engine.inputs, run.device.cast), run.device)
    found = run.device.get(outputs[spec.made])
    wanted = len(tile), tile.shape[1] * spec.scale, tile.shape[2] * spec.scale
    if found.shape[:3] != wanted:
        raise BundleError(f"{spec.made} is {found.shape} for {spec.source} {tile.shape}, wanted {wanted}")
    return found


def _no_preview() -> list[Picture]:
    raise RequestError("there is no preview of tiles")
