"""`once`: run the graphs, one after the other, over the request's arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mmrt.runtime import manifest
from mmrt.runtime.engines import Engine
from mmrt.runtime.events import Event
from mmrt.runtime.stages import Run


def once(stage: manifest.Once, engines: Mapping[str, Engine], run: Run) -> Iterator[Event]:
    """Draw the noise that the stage asks for, then run its graphs. Yields nothing."""
    if stage.when is not None and not run.request.given(stage.when):
        return
    for name, shape in stage.draws.items():
        run.arrays[name] = run.draw(run.shape(shape))
    for graph in stage.graphs:
        engine = engines[graph]
        with run.clock(graph):
            outputs = engine.run(run.arrays)
        run.arrays |= outputs
    yield from ()
