"""How fast is a GPU's path, and beside diffusers on the same card?

    python benchmarks/gpu.py [--work FOLDER] [--models sd15 sd-turbo] [--engine auto] [--no-compile]

Real architectures at their real sizes with random weights, in fp16, 512 x 512: SD 1.5 with 20 steps and guidance,
SD-Turbo's shape with one step and none. In turn, in one process: mmrt, diffusers as it is, diffusers with
torch.compile. For mmrt also each graph's time by the GPU's clock, and the host's time between two steps; its engines
are built first, where TensorRT is installed. Needs an NVIDIA GPU with torch for CUDA, diffusers, and mmrt's extras
`export` and `cuda`, `rtx` or `tensorrt`. Not yet run.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from checkpoints import sd15, sd_turbo

import mmrt
from mmrt.export.exporter import export
from mmrt.runtime.build import build
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.engines.nvidia import Kind
from mmrt.runtime.events import Step
from mmrt.runtime.pipeline import Pipeline


class Model(NamedTuple):
    """What is measured: a checkpoint, and a request to it."""

    checkpoint: Callable[[Path], Path]
    steps: int
    guidance: float


MODELS = {"sd15": Model(sd15, 20, 7.5), "sd-turbo": Model(sd_turbo, 1, 1.0)}
PROMPT = "red heart"


def main() -> None:
    """Export what is missing, measure, print one table a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="where checkpoints and bundles are")
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=[*MODELS])
    parser.add_argument("--engine", default="auto", help="of mmrt")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which takes minutes")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, mmrt {mmrt.__version__}\n")
    for name in args.models:
        model = MODELS[name]
        checkpoint = model.checkpoint(args.work / name)
        path = bundle(checkpoint, args.work / f"{name}.mmrt")
        engines(path, args.engine)
        pipeline = mmrt.load(path, device="cuda", engine=args.engine, build=False)
        print(f"## {name}: 512 x 512, {model.steps} steps, guidance {model.guidance:g}\n\n{pipeline.describe()}\n")
        ours = measure(lambda p=pipeline, m=model: request(p, m), args.repeat)  # type: ignore[misc]
        breakdown(pipeline, model)
        rows = {"mmrt": ours}
        del pipeline
        gc.collect()
        rows["diffusers"] = diffusers(checkpoint, model, args.repeat, compiled=False)
        if not args.no_compile:
            rows["diffusers, torch.compile"] = diffusers(checkpoint, model, args.repeat, compiled=True)
        print("| | ms a picture | spread | pictures a second | mmrt is faster by |\n|---|---|---|---|---|")
        for label, (median, spread) in rows.items():
            print(f"| {label} | {median * 1e3:.1f} | {spread * 1e3:.1f} | {1 / median:.2f} | {median / ours[0]:.2f} |")
        print(flush=True)


def bundle(checkpoint: Path, path: Path) -> Path:
    """The checkpoint's bundle with graphs in fp16, exported unless it is there."""
    if not path.exists():
        for progress in export(checkpoint, path, precision="fp32,fp16"):
            print(progress, flush=True)
    return path


def engines(path: Path, engine: str) -> None:
    """Build what is not there of TensorRT's engines, of the one that is asked for or else of the best that can."""
    kinds: tuple[Kind, ...] = ("tensorrt", "tensorrt-rtx")
    for kind in kinds:
        if engine not in ("auto", kind):
            continue
        try:
            for event in build(Bundle(path), kind):
                print(f"builds the engine {event.graph} {getattr(event, 'share', 0):.0%}", flush=True)
            return
        except mmrt.EngineError as error:
            print(f"without {kind}: {error}", flush=True)


def request(pipeline: Pipeline, model: Model) -> None:
    """One picture, as a caller gets it."""
    pipeline.generate(PROMPT, steps=model.steps, guidance=model.guidance, seed=0)


def measure(work: Callable[[], None], repeat: int) -> tuple[float, float]:
    """Median and spread of the seconds that it takes, after two that do not count."""
    seconds = []
    for number in range(repeat + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        if number >= 2:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), max(seconds) - min(seconds)


def breakdown(pipeline: Pipeline, model: Model) -> None:
    """Each graph's time by the GPU's clock, and the host's between two steps, in which it only asks."""
    asked: list[float] = []
    events = pipeline.stream(PROMPT, steps=model.steps, guidance=model.guidance, seed=0)
    for event in events:
        if isinstance(event, Step):
            asked.append(time.perf_counter())
    timings: dict[str, Any] = event.result.timings  # type: ignore[union-attr]
    print("| graph | ms | ms a step |\n|---|---|---|")
    for graph, seconds in timings["graphs"].items():
        each = f"{seconds * 1e3 / len(asked):.2f}" if graph.startswith("denoiser") else ""
        print(f"| {graph} | {seconds * 1e3:.2f} | {each} |")
    outside = timings["total"] - sum(timings["graphs"].values())
    print(f"| outside the graphs | {outside * 1e3:.2f} | |")
    if gaps := [after - before for before, after in pairwise(asked)][2:]:  # the first is as it is, the second captured
        print(f"| host between two steps | {statistics.median(gaps) * 1e3:.3f} | |")
    print(f"\npeak of the device's memory: {pipeline.place.look() / 1e6:.0f} MB\n", flush=True)


def diffusers(checkpoint: Path, model: Model, repeat: int, compiled: bool) -> tuple[float, float]:
    """diffusers' own pipeline in fp16."""
    from diffusers import StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline.from_pretrained(checkpoint, torch_dtype=torch.float16).to("cuda")
    pipeline.set_progress_bar_config(disable=True)
    if compiled:
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
        pipeline.unet = torch.compile(pipeline.unet, mode="max-autotune", fullgraph=True)
        pipeline.vae.decode = torch.compile(pipeline.vae.decode, mode="max-autotune", fullgraph=True)

    def generate() -> None:
        generator = torch.Generator("cpu").manual_seed(0)
        pipeline(PROMPT, num_inference_steps=model.steps, guidance_scale=model.guidance, generator=generator)

    try:
        return measure(generate, repeat)
    finally:
        pipeline = None
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
