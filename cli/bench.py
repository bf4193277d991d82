"""`mmrt bench`: where the time of a request goes on this machine."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from mmrt.cli.options import BundleCommand, load_options, positional
from mmrt.runtime.errors import EngineError, RequestError
from mmrt.runtime.manifest import Audio, Image
from mmrt.runtime.pipeline import Pipeline, load

# Started anew, so that imports, loading and the peak of memory are those of a first picture.
_COLD = """
import time; start = time.time()
import json, sys
born, options = float(sys.argv[1]), json.loads(sys.argv[2])
import mmrt; imported = time.time()
pipeline = mmrt.load(**options["load"]); loaded = time.time()
pipeline.generate(**options["inputs"]); done = time.time()
try:  # what Linux counts as ru_maxrss begins with the parent's
    peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
except OSError:
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"total": done - born, "python": start - born, "import": imported - start, "load": loaded - imported,
                  "generate": done - loaded, "peak_bytes": peak, "device_peak_bytes": pipeline.place.look()}))
"""


@click.command(cls=BundleCommand)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True, help="Requests to take medians of.")
@load_options
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON.")
def bench(
    bundle: Path,
    texts: tuple[str, ...],
    repeat: int,
    loading: dict[str, Any],
    as_json: bool,
    inputs: dict[str, Any],
) -> None:
    """Time a request: graph by graph, engines against everything else, cold start and peak memory.

    Medians after one warm-up. `mmrt bench BUNDLE --help` also lists the inputs that the bundle takes.
    """
    options: dict[str, Any] = {"path": str(bundle), "build": False, **loading}
    pipeline = load(**options)
    name = positional(pipeline.manifest)
    request = {"seed": 0} | inputs if "seed" in pipeline.manifest.inputs else inputs
    alone = name is not None and pipeline.manifest.inputs[name].optional and "image" in inputs  # type: ignore[union-attr]
    if name is not None and (texts or not alone):
        request = {name: list(texts) or ["a red heart"]} | request
    for name, spec in pipeline.manifest.inputs.items():
        if isinstance(spec, Image | Audio) and spec.required and name not in request:
            raise RequestError(f"{name} is missing: give a {'picture' if isinstance(spec, Image) else 'recording'}")
    figures = measure(pipeline, request, repeat) | {"cold": cold_start(options, request)}
    if as_json:
        click.echo(json.dumps(figures, indent=1))
    else:
        click.echo("\n".join(_table(figures)))


def measure(pipeline: Pipeline, request: dict[str, Any], repeat: int) -> dict[str, Any]:
    """Medians over `repeat` requests, in seconds: `total`, each graph, and `outside`, what is spent in no engine.

    `audio_seconds` is how long the sounds of one are, where it makes such.
    """
    pipeline.generate(**request)
    results = [pipeline.generate(**request) for _ in range(repeat)]
    timings = [result.timings for result in results]
    totals = [each["total"] for each in timings]
    graphs = {name: statistics.median(each["graphs"][name] for each in timings) for name in timings[0]["graphs"]}
    description = pipeline.describe()
    outside = statistics.median(each["total"] - sum(each["graphs"].values()) for each in timings)
    sounds = results[0].outputs.get("audio")
    sound = {"audio_seconds": sum(each.seconds for each in sounds)} if sounds else {}
    return {
        "bundle": pipeline.manifest.name,
        "engines": dict(description.engines),
        "refused": dict(description.refused),
        "repeat": repeat,
        "total": statistics.median(totals),
        "spread": max(totals) - min(totals),
        "graphs": graphs,
        "outside": outside,
        "outside_share": outside / statistics.median(totals),
        **sound,
    }


def cold_start(options: dict[str, Any], request: dict[str, Any]) -> dict[str, float]:
    """Seconds from a process's start to its first result, in parts, and its peak of memory in bytes."""
    import time

    arguments = json.dumps({"load": options, "inputs": request})
    child = subprocess.run(
        [sys.executable, "-c", _COLD, str(time.time()), arguments], capture_output=True, text=True, check=False
    )
    if child.returncode:
        reason = child.stderr.strip().splitlines()[-1:] or [f"it ended with {child.returncode}"]
        raise EngineError(f"a new process could not run the request: {reason[0]}")
    figures: dict[str, float] = json.loads(child.stdout)
    return figures


def _table(figures: dict[str, Any]) -> list[str]:
    total, cold = figures["total"], figures["cold"]
    lines = [f"{figures['bundle']}: median of {figures['repeat']} requests, spread {figures['spread'] * 1000:.1f} ms"]
    for name, seconds in [*figures["graphs"].items(), ("outside", figures["outside"]), ("total", total)]:
        engine = figures["engines"].get(name, "")
        lines.append(f"  {name:16}{seconds * 1000:10.1f} ms {seconds / total:7.1%}  {engine}")
    if seconds := figures.get("audio_seconds"):
        lines.append(f"sound             {seconds:9.2f} s  ({seconds / total:.1f} times as long as it takes)")
    parts = ", ".join(f"{name} {cold[name]:.2f}" for name in ("python", "import", "load", "generate"))
    lines.append(f"cold start        {cold['total']:9.2f} s  ({parts})")
    lines.append(f"peak memory       {cold['peak_bytes'] / 1e6:9.0f} MB")
    if cold["device_peak_bytes"]:
        lines.append(f"  of the device   {cold['device_peak_bytes'] / 1e6:9.0f} MB")
    return lines + [f"refused {what}: {why}" for what, why in figures["refused"].items()]
