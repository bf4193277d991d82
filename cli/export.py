"""`mmrt export`: a checkpoint becomes a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from mmrt.cli.options import SHAPES
from mmrt.runtime import profiles
from mmrt.runtime.errors import ExportError


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The bundle, NAME.mmrt.")
@click.option(
    "--target",
    "targets",
    default="cpu",
    show_default=True,
    help="What it is for: some of cpu, cuda, tensorrt, tensorrt-rtx, with commas. TensorRT-RTX's engines are built at "
    "once, which needs no GPU.",
)
@click.option(
    "--precision",
    help="Of the graphs' variants: some of fp32, fp16, bf16, with commas. fp32 is there always, and fp16 too for GPUs "
    "unless asked otherwise.",
)
@click.option("--shapes", multiple=True, help=SHAPES)
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is there.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def export(
    checkpoint: Path,
    output: Path,
    precision: str | None,
    targets: str,
    shapes: tuple[str, ...],
    overwrite: bool,
    quiet: bool,
) -> None:
    """Turn a CHECKPOINT into a bundle, verified against the source model. Needs torch.

    A checkpoint is a local folder or, of one's own modules, FILE.py:FUNCTION; the file is run, and the function
    returns a recipe.
    """
    try:
        from mmrt.export import exporter
    except ModuleNotFoundError as error:
        raise ExportError(f"exporting needs the package {error.name!r}: pip install 'mmrt[export]'") from None
    asked = profiles.read(shapes)
    for progress in exporter.export(checkpoint, output, precision, overwrite, targets.split(","), asked):
        if not quiet:
            click.echo(progress)
