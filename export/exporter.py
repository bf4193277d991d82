"""`export`: a checkpoint becomes a bundle, step by step, and only one that gives what its source gives."""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
import os
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeVar

import msgspec
import numpy as np

from mmrt.export import families, own, precision, tensorrt, trial, writer
from mmrt.export.calibration import Recorder
from mmrt.export.card import model_card
from mmrt.export.casts import FORMATS, Format
from mmrt.export.checkpoint import Checkpoint
from mmrt.export.graph import write_onnx
from mmrt.export.quiet import quiet
from mmrt.export.recipe import Golden, Graph, Recipe
from mmrt.runtime import manifest as m
from mmrt.runtime import manifest_file, pipeline, profiles, selection
from mmrt.runtime.arrays import AnyArray
from mmrt.runtime.bundle import MANIFEST, Bundle, hash_file
from mmrt.runtime.engines import Engine
from mmrt.runtime.engines.builder import Building
from mmrt.runtime.engines.nvidia import Library
from mmrt.runtime.errors import BundleError, ExportError, MmrtError
from mmrt.runtime.receipt import GOLDEN, RECEIPT, Check, Receipt, replay
from mmrt.runtime.trust import trust
from mmrt.version import __version__

T = TypeVar("T")
RTX = "tensorrt-rtx"
TARGETS = ("cpu", "cuda", "tensorrt", RTX)
_PACKAGES = ("torch", "onnx", "onnxscript", "diffusers", "transformers")
_DOES = {
    "load": "reads and checks",
    "reference": "runs the source model",
    "graph": "makes the graph",
    "precision": "puts into",
    "engine": "builds the engine",
    "verify": "replays the receipts",
}
PRECISIONS = ("fp32", *FORMATS)


@dataclass(frozen=True)
class Progress:
    """A step begins, is done to a `share`, or has ended after `seconds`: `stage` is the kind of work, `name` what it is
    about."""

    stage: Literal["load", "reference", "graph", "precision", "engine", "verify"]
    name: str
    seconds: float | None = None
    share: float | None = None

    def __str__(self) -> str:
        ended = "..." if self.share is None else f": {self.share:.0%}"
        ended = ended if self.seconds is None else f": {self.seconds:.1f} s"
        return f"{_DOES[self.stage]}{f' {self.name}' if self.name else ''}{ended}"


def export(
    checkpoint: str | Path | Recipe,
    output: str | Path,
    precision: str | None = None,
    overwrite: bool = False,
    targets: Collection[str] = ("cpu",),
    shapes: profiles.Asked = profiles.NOTHING,
) -> Iterator[Progress]:
    """Write the bundle `output` from `checkpoint`, yielding before and after each step.

    That is a folder, a `dalle.pt`, a recipe of one's own, or FILE.py:FUNCTION, which is run and returns one. Nothing is
    at `output` before the last step has succeeded, and leaving the loop undoes all. Raises `ExportError`.

    `targets` are what the bundle is for: with tensorrt-rtx it has engines, for the sizes that `shapes` asks for;
    without any other target it has no other graphs. `precision` names those of the graphs' variants, such as
    "fp32,fp16,bf16"; fp32 is there always, and fp16 where nothing is said and a target is a GPU.
    """
    if not targets or {*targets} - {*TARGETS}:
        given = ", ".join(map(repr, targets)) or "nothing"
        raise ExportError(f"targets are {', '.join(TARGETS)}, in any number but none; {given} is given")
    usual = "fp32" if {*targets} == {"cpu"} else "fp32,fp16"
    precisions = [each.strip() for each in (precision or usual).split(",")]
    if strange := [each for each in precisions if each not in PRECISIONS]:
        raise ExportError(f"precision is {strange[0]!r}, supported are {', '.join(PRECISIONS)}")
    target = Path(output)
    writer.check_free(Path(os.path.abspath(target)), overwrite)
    halves = [format for name, format in FORMATS.items() if name in precisions]
    return _export(_origin(checkpoint), target, overwrite, halves, bool(precision), frozenset(targets), shapes)


class _Origin(NamedTuple):
    """Where a recipe comes from; `hashes` are those of the files in its components."""

    name: str
    recipe: Callable[[], Recipe]
    hashes: Callable[..., dict[str, str]]
    licence: str | None


def _origin(checkpoint: str | Path | Recipe) -> _Origin:
    if isinstance(checkpoint, Recipe):
        recipe = checkpoint
        return _Origin("", lambda: _own(recipe), lambda *_: {}, None)
    if (function := own.function(str(checkpoint))) is not None:
        file = function.file
        return _Origin(file.name, lambda: _own(function.recipe()), lambda *_: {file.name: hash_file(file)}, None)
    source = Checkpoint(checkpoint)
    family = families.find(source)
    return _Origin(source.name, lambda: family.recipe(source), source.hashes, source.licence)


