"""`diffuse`: from noise to latents, one row of the sampler's table after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from mmrt.runtime import manifest, samplers
from mmrt.runtime.arrays import Float32, fitted
from mmrt.runtime.devices import Array, Device, cpu
from mmrt.runtime.engines import Call, Engine
from mmrt.runtime.errors import BundleError, RequestError
from mmrt.runtime.events import Event, Step
from mmrt.runtime.noise import TorchCuda
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
    device = run.device
    latents = device.put(_start(stage, table, run))

    inputs = {name: spec for graph in stage.graphs for name, spec in engines[graph].inputs.items()}
    arrays = run.spread(inputs, copies, request.count)
    rows = copies * request.batch
    model_input = arrays["latents"] = device.empty((rows, *latents.shape[1:]), inputs["latents"].dtype)
    timestep = arrays["timestep"] = device.empty((rows,), np.float32)
    arrays["guidance"] = device.put(np.full(rows, scale, np.float32))
    calls = _bind(stage, engines, arrays, device)
    prediction = arrays["prediction"]
    if prediction.shape != model_input.shape:
        raise BundleError(f"prediction is {prediction.shape}, wanted {model_input.shape} as the latents are")

    coefficients, step = device.put(table.coefficients(scale, rescale)), device.put(np.array([-1, 0], np.int32))
    history = device.empty((len(table.rows[0].b), *latents.shape), np.float32)
    noise = device.empty(latents.shape, np.float32) if any(row.s for row in table.rows) else None
    generators = [each for each in run.noise if isinstance(each, TorchCuda)] if noise is not None else []
    seeds = device.put(np.array([each.seed for each in generators], np.uint64))
    offsets = device.put(np.array([each.offset for each in generators], np.uint32))
    denoised = device.empty(latents.shape, np.float32) if stage.preview else None
    factor = device.empty((len(latents),), np.float32) if copies == 2 and rescale > 0 else None

    def advance() -> None:
        if generators:
            device.normal(noise, seeds, offsets, generators[0].max_threads, coefficients, step)
        device.guide_and_step(
            prediction, latents, history, model_input, timestep, coefficients, step, noise, denoised, factor
        )

    advance()
    go_on = run.round(calls, advance)
    for number, row in enumerate(table.rows, 1):
        if row.s and not generators:
            device.write(noise, run.draw(latents.shape[1:]))
        go_on()
        yield Step(number, len(table.rows), _previewer(stage, run, denoised))
    for each in generators:
        each.skip(math.prod(latents.shape[1:]), sum(row.s != 0 for row in table.rows))
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
        start: Float32 = run.device.get(run.arrays[stage.start])
        if start.shape != noise.shape:
            raise BundleError(f"{stage.start} is {start.shape}, wanted {noise.shape} as the noise is")
        return np.float32(table.signal) * start + np.float32(table.noise) * noise
    return np.float32(table.initial) * noise


def _bind(
    stage: manifest.Diffuse, engines: Mapping[str, Engine], arrays: dict[str, Array], device: Device
) -> dict[str, Call]:
    calls = {}
    for graph in stage.graphs:
        given = fitted(arrays, engines[graph].inputs, device.cast)
        calls[graph], outputs = engines[graph].bind(given, device=device)
        arrays |= outputs
    return calls


def _previewer(stage: manifest.Diffuse, run: Run, denoised: Array | None) -> Callable[[], list[Picture]]:
    """What the model takes the finished latents to be, made RGB by the linear map and enlarged."""

    def preview() -> list[Picture]:
        from mmrt.runtime import media  # pillow is needed for pictures only

        if denoised is None:
            raise RequestError("the bundle has no preview map")
        pixels = cpu.linear_rgb(run.device.get(denoised), stage.preview)
        return media.coarse_pictures(pixels, run.request.width, run.request.height)

    return preview
