"""The documents in docs/: their blocks, and how their commands are run.

python tests/documents.py    # puts what `mmrt COMMAND --help` says into docs/cli.md
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
BY_HAND = (
    "python3 -m venv ",
    ". ",
    "pip install ",
    "lean/bin/pip install ",
    "npm pack ",
)  # environments and the network


class Block(NamedTuple):
    """What stands between fences."""

    language: str
    text: str


def blocks(document: Path) -> list[Block]:
    """The document's, in order."""
    text = document.read_text(encoding="utf-8")
    return [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


def commands(document: Path) -> list[str]:
    """The lines of its `sh` blocks."""
    return [line for block in blocks(document) if block.language == "sh" for line in block.text.splitlines() if line]


def run(document: Path, folder: Path) -> None:
    """All its commands and code, in `folder`; code that begins with `# NAME.py` is that file first."""
    code = [block.text for block in blocks(document) if block.language == "python"]
    for text in code:
        if named := re.match(r"# (\w+\.py)\n", text):
            (folder / named[1]).write_text(text, encoding="utf-8")
    with contextlib.chdir(folder) if hasattr(contextlib, "chdir") else _chdir(folder):
        for line in commands(document):
            run_command(line)
        if code:
            script = folder / f"{document.stem}.py"
            script.write_text("\n".join(code), encoding="utf-8")
            _python(script)


def run_command(line: str) -> str:
    """One line, in this process if it is mmrt's; what it printed."""
    if line.startswith(BY_HAND):
        return ""
    program, *arguments = shlex.split(line, comments=True)
    if program == "python":
        return _python(
            *(_short(argument, before) for before, argument in zip(["", *arguments], arguments, strict=False))
        )
    assert Path(program).name == "mmrt", f"{line}: how is this run?"
    return mmrt(*arguments)


def mmrt(*arguments: str) -> str:
    """What the command prints. Raises `AssertionError` where it fails."""
    from mmrt.cli.main import main

    before, sys.argv = sys.argv, ["mmrt", *arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.argv = before
    assert code == 0, f"mmrt {' '.join(arguments)}: {err.getvalue()}{out.getvalue()[-500:]}"
    return out.getvalue()


def _short(argument: str, before: str) -> str:
    return "2" if before == "--steps" else argument


def _python(*arguments: str | Path) -> str:
    ran = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"python {' '.join(map(str, arguments))}: {ran.stderr[-2000:]}"
    return ran.stdout


@contextlib.contextmanager
def _chdir(folder: Path) -> Iterator[None]:  # Python 3.10
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def helps() -> dict[str, str]:
    """What each command's --help prints, 100 columns wide."""
    from mmrt.cli.main import cli

    group = click.Context(cli, info_name="mmrt", terminal_width=100, **cli.context_settings)
    found = {}
    for name, command in cli.commands.items():
        context = click.Context(command, parent=group, info_name=name)
        found[name] = command.get_help(context) + "\n"
    return found


def with_helps(text: str) -> str:
    """The text of docs/cli.md with those in their blocks."""
    for name, shown in helps().items():
        text = re.sub(rf"^Usage: mmrt {name}\b.*?(?=^```$)", lambda _, s=shown: s, text, flags=re.MULTILINE | re.DOTALL)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    path = DOCS / "cli.md"
    path.write_text(with_helps(path.read_text(encoding="utf-8")), encoding="utf-8")
