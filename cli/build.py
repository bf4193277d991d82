"""`mmrt build`: engines for this machine."""

from __future__ import annotations

import time
from pathlib import Path

import click

from mmrt.cli.options import SHAPES
from mmrt.runtime import build as work
from mmrt.runtime import folders, profiles
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.engines.nvidia import Kind


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--target", type=click.Choice(["tensorrt", "tensorrt-rtx"]), required=True, help="The library.")
@click.option("--shapes", multiple=True, help=SHAPES)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def build(bundle: Path, target: Kind, shapes: tuple[str, ...], quiet: bool) -> None:
    """Build the engines of a BUNDLE's graphs on the machine that runs them, into the user's cache.

    TensorRT needs the GPU for it, TensorRT-RTX does not. Engines that are there already are not built again.
    """
    start = time.perf_counter()
    for building in work.build(Bundle(bundle), target, profiles.read(shapes)):
        if not quiet:
            done = "done" if building.share == 1 else f"{building.share:.0%}"
            click.echo(f"builds the engine {building.graph}: {done} ({time.perf_counter() - start:.0f} s)")
    if not quiet:
        click.echo(f"engines are in {folders.cache() / 'engines'}")
