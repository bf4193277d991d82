"""`diffuse`: from noise to latents, one row of the sampler's table after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from mmrt.runtime import manifest, samplers
from mmrt.runtime.arrays import Float32
from mmrt.runtime.devices import cpu
from mmrt.runtime.engines import Engine
from mmrt.runtime.errors import BundleError, RequestError
from mmrt.runtime.events import Event, Step
from mmrt.runtime.request import Request
from mmrt.runtime.stages import Run

if TYPE_CHECKING:
    from mmrt.runtime.media import Picture


def diffuse(stage: manifest.Diffuse, engines: Mapping[str, Engine], run: Run) -> Iterator[Event]:
    """Yield a `Step` after every row of the table, and leave float32 `latents` in the request's arrays."""
    request = run.request
    table = _table(stage, run)
    scale, rescale = guidance(stage, request)
    copies = 2 if guided(stage, request) else 1
    latents = _start(stage, table, run)

    for name, text in stage.conditions.items():
        if len(run.arrays[name]) != run.rows[text].max() + 1:
            raise BundleError(f"{name} has {len(run.arrays[name])} rows for {run.rows[text].max() + 1} texts")
        run.arrays[name] = cpu.take_rows(run.arrays[name], run.rows[text])
    rows = copies * request.batch
    model_input = run.arrays["latents"] = np.empty((rows, *latents.shape[1:]), np.float32)
    timestep = run.arrays["timestep"] = np.empty(rows, np.float32)
    run.arrays["guidance"] = np.full(rows, scale, np.float32)
    calls = _bind(stage, engines, run)
    prediction = run.arrays["prediction"]
    if prediction.shape != model_input.shape:
        raise BundleError(f"prediction is {prediction.shape}, wanted {model_input.shape} as the latents are")

    history: list[Float32] = []
    for number, row in enumerate(table.rows, 1):
        model_input.reshape(copies, *latents.shape)[:] = np.float32(row.scale) * latents
        timestep[:] = row.timestep
        for graph, call in calls.items():
            with run.clock(graph):
                call()
        output = cpu.guide(prediction, scale, rescale) if copies == 2 else prediction
        noise = run.draw(latents.shape[1:]) if row.s else None
        before, latents = latents, cpu.step(output, latents, history, row, noise)
        yield Step(number, len(table.rows), _previewer(stage, request, before, output, row))
    run.arrays["latents"] = latents


def guided(stage: manifest.Diffuse, request: Request) -> bool:
    """Whether there are two rows a picture: classifier-free guidance with a scale over 1."""
    kind = stage.guidance.kind if stage.guidance else None
    return kind == "classifier-free" and guidance(stage, request)[0] > 1


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


def _bind(stage: manifest.Diffuse, engines: Mapping[str, Engine], run: Run) -> dict[str, Callable[[], None]]:
    calls = {}
    for graph in stage.graphs:
        calls[graph], outputs = engines[graph].bind(run.arrays)
        run.arrays |= outputs
    return calls


def _previewer(
    stage: manifest.Diffuse, request: Request, latents: Float32, prediction: Float32, row: samplers.Row
) -> Callable[[], list[Picture]]:
    """What the model takes the finished latents to be, made RGB by the linear map and enlarged."""

    def preview() -> list[Picture]:
        from mmrt.runtime import media  # pillow is needed for pictures only

        if not stage.preview:
            raise RequestError("the bundle has no preview map")
        denoised = np.float32(row.denoised[0]) * latents + np.float32(row.denoised[1]) * prediction
        return media.coarse_pictures(cpu.linear_rgb(denoised, stage.preview), request.width, request.height)

    return preview
