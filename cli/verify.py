"""`mmrt verify`: does this machine give what the source model gave?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from mmrt.cli.options import load_options
from mmrt.runtime.pipeline import load
from mmrt.runtime.receipt import Check, read_receipt, replay


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@load_options
@click.option("--json", "as_json", is_flag=True, help="The checks as JSON.")
def verify(bundle: Path, loading: dict[str, Any], as_json: bool) -> None:
    """Replay what the source model computed, graph by graph and end to end; exit 1 where it differs.

    Every file's hash is checked too. The column dB is the PSNR of pictures, the SNR of sounds.
    """
    pipeline = load(bundle, build=False, **loading)
    pipeline.bundle.files(pipeline.manifest.files)
    checks = []
    if not as_json:
        click.echo(f"source: {read_receipt(pipeline.bundle).source}")
        click.echo(_line("", "", "largest", "relative", "cosine", "dB", "margin"))
    for check in replay(pipeline):
        checks.append(check)
        if not as_json:
            click.echo(row(check))
    failed = [check for check in checks if not check.passed]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(checks), indent=1).decode())
    else:
        files = len(pipeline.manifest.files)
        click.echo(f"{len(checks) - len(failed)} of {len(checks)} checks passed; {files} files have their hashes")
    if failed or not checks:
        sys.exit(1)


def row(check: Check) -> str:
    """A check as a line of the table."""
    cells = (
        f"{check.max_error:.2g}",
        "" if check.relative_error is None else f"{check.relative_error:.1e}",
        "" if check.cosine is None else f"{check.cosine:.6f}",
        next((f"{ratio:.1f}" for ratio in (check.psnr, check.snr) if ratio is not None), ""),
        "" if check.margin is None else f"{check.margin:.3f}",
    )
    return _line("ok" if check.passed else "FAIL", f"{check.what} ({check.precision})", *cells) + (
        "" if check.passed else f"  wanted {check.wanted}"
    )


def _line(state: str, what: str, *cells: str) -> str:
    return f"{state:5}{what:44}" + "".join(f"{cell:>10}" for cell in cells)