def _own(recipe: Recipe) -> Recipe:
    """The recipe, after its trial; where it names no other source, its modules are that."""
    golden = trial.run(recipe)
    return recipe if recipe.reference is not None else dataclasses.replace(recipe, reference=lambda: golden)


def _export(
    source: _Origin,
    target: Path,
    overwrite: bool,
    halves: Sequence[Format],
    asked: bool,
    targets: frozenset[str],
    shapes: profiles.Asked,
) -> Iterator[Progress]:
    library = tensorrt.library() if RTX in targets else None  # before anything else is done for nothing
    with writer.staging(target, overwrite) as folder:
        draft, notes = yield from _write(source, target, folder)
        gc.collect()  # torch's copy of the weights
        checks, calls = yield from _timed("verify", "", lambda: _verify(folder))
        for format in halves:
            whole, draft = draft, (yield from _halve(folder, draft, format, calls))
            if draft != whole:
                work = partial(_verify_half, folder, draft, format)
                checks += yield from _timed("verify", f"in {format.precision}", work)
            elif asked:
                raise ExportError(f"no graph has anything to do in {format.precision}: export it without")
        if library is not None:
            draft = yield from _build(folder, draft, library, shapes)
        if targets == {RTX}:
            draft = tensorrt.without_onnx(folder, draft)
        _finish(folder, draft, checks, notes)
    if library is not None:
        trust(Bundle(target))  # what was built here


def _build(
    folder: Path, draft: m.Manifest, library: Library, shapes: profiles.Asked
) -> Generator[Progress, None, m.Manifest]:
    """The manifest with an engine for each graph."""
    bundle, sizes, graphs = Bundle(folder), tensorrt.sizes(draft, shapes), {}
    for name, graph in draft.graphs.items():
        yield Progress("engine", name)
        start = time.perf_counter()
        variant = yield from _shares(tensorrt.build(library, bundle, name, sizes[name]))
        yield Progress("engine", name, time.perf_counter() - start)
        graphs[name] = msgspec.structs.replace(graph, variants=(variant, *graph.variants))
    with_engines = msgspec.structs.replace(draft, graphs=graphs, files=writer.list_files(folder))
    _write_manifest(folder, with_engines)
    return with_engines


def _shares(work: Generator[Building, None, T]) -> Generator[Progress, None, T]:
    while True:
        try:
            building = next(work)
        except StopIteration as end:
            result: T = end.value
            return result
        yield Progress("engine", building.graph, share=building.share)


Calls = Mapping[str, Sequence[Mapping[str, AnyArray]]]


def _verify(folder: Path) -> tuple[tuple[Check, ...], Calls]:
    """The receipts in fp32, and what they send through each graph. The engines are let go."""
    loaded = pipeline.load(folder, device="cpu", precision="fp32")
    loaded.engines = recorder = Recorder(loaded.engines)
    return _replay(loaded), {name: calls.kept for name, calls in recorder.calls.items()}


def _halve(folder: Path, draft: m.Manifest, format: Format, calls: Calls) -> Generator[Progress, None, m.Manifest]:
    """Add variants in a format of 16 bits to the bundle, and to its manifest."""
    carried, graphs = draft.carried(), dict(draft.graphs)
    stages = [stage for stage in draft.program if isinstance(stage, m.Autoregress)]
    caches = {old: new for stage in stages for old, new in stage.caches.items()}
    exact = precision.exact(draft, folder)
    for name, graph in draft.graphs.items():
        work = partial(precision.halve, name, graph, folder, format, calls[name], carried, caches, exact)
        if (variant := (yield from _timed("precision", f"{format.precision} {name}", work))) is not None:
            graphs[name] = msgspec.structs.replace(graph, variants=(*graph.variants, variant))
        gc.collect()
    if graphs == draft.graphs:
        return draft
    draft = msgspec.structs.replace(draft, graphs=graphs, files=writer.list_files(folder))
    _write_manifest(folder, draft)
    return draft


def _verify_half(folder: Path, draft: m.Manifest, format: Format) -> tuple[Check, ...]:
    """The receipts in 16 bits: with every step rounded, as a GPU does, and, where this machine's engine has operators
    in them, as it runs them."""
    here = format.precision in selection.PRECISIONS["cpu"]
    checks = _replay(pipeline.load(folder, device="cpu", precision=format.precision)) if here else ()
    loaded = pipeline.load(folder, device="cpu", precision="fp32", memory="low")  # which loads no graph by itself
    rounded: dict[str, Engine] = {
        name: precision.rounded_engine(name, graph, folder / variant.file)
        for name, graph in draft.graphs.items()
        for variant in graph.variants
        if variant.precision == format.precision
    }
    loaded.engines = rounded | {name: loaded.engines[name] for name in draft.graphs.keys() - rounded.keys()}
    strict = _replay(loaded, dict.fromkeys(rounded, format.precision))
    return checks + tuple(msgspec.structs.replace(check, what=f"{check.what}, every step rounded") for check in strict)


