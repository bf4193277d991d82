"""`once`: run the graphs, one after the other, over the request's arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from mmrt.runtime import manifest
from mmrt.runtime.arrays import fitted
from mmrt.runtime.engines import Engine
from mmrt.runtime.events import Event
from mmrt.runtime.stages import Run


def once(stage: manifest.Once, engines: Mapping[str, Engine], run: Run) -> Iterator[Event]:
    """Draw the noise that the stage asks for, then run its graphs on the distinct values of their inputs."""
    if stage.when is not None and not run.request.given(stage.when):
        return
    for name, shape in stage.draws.items():
        run.bring(name, run.drawn(shape, name in stage.scattered), np.arange(run.request.batch))
    for graph in stage.graphs:
        engine = engines[graph]
        rows = run.join(engine.inputs)
        with run.clock(graph):
            outputs = engine.run(fitted(run.arrays, engine.inputs, run.device.cast), run.device)
        for name, array in outputs.items():
            run.put(name, array, rows)
    yield from ()
