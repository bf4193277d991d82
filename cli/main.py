"""The `mmrt` command: a group, one file per command."""

from __future__ import annotations

import sys
import warnings

import click

from mmrt.cli.bench import bench
from mmrt.cli.build import build
from mmrt.cli.embed import embed, score
from mmrt.cli.export import export
from mmrt.cli.generate import generate
from mmrt.cli.inspect import inspect
from mmrt.cli.trust import trust
from mmrt.cli.verify import verify
from mmrt.runtime.errors import MmrtError, one_line
from mmrt.version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mmrt")
def cli() -> None:
    """Export multimodal generators from torch once, and run them without it."""


for command in (export, generate, embed, score, verify, inspect, bench, build, trust):
    cli.add_command(command)


def main() -> None:
    """Run the command line: an `MmrtError` is one line and exit code 1, an interrupt 130, a bug keeps its traceback."""
    warnings.showwarning = lambda message, *_: click.echo(f"mmrt: {one_line(str(message))}", err=True)
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")  # which is an error of ours
    try:
        cli.main(prog_name="mmrt", standalone_mode=False)
    except MmrtError as error:
        click.echo(f"mmrt: {error}", err=True)
        sys.exit(1)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("mmrt: interrupted", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
