"""The same weights, prompt, seed, steps and sampler in mmrt, diffusers on torch, and optimum-onnx, in turn in one run.

    python benchmarks/peers.py [--work FOLDER] [--model emoji|sd15] [--rounds 7]

Each peer has an environment of its own, made with pip under --work, and a process that keeps its model loaded; the
processes are asked for a picture one after the other, so that what else the machine does falls on all of them alike.
Reported are medians of seconds a picture, the time from a process's start to its first picture (three starts), its peak
of memory, the size of its environment, and how far its picture is from diffusers'.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import EMOJI, sd15
from PIL import Image

ROOT = Path(__file__).parent.parent
TORCH = ["torch>=2.9,<2.14", "diffusers", "transformers", "accelerate", "safetensors"]
PEERS = {
    "diffusers": TORCH,
    "mmrt": [f"{ROOT}[cpu]"],
    "optimum-onnx": [  # older releases of its peers, without which pip searches for many minutes
        "torch>=2.9,<2.14",
        "diffusers<0.36",
        "transformers<4.58",
        "huggingface_hub<1",
        "optimum-onnx[onnxruntime]",
    ],
}
LOAD = {
    "diffusers": """
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(options["checkpoint"], torch_dtype=torch.float32, safety_checker=None)
""",
    "optimum-onnx": """
import torch
from diffusers import DDIMScheduler
from optimum.onnxruntime import ORTStableDiffusionPipeline
pipe = ORTStableDiffusionPipeline.from_pretrained(options["onnx"])
""",
}
GENERATE = """
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
pipe.set_progress_bar_config(disable=True)
def generate():
    generator = torch.Generator("cpu").manual_seed(options["seed"])
    return pipe(options["prompt"], num_inference_steps=options["steps"], guidance_scale=options["guidance"],
                height=options["side"], width=options["side"], generator=generator).images[0]
"""
MMRT = """
import mmrt
pipeline = mmrt.load(options["bundle"])
def generate():
    return pipeline.generate(options["prompt"], seed=options["seed"], steps=options["steps"], sampler="ddim",
                             guidance=options["guidance"], size=(options["side"], options["side"])).image
"""
WORKER = """
import json, resource, sys, time, warnings
warnings.simplefilter("ignore")
options = json.loads(sys.argv[1])
{load}
for line in sys.stdin:
    start = time.perf_counter()
    image = generate()
    seconds = time.perf_counter() - start
    image.save(options["picture"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({{"seconds": seconds, "peak": peak}}), flush=True)
"""
EXPORT_OPTIMUM = """
import sys
from optimum.onnxruntime import ORTStableDiffusionPipeline
ORTStableDiffusionPipeline.from_pretrained(sys.argv[1], export=True).save_pretrained(sys.argv[2])
"""


def main() -> None:
    """Make the environments and models, measure, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=Path("build/benchmarks"), help="where environments and models are kept"
    )
    parser.add_argument("--model", choices=("emoji", "sd15"), default="emoji")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--starts", type=int, default=3)
    args = parser.parse_args()
    work = args.work.resolve()
    pythons = {name: environment(work / f"venv-{name}", packages) for name, packages in PEERS.items()}
    options = models(work, args.model, pythons["optimum-onnx"]) | {
        "steps": args.steps,
        "prompt": "red heart",
        "seed": 7,
    }
    figures = measure(pythons, options, work, args.rounds, args.starts)
    for name, python in pythons.items():
        figures[name]["size"] = sum(file.lstat().st_size for file in python.parents[1].rglob("*"))
    print("\n".join(table(figures)))


def environment(folder: Path, packages: list[str]) -> Path:
    """A virtual environment's python, the environment made unless it is there."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def models(work: Path, model: str, optimum: Path) -> dict[str, Any]:
    """The checkpoint, our bundle and optimum's ONNX folder, made unless they are there."""
    checkpoint = EMOJI if model == "emoji" else sd15(work / "sd15")
    bundle, onnx = work / f"{model}.mmrt", work / f"{model}-optimum"
    if not bundle.exists():
        subprocess.run([sys.executable, "-m", "mmrt.cli.main", "export", checkpoint, "-o", bundle], check=True)
    if not onnx.exists():
        subprocess.run([optimum, "-c", EXPORT_OPTIMUM, checkpoint, onnx], check=True)
    side, guidance = (64, 4.0) if model == "emoji" else (512, 7.5)
    return {
        "checkpoint": str(checkpoint), "bundle": str(bundle), "onnx": str(onnx), "side": side, "guidance": guidance
    }  # fmt: skip


def measure(
    pythons: dict[str, Path], options: dict[str, Any], work: Path, rounds: int, starts: int
) -> dict[str, dict[str, Any]]:
    """Cold starts one after the other, then one picture of each in turn, `rounds` times."""
    cold: dict[str, list[float]] = {name: [] for name in pythons}
    for _ in range(starts):
        for name in pythons:
            begin = time.perf_counter()
            with Peer(name, pythons[name], options, work) as peer:
                peer.generate()
                cold[name].append(time.perf_counter() - begin)
    peers = {name: Peer(name, python, options, work) for name, python in pythons.items()}
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in peers}
    for number in range(rounds + 1):
        for name, peer in peers.items():
            answer = peer.generate()
            if number:  # the first is warm-up
                answers[name].append(answer)
    reference = np.asarray(Image.open(peers["diffusers"].picture), np.float64)
    return {
        name: {
            "cold": statistics.median(cold[name]),
            "seconds": statistics.median(answer["seconds"] for answer in answers[name]),
            "spread": max(a["seconds"] for a in answers[name]) - min(a["seconds"] for a in answers[name]),
            "peak": answers[name][-1]["peak"],
            "psnr": psnr(np.asarray(Image.open(peer.picture), np.float64), reference),
        }
        for name, peer in peers.items()
        if peer.close() is None
    }


class Peer:
    """A process with one peer's model loaded."""

    def __init__(self, name: str, python: Path, options: dict[str, Any], work: Path) -> None:
        self.picture = work / f"peer-{name}.png"
        load = MMRT if name == "mmrt" else LOAD[name] + GENERATE
        arguments = json.dumps(options | {"picture": str(self.picture)})
        self._process = subprocess.Popen(
            [python, "-c", WORKER.format(load=load), arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def generate(self) -> dict[str, float]:
        """One picture; seconds and the process's peak of memory so far."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.picture.stem}: the process ended with code {self._process.wait()}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def psnr(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    """dB; infinite where equal."""
    error = float(np.mean((found - wanted) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def table(figures: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown; ratios are to diffusers."""
    base = figures["diffusers"]
    lines = [
        "| peer | s a picture | ratio | first picture after | peak memory | environment | PSNR to diffusers |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, each in figures.items():
        lines.append(
            f"| {name} | {each['seconds']:.3f} ± {each['spread'] / 2:.3f} | {base['seconds'] / each['seconds']:.2f}x "
            f"| {each['cold']:.2f} s | {each['peak'] / 1e6:.0f} MB | {each['size'] / 1e6:.0f} MB "
            f"| {each['psnr']:.1f} dB |"
        )
    return lines


if __name__ == "__main__":
    main()
