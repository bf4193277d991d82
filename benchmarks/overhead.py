"""How much of a request's time is spent outside the engines?

    python benchmarks/overhead.py [--work FOLDER] [--big]

For the emoji example at 20 steps and, with --big, SD 1.5's size at 512 x 512 and 4 steps: each graph's share, and
what is in none.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from checkpoints import EMOJI, sd15

import mmrt
from mmrt.cli.bench import measure
from mmrt.export.exporter import export


def main() -> None:
    """Export what is missing, measure, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="where bundles are kept")
    parser.add_argument("--big", action="store_true", help="SD 1.5's size too: some 10 GB of disk and 20 minutes")
    args = parser.parse_args()
    rows = [("emoji 64x64", bundle(EMOJI, args.work), {"steps": 20}, 15)]
    if args.big:
        rows.append(("SD 1.5 512x512", bundle(sd15(args.work / "sd15"), args.work), {"steps": 4}, 1))
    print("| model | steps | pictures | s a picture | denoiser | decoder | text encoder | outside the engines |")
    print("|---|---|---|---|---|---|---|---|")
    for name, path, inputs, repeat in rows:
        pipeline = mmrt.load(path)
        for pictures in (1, 4) if repeat > 1 else (1,):
            request = {"prompt": "red heart", "seed": 0, "num_images": pictures, **inputs}
            figures = measure(pipeline, request, repeat)
            total, graphs = figures["total"], figures["graphs"]
            shares = " | ".join(f"{graphs[graph] / total:.1%}" for graph in ("denoiser", "decoder", "text_encoder"))
            print(
                f"| {name} | {inputs['steps']} | {pictures} | {total / pictures:.4f} | {shares} "
                f"| {figures['outside_share']:.2%} ({figures['outside'] * 1000:.1f} ms) |",
                flush=True,
            )


def bundle(checkpoint: Path, work: Path) -> Path:
    """The checkpoint's bundle, exported unless it is there."""
    name = "sd15" if checkpoint.name == "sd15" else "emoji"
    path = work / f"{name}.mmrt"
    work.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        for progress in export(checkpoint, path):
            print(progress, flush=True)
    return path


if __name__ == "__main__":
    main()
