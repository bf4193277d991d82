"""`diffuse`: from noise to latents, one row of the sampler's table after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from mmrt.runtime import manifest, samplers
from mmrt.runtime.arrays import AnyArray, Float32, fitted
from mmrt.runtime.devices import cpu
from mmrt.runtime.engines import Engine
from mmrt.runtime.errors import BundleError, RequestError
from mmrt.runtime.events import Event, Step
from mmrt.runtime.request import Request
from mmrt.runtime.stages import Run, guided

if TYPE_CHECKING:
    from mmrt.runtime.media import Picture


def diffuse(stage: manifest.Diffuse, engines: Mapping[str, Engine], run: Run) -> Iterator[Event]:
    """Yield a `Step` after every row of the table, and leave float32 `latents` in the request's arrays."""
    request = run.request
    table = _table(stage, run)
    scale, rescale = guidance(stage, request)
    copies = 2 if guided(stage, request) else 1
    latents = _start(stage, table, run)

    arrays = run.spread((name for graph in stage.graphs for name in engines[graph].inputs), copies, request.count)
    model_input = arrays["latents"] = np.empty((copies * len(latents), *latents.shape[1:]), np.float32)
    timestep = arrays["timestep"] = np.empty(len(model_input), np.float32)
    arrays["guidance"] = np.full(len(model_input), scale, np.float32)
    calls = _bind(stage, engines, arrays)
    prediction = arrays["prediction"]
    if prediction.shape != model_input.shape:
        raise BundleError(f"prediction is {prediction.shape}, wanted {model_input.shape} as the latents are")

    rows = table.rows
    coefficients, step = table.coefficients(scale, rescale), np.array([-1, 0], np.int32)
    history = np.empty((len(rows[0].b), *latents.shape), np.float32)
    noise = np.empty((1, *latents.shape), np.float32) if any(row.s for row in rows) else None
    denoised = np.empty_like(latents) if stage.preview else None
    factor = np.empty(len(latents), np.float32) if copies == 2 and rescale > 0 else None

    def advance() -> None:
        cpu.guide_and_step(
            prediction, latents, history, model_input, timestep, coefficients, step, noise, denoised, factor
        )

    advance()
    for number, row in enumerate(rows, 1):
        for graph, call in calls.items():
            with run.clock(graph):
                call()
        if noise is not None and row.s:
            noise[0] = run.draw(latents.shape[1:])
        advance()
        yield Step(number, len(rows), _previewer(stage, request, denoised))
    run.put("latents", latents, np.arange(request.batch))


def guidance(stage: manifest.Diffuse, request: Request) -> tuple[float, float]:
    """The request's guidance scale and rescale; 1 and 0 do nothing."""
    if stage.guidance is None:
        return 1.0, 0.0
    rescale = request.values[stage.guidance.rescale] if stage.guidance.rescale else 0.0
    return request.values[stage.guidance.scale], rescale


def _table(stage: manifest.Diffuse, run: Run) -> samplers.Table:
    request = run.request
    steps = request.values[stage.steps]
    skipped = 0
    if stage.strength is not None and stage.start in run.arrays:
        strength = request.values[stage.strength]
        skipped = steps - min(int(steps * strength), steps)
        if skipped == steps:
            raise RequestError(f"{stage.strength} {strength:g} of {steps} steps leaves no step to do")
    return samplers.table(stage.schedule, stage.samplers[request.values[stage.sampler]], steps, skipped)


def _start(stage: manifest.Diffuse, table: samplers.Table, run: Run) -> Float32:
    noise = run.draw(run.shape(stage.latents))
    if stage.start in run.arrays:
        if run.arrays[stage.start].shape != noise.shape:
            raise BundleError(f"{stage.start} is {run.arrays[stage.start].shape}, wanted {noise.shape} as the noise is")
        started: Float32 = np.float32(table.signal) * run.arrays[stage.start] + np.float32(table.noise) * noise
        return started
    return np.float32(table.initial) * noise


def _bind(
    stage: manifest.Diffuse, engines: Mapping[str, Engine], arrays: dict[str, AnyArray]
) -> dict[str, Callable[[], None]]:
    calls = {}
    for graph in stage.graphs:
        calls[graph], outputs = engines[graph].bind(fitted(arrays, engines[graph].inputs))
        arrays |= outputs
    return calls


def _previewer(stage: manifest.Diffuse, request: Request, denoised: Float32 | None) -> Callable[[], list[Picture]]:
    """What the model takes the finished latents to be, made RGB by the linear map and enlarged."""

    def preview() -> list[Picture]:
        from mmrt.runtime import media  # pillow is needed for pictures only

        if denoised is None:
            raise RequestError("the bundle has no preview map")
        return media.coarse_pictures(cpu.linear_rgb(denoised, stage.preview), request.width, request.height)

    return preview
