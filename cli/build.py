"""`mmrt build`: engines for this machine."""

from __future__ import annotations

import time
from pathlib import Path

import click

from mmrt.cli.options import SHAPES
from mmrt.runtime import build as work
from mmrt.runtime import folders, profiles
from mmrt.runtime.background import DONE
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.engines.nvidia import Kind


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--target", type=click.Choice(["tensorrt", "tensorrt-rtx"]), required=True, help="The library.")
@click.option("--shapes", multiple=True, help=SHAPES)
@click.option("--precision", default="auto", show_default=True, help="auto, or one that the bundle has.")
@click.option("--device", default="auto", show_default=True, help="The GPU to build for: cuda, cuda:1 and so on.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def build(bundle: Path, target: Kind, shapes: tuple[str, ...], precision: str, device: str, quiet: bool) -> None:
    """Build the engines of a BUNDLE's graphs on the machine that runs them, into the user's cache.

    TensorRT needs the GPU for it, TensorRT-RTX does not. Engines that are there already are not built again. The first
    load of a bundle does it too, in the background.
    """
    start = time.perf_counter()
    for event in work.build(Bundle(bundle), target, profiles.read(shapes), precision, device):
        if quiet:
            continue
        if isinstance(event, work.Waiting):
            click.echo(f"the engine {event.graph} waits for another process that builds on this machine")
            continue
        done = "done" if event.share == 1 else f"{event.share:.0%}"
        click.echo(f"builds the engine {event.graph}: {done} ({time.perf_counter() - start:.0f} s)")
    if not quiet:
        click.echo(f"{DONE} {folders.cache() / 'engines'}")
