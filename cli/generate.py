"""`mmrt generate`: a request to a bundle, its results as files."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from mmrt.cli.options import BundleCommand, build_option, load_options, positional
from mmrt.cli.subtitles import SUBTITLES
from mmrt.runtime import manifest as m
from mmrt.runtime import media
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.errors import RequestError
from mmrt.runtime.events import Done, Event, Result, Step, Token
from mmrt.runtime.files import whole
from mmrt.runtime.pipeline import load
from mmrt.runtime.similarity import ranked

_CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], "\ufffd") | {ord("\n"): "\n", ord("\t"): "\t"}


@click.command(cls=BundleCommand)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Where to [pictures: out.png; sounds: out.wav; texts: the terminal]. Names in .srt or .vtt make subtitles.",
)
@click.option("--grid", is_flag=True, help="Several pictures as one sheet.")
@click.option("--rank", type=click.Path(path_type=Path), help="A bundle, such as CLIP's: best fitting pictures first.")
@click.option("--keep", type=click.IntRange(1), help="With --rank: only so many pictures of each text.")
@click.option("--preview", is_flag=True, help="Rewrite the output with what is seen so far, while it works.")
@load_options
@build_option
@click.option("--json", "as_json", is_flag=True, help="The result with its timings and what made it, as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no report.")
def generate(
    bundle: Path,
    texts: tuple[str, ...],
    output: Path | None,
    grid: bool,
    rank: Path | None,
    keep: int | None,
    preview: bool,
    loading: dict[str, Any],
    build: bool,
    as_json: bool,
    quiet: bool,
    inputs: dict[str, Any],
) -> None:
    """Make what the TEXT says with a BUNDLE. Several TEXTs are answered in one batch.

    Texts that a bundle makes stream to the terminal as they come, several one after the other at the end.
    `mmrt generate BUNDLE --help` also lists the inputs that the bundle takes.
    """
    manifest = Bundle(bundle).manifest
    pictures, sounds = "image" in manifest.outputs, "audio" in manifest.outputs
    if all(isinstance(each, m.VectorOutput) for each in manifest.outputs.values()):
        raise RequestError(f"{bundle} makes vectors: mmrt embed {bundle}")
    if pictures or sounds:
        made, suffix = ("pictures", ".png") if pictures else ("sounds", ".wav")
        output = output or Path("out").with_suffix(suffix)
        if output.suffix.lower() != suffix:
            raise RequestError(
                f"{output}: {made} are written as {suffix[1:].upper()}; give a name that ends in {suffix}"
            )
    if not pictures and (grid or preview or rank):
        option = "grid" if grid else "preview" if preview else "rank"
        raise RequestError(f"--{option} is for pictures, {bundle} makes {'sounds' if sounds else 'texts'}")
    if keep is not None and rank is None:
        raise RequestError("--keep is for pictures in the order of --rank")
    if output is not None:
        _check_output(output)
    start = time.perf_counter()
    pipeline = load(bundle, build=build, **loading)
    loaded = time.perf_counter() - start
    ranker = load(rank, build=build, **loading) if rank else None
    name = positional(pipeline.manifest)
    if texts and name is None:
        raise RequestError(f"{pipeline.manifest.name} takes no text, {texts[0]!r} was given")
    named = {name: list(texts)} if texts and name else {}
    subtitled = SUBTITLES.get(output.suffix.lower()) if output else None
    if subtitled:
        inputs |= _timed(pipeline.manifest, inputs, output)
    events = pipeline.stream(**inputs, **named)
    if pictures or sounds:
        assert output is not None
        result = _follow(events, output if preview else None, grid, quiet or as_json)
        if ranker is not None:
            result = ranked(result, ranker, name, keep)
        paths = _save(result, output, grid) if pictures else _save_sounds(result, output)
        if as_json:
            _print_json(result, {"images" if pictures else "audios": list(map(str, paths))})
        for path in () if quiet or as_json else paths:
            _report(path, result, loaded)
    else:
        result = _stream(events, shown=not as_json and output is None)
        if output is not None:
            _write_text(output, subtitled(result.segments[0]) if subtitled else "".join(f"{t}\n" for t in result.texts))
        if as_json:
            segments = {"segments": [list(map(asdict, each)) for each in result.segments]} if result.segments else {}
            _print_json(result, {"texts": result.texts, "stopped": result.stopped, **segments})


def _timed(manifest: m.Manifest, inputs: Mapping[str, Any], output: Path | None) -> dict[str, Any]:
    """The choice that makes timestamps. Raises `RequestError` where there cannot be subtitles of one recording."""
    recordings = {name: spec for name, spec in manifest.inputs.items() if isinstance(spec, m.Audio)}
    if not recordings:
        raise RequestError(f"{output}: subtitles are of recordings, {manifest.name} takes none")
    name, spec = next(iter(recordings.items()))
    if len(inputs.get(name, ())) > 1:
        raise RequestError(f"{output}: {len(inputs[name])} recordings are given, wanted one for a file of subtitles")
    if inputs.get(spec.timestamps) == "no":
        raise RequestError(f"{spec.timestamps} is 'no', wanted 'yes' for subtitles")
    return {spec.timestamps: "yes"}


def _stream(events: Iterator[Event], shown: bool) -> Result:
    """Print the first text as it comes, then all others, each on lines of its own."""
    for event in events:
        if isinstance(event, Token) and event.index == 0 and shown:
            click.echo(_safe(event.text), nl=False)
        if isinstance(event, Done):
            break
    assert isinstance(event, Done)
    if shown:
        click.echo()
        for text in event.result.texts[1:]:
            click.echo(_safe(text))
    return event.result


def _safe(text: str) -> str:
    """Without the control characters that a terminal would obey; files and JSON hold the text as it is."""
    return text.translate(_CONTROLS) if sys.stdout.isatty() else text


def _write_text(output: Path, text: str) -> None:
    with whole(output) as file:
        file.write_text(text, encoding="utf-8")


def _print_json(result: Result, answer: dict[str, Any]) -> None:
    whole = answer | {"timings": result.timings, "provenance": result.provenance}
    click.echo(json.dumps(whole, ensure_ascii=False, indent=1))


def _check_output(output: Path) -> None:
    if not os.path.isdir(output.parent):  # unlike Path's, never an error
        raise RequestError(f"{output.parent}: no such folder")
    if os.path.isdir(output):
        raise RequestError(f"{output}: a folder, wanted the name of a file")


def _follow(events: Iterator[Event], preview: Path | None, grid: bool, quiet: bool) -> Result:
    """Go through the events with a progress bar, rewriting the preview at each step; the result is in the last."""
    show = not quiet and sys.stderr.isatty()
    start, tokens = time.perf_counter(), 0
    for event in events:
        if isinstance(event, Done):
            break
        if preview is not None and isinstance(event, Step):
            pictures = event.preview()
            for path, picture in _files(pictures, preview, grid):
                media.save_png(picture, path)
        if show and isinstance(event, Step):
            click.echo(f"\r{_bar(event, time.perf_counter() - start)}", nl=False, err=True)
        if show and isinstance(event, Token) and event.index == 0:
            tokens += 1
            speed = tokens / (time.perf_counter() - start)
            click.echo(f"\r{tokens} tokens  {speed:.1f} tokens/s  ", nl=False, err=True)
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
    return list(zip(_numbered(output, len(pictures)), pictures, strict=True))


def _numbered(output: Path, count: int) -> list[Path]:
    digits = max(2, len(str(count - 1)))
    return [output.with_stem(f"{output.stem}-{index:0{digits}}") for index in range(count)] if count > 1 else [output]


def _save(result: Result, output: Path, grid: bool) -> list[Path]:
    provenance: list[dict[str, Any]] = result.provenance
    if grid and len(provenance) > 1:
        first = provenance[0]
        provenance = [first | {"request": [each["request"] for each in provenance]}]
    files = _files(result.images, output, grid)
    for (path, picture), origin in zip(files, provenance, strict=True):
        media.save_png(picture, path, origin)
    return [path for path, _ in files]


def _save_sounds(result: Result, output: Path) -> list[Path]:
    paths = _numbered(output, len(result.audios))
    for path, sound, origin in zip(paths, result.audios, result.provenance, strict=True):
        sound.save(path, origin)
    return paths


def _report(path: Path, result: Result, loaded: float) -> None:
    request = result.provenance[0]["request"]
    seed = f", seed {request['seed']}" if "seed" in request else ""
    click.echo(f"{path}  ({result.timings['total']:.2f} s, loading {loaded:.2f} s{seed})")