def _write(
    source: _Origin, target: Path, folder: Path
) -> Generator[Progress, None, tuple[m.Manifest, tuple[str, ...]]]:
    """Everything but the receipts' figures; the torch modules are let go at the end."""
    recipe = yield from _timed("load", source.name, source.recipe)
    golden = yield from _timed("reference", "", lambda: _run_source(recipe))
    _write_golden(folder, golden)
    for path, content in recipe.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    (folder / "graphs").mkdir()
    graphs = {}
    for name, graph in recipe.graphs.items():
        graphs[name] = yield from _timed("graph", name, lambda n=name, g=graph: _write_graph(folder, n, g))  # type: ignore[misc]
        gc.collect()
    draft = _manifest(source, recipe, graphs, target.stem, folder)
    _write_manifest(folder, draft)
    return draft, recipe.notes


def _timed(stage: str, name: str, work: Callable[[], T]) -> Generator[Progress, None, T]:
    yield Progress(stage, name)  # type: ignore[arg-type]
    start = time.perf_counter()
    result = work()
    yield Progress(stage, name, time.perf_counter() - start)  # type: ignore[arg-type]
    return result


def _write_graph(folder: Path, name: str, graph: Graph) -> m.Graph:
    file = f"graphs/{name}.fp32.onnx"
    inputs, outputs = write_onnx(name, graph, folder / file)
    return m.Graph(inputs=inputs, outputs=outputs, variants=(m.Variant(engine="onnx", precision="fp32", file=file),))


def _run_source(recipe: Recipe) -> Golden:
    try:
        assert recipe.reference is not None
        return recipe.reference()
    except (MemoryError, MmrtError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise ExportError(f"the source model itself fails: {type(error).__name__}: {text}") from error


def _write_golden(folder: Path, golden: Golden) -> None:
    for name, array in golden.arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ExportError(f"the source model itself gives NaN or infinite numbers: {name}")
    np.savez_compressed(folder / GOLDEN, **dict(golden.arrays))  # type: ignore[arg-type]
    _write_receipt(folder, Receipt(source=golden.source, cases=golden.cases))


def _write_receipt(folder: Path, receipt: Receipt) -> None:
    (folder / RECEIPT).write_bytes(msgspec.json.format(msgspec.json.encode(receipt), indent=1) + b"\n")


def _manifest(source: _Origin, recipe: Recipe, graphs: dict[str, m.Graph], name: str, folder: Path) -> m.Manifest:
    return m.Manifest(
        format=m.FORMAT,
        task=recipe.task,
        name=name,
        source=m.Source(
            family=recipe.family,
            checkpoint=source.hashes(*recipe.components),
            versions={"mmrt": __version__} | {package: importlib.metadata.version(package) for package in _PACKAGES},
            licence=source.licence,
        ),
        inputs=dict(recipe.inputs),
        outputs=dict(recipe.outputs),
        graphs=graphs,
        program=recipe.program,
        files=writer.list_files(folder),
        similarity=recipe.similarity,
    )


def _replay(loaded: pipeline.Pipeline, precisions: Mapping[str, str] = MappingProxyType({})) -> tuple[Check, ...]:
    """The receipts, as its engines give them. Raises `ExportError` with the first that fails."""
    with quiet():  # the golden prompts may be too long for a small tokenizer
        checks = tuple(replay(loaded, precisions))
    for check in checks:
        if not check.passed:
            figures = {
                "relative error": check.relative_error,
                "PSNR": check.psnr,
                "SNR": check.snr,
                "margin": check.margin,
                "largest error": check.max_error,
            }
            hint = "" if check.precision == "fp32" else f"; export it without {check.precision}"
            found = ", ".join(f"{name} {value:.3g}" for name, value in figures.items() if value is not None)
            raise ExportError(
                f"the bundle does not give what the source model gives: {check.what} ({check.precision}): {found}, "
                f"wanted {check.wanted}{hint}"
            )
    return checks


def _finish(folder: Path, draft: m.Manifest, checks: tuple[Check, ...], notes: tuple[str, ...]) -> None:
    receipt = msgspec.json.decode((folder / RECEIPT).read_bytes(), type=Receipt)
    _write_receipt(folder, msgspec.structs.replace(receipt, checks=checks))
    card = model_card(draft, draft.files, checks, receipt.source, notes)
    (folder / "README.md").write_text(card, encoding="utf-8")
    new = {name: writer.file_entry(folder / name) for name in (RECEIPT, "README.md")}
    _write_manifest(folder, msgspec.structs.replace(draft, files=draft.files | new))


def _write_manifest(folder: Path, manifest: m.Manifest) -> None:
    try:
        (folder / MANIFEST).write_bytes(manifest_file.encode(manifest))
    except BundleError as error:
        raise ExportError(f"the recipe makes no legal bundle: {error}") from None
