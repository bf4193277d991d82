"""`mmrt embed`: vectors of texts and pictures. `mmrt score`: how well they fit."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from mmrt.cli.options import build_option, load_options
from mmrt.runtime import manifest as m
from mmrt.runtime.arrays import Float32
from mmrt.runtime.errors import RequestError, printable
from mmrt.runtime.files import whole
from mmrt.runtime.pipeline import load
from mmrt.runtime.similarity import score as scores_of


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option(
    "--image", "images", multiple=True, type=click.Path(path_type=Path), help="A picture, or a folder of them."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="NAME.npy or NAME.jsonl [JSON lines on the terminal]."
)
@click.option("--batch", type=click.IntRange(1, 4096), default=32, show_default=True, help="So many at a time.")
@load_options
@build_option
def embed(
    bundle: Path,
    texts: tuple[str, ...],
    images: tuple[Path, ...],
    output: Path | None,
    batch: int,
    loading: dict[str, Any],
    build: bool,
) -> None:
    """Vectors of each TEXT and of each picture, in this order, all of length 1.

    A .npy file holds float32 (vectors, width); JSON lines say what each is of. Folders are taken in the order of their
    files' names.
    """
    if output is not None and output.suffix.lower() not in (".npy", ".jsonl"):
        raise RequestError(f"{output}: vectors are written to .npy or .jsonl")
    files = list(pictures(images))
    if not texts and not files:
        raise RequestError("nothing is given: texts, or pictures with --image")
    pipeline = load(bundle, build=build, **loading)
    if not all(isinstance(each, m.VectorOutput) for each in pipeline.manifest.outputs.values()):
        raise RequestError(f"{bundle} makes no vectors: mmrt generate {bundle}")
    made, done, shown = list[Float32](), 0, sys.stderr.isatty()
    for kind, items in (("text", list(texts)), ("image", files)):
        for start in range(0, len(items), batch):
            some = items[start : start + batch]
            made.append(pipeline.generate(**{kind: some}).embeddings)
            done += len(some)
            if shown:
                click.echo(f"\r{done}/{len(texts) + len(files)} ", nl=False, err=True)
    if shown:
        click.echo(err=True)
    vectors = np.concatenate(made)
    if output is not None and output.suffix.lower() == ".npy":
        with whole(output) as file, file.open("wb") as stream:
            np.save(stream, vectors)
        return
    names = [{"text": text} for text in texts] + [{"image": str(file)} for file in files]
    lines = [
        json.dumps(name | {"vector": [float(f"{value:.9g}") for value in vector]}, ensure_ascii=False)
        for name, vector in zip(names, vectors, strict=True)
    ]
    if output is None:
        click.echo("\n".join(lines))
        return
    with whole(output) as file:
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def pictures(paths: Sequence[Path]) -> Iterator[Path]:
    """The files, and of folders those with a picture's suffix, by name. Raises `RequestError`."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        known = Image.registered_extensions()
        if not (found := sorted(file for file in path.iterdir() if file.suffix.lower() in known)):
            raise RequestError(f"{path}: a folder without pictures")
        yield from found


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("texts", metavar="TEXT...", nargs=-1, required=True)
@click.option(
    "--image", "images", multiple=True, required=True, type=click.Path(path_type=Path), help="A picture, or a folder."
)
@load_options
@build_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def score(
    bundle: Path,
    texts: tuple[str, ...],
    images: tuple[Path, ...],
    loading: dict[str, Any],
    build: bool,
    as_json: bool,
) -> None:
    """How well each picture fits each TEXT: their vectors' cosine, and the probability of the text among the texts.

    With a model that was trained with sigmoids, such as SigLIP, a text's probability is its own.
    """
    files = list(pictures(images))
    found = scores_of(load(bundle, build=build, **loading), texts, files)
    rows = []
    for file, similarities, probabilities in zip(files, *found, strict=True):
        order = np.argsort(-similarities, kind="stable")
        fits = [
            {"text": texts[place], "similarity": float(similarities[place]), "probability": float(probabilities[place])}
            for place in order
        ]
        rows.append({"image": str(file), "texts": fits})
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    for row in rows:
        click.echo(printable(str(row["image"])))
        for each in row["texts"]:
            click.echo(f"  {each['similarity']:6.3f}  {each['probability']:6.1%}  {printable(each['text'])}")  # type: ignore[index]
