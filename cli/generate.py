"""`mmrt generate`: a request to a bundle, its results as files."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from mmrt.cli.options import BundleCommand, positional
from mmrt.runtime import media
from mmrt.runtime.errors import RequestError
from mmrt.runtime.events import Done, Event, Result, Step
from mmrt.runtime.pipeline import load


@click.command(cls=BundleCommand)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("out.png"), help="Where to [out.png].")
@click.option("--grid", is_flag=True, help="Several pictures as one sheet.")
@click.option("--preview", is_flag=True, help="Rewrite the output with what is seen so far, while it works.")
@click.option("--device", default="auto", help="auto or cpu.")
@click.option("--engine", default="auto", help="auto or onnx.")
@click.option("--precision", default="auto", help="auto, or one that the bundle has.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no report.")
def generate(
    bundle: Path,
    texts: tuple[str, ...],
    output: Path,
    grid: bool,
    preview: bool,
    device: str,
    engine: str,
    precision: str,
    quiet: bool,
    inputs: dict[str, Any],
) -> None:
    """Make what the TEXT says with a BUNDLE. Several TEXTs are answered in one batch.

    `mmrt generate BUNDLE --help` also lists the inputs that the bundle takes.
    """
    _check_output(output)
    start = time.perf_counter()
    pipeline = load(bundle, device, engine, precision)
    loaded = time.perf_counter() - start
    name = positional(pipeline.manifest)
    if texts and name is None:
        raise RequestError(f"{pipeline.manifest.name} takes no text, {texts[0]!r} was given")
    named = {name: list(texts)} if texts and name else {}
    result = _follow(pipeline.stream(**inputs, **named), output if preview else None, grid, quiet)
    for path in _save(result, output, grid):
        if not quiet:
            _report(path, result, loaded)


def _check_output(output: Path) -> None:
    if output.suffix.lower() != ".png":
        raise RequestError(f"{output}: pictures are written as PNG; give a name that ends in .png")
    if not os.path.isdir(output.parent):  # unlike Path's, never an error
        raise RequestError(f"{output.parent}: no such folder")
    if os.path.isdir(output):
        raise RequestError(f"{output}: a folder, wanted the name of a file")


def _follow(events: Iterator[Event], preview: Path | None, grid: bool, quiet: bool) -> Result:
    """Go through the events with a progress bar, rewriting the preview at each step; the result is in the last."""
    show = not quiet and sys.stderr.isatty()
    start = time.perf_counter()
    for event in events:
        if isinstance(event, Done):
            break
        if preview is not None:
            pictures = event.preview()
            for path, picture in _files(pictures, preview, grid):
                media.save_png(picture, path)
        if show:
            click.echo(f"\r{_bar(event, time.perf_counter() - start)}", nl=False, err=True)
    if show:
        click.echo(f"\r{' ' * 60}\r", nl=False, err=True)
    assert isinstance(event, Done)
    return event.result


def _bar(step: Step, seconds: float, width: int = 24) -> str:
    done = width * step.number // step.total
    return f"{'━' * done}{' ' * (width - done)} {step.number}/{step.total}  {step.number / seconds:.1f} steps/s  "


def _files(pictures: list[media.Picture], output: Path, grid: bool) -> list[tuple[Path, media.Picture]]:
    """One picture takes the output's name; several are numbered, or share one sheet."""
    if len(pictures) == 1:
        return [(output, pictures[0])]
    if grid:
        return [(output, media.sheet(pictures))]
    digits = max(2, len(str(len(pictures) - 1)))
    return [(output.with_stem(f"{output.stem}-{index:0{digits}}"), picture) for index, picture in enumerate(pictures)]


def _save(result: Result, output: Path, grid: bool) -> list[Path]:
    provenance: list[dict[str, Any]] = result.provenance
    if grid and len(provenance) > 1:
        first = provenance[0]
        provenance = [first | {"request": [each["request"] for each in provenance]}]
    files = _files(result.images, output, grid)
    for (path, picture), origin in zip(files, provenance, strict=True):
        media.save_png(picture, path, origin)
    return [path for path, _ in files]


def _report(path: Path, result: Result, loaded: float) -> None:
    request = result.provenance[0]["request"]
    seed = f", seed {request['seed']}" if "seed" in request else ""
    click.echo(f"{path}  ({result.timings['total']:.2f} s, loading {loaded:.2f} s{seed})")
