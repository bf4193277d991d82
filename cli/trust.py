"""`mmrt trust`: let the engines that come with a bundle run."""

from __future__ import annotations

from pathlib import Path

import click

from mmrt.runtime import trust as decisions
from mmrt.runtime.bundle import Bundle


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--forget", is_flag=True, help="Let them run no longer.")
def trust(bundle: Path, forget: bool) -> None:
    """Let the engines that come with a BUNDLE run on this machine.

    Engine files are code: trust those alone whose author you trust. The decision is kept for exactly this bundle, by
    its hash; bundles exported here, and engines built here, need none.
    """
    opened = Bundle(bundle)
    if forget:
        decisions.forget(opened)
        click.echo(f"{opened.manifest.name}: its engines are not run, sha256 {opened.sha256}")
        return
    engines = decisions.engines(opened)
    if not engines:
        click.echo(f"{opened.manifest.name}: has no engines, there is nothing to trust")
        return
    decisions.trust(opened)
    click.echo(f"{opened.manifest.name}: its {len(engines)} engines may run, sha256 {opened.sha256}")
