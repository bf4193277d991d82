"""The model card of a bundle: what a person reads first."""

from __future__ import annotations

from collections.abc import Sequence

from mmrt.runtime.manifest import (
    Audio,
    AudioOutput,
    File,
    Image,
    ImageOutput,
    Input,
    Island,
    Manifest,
    Size,
    VectorOutput,
)
from mmrt.runtime.receipt import Check


def model_card(
    manifest: Manifest, sizes: dict[str, File], checks: Sequence[Check], reference: str, notes: Sequence[str]
) -> str:
    """README.md: the task, the inputs, the graphs, what was measured against the source model, and the licence."""
    source = manifest.source
    command = "embed" if all(isinstance(each, VectorOutput) for each in manifest.outputs.values()) else "generate"
    parts = [
        f"# {manifest.name}",
        f"{manifest.task}, made by mmrt from a checkpoint of the family {source.family}.",
        f"    mmrt {command} {manifest.name}.mmrt {_request(manifest)}\n    mmrt verify {manifest.name}.mmrt",
        *notes,
        "## Inputs\n\n" + "\n".join(f"- `{name}`: {_describe(value)}" for name, value in manifest.inputs.items()),
        "## Graphs\n\n" + _graphs(manifest, sizes) + _islands(manifest),
        f"## Receipts\n\nMeasured at export against {reference}.\n\n" + _receipts(checks),
        f"## Licence\n\n{source.licence or 'The checkpoint names none.'}",
        "## Made with\n\n" + ", ".join(f"{name} {version}" for name, version in source.versions.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _request(manifest: Manifest) -> str:
    """A command line's rest that the bundle answers."""
    words = ['"a red heart"'] if manifest.text_inputs() else []
    words += [
        f"--{name.replace('_', '-')} {'picture.png' if isinstance(value, Image) else 'recording.wav'}"
        for name, value in manifest.inputs.items()
        if isinstance(value, Image | Audio) and value.required
    ]
    files = {ImageOutput: ["-o", "heart.png"], AudioOutput: ["-o", "heart.wav"]}
    return " ".join([*words, *(word for each in manifest.outputs.values() for word in files.get(type(each), []))])


def _describe(value: Input) -> str:
    kind = type(value).__name__.lower()
    if isinstance(value, Size):
        width, height = value.default
        return f"size, default {width}x{height}, sides multiples of {value.multiple} up to {value.max}"
    default = getattr(value, "default", None)
    return kind if default is None else f"{kind}, default {default!r}"


def _graphs(manifest: Manifest, sizes: dict[str, File]) -> str:
    rows = ["| graph | precision | engine | MB |", "|---|---|---|---|"]
    for name, graph in manifest.graphs.items():
        for variant in graph.variants:
            size = sum(sizes[path].bytes for path in (variant.file, f"{variant.file}.data") if path in sizes) / 1e6
            rows.append(f"| {name} | {variant.precision} | {variant.engine} | {size:.1f} |")
    return "\n".join(rows)


def _islands(manifest: Manifest) -> str:
    """What of the graphs in 16 bits is in fp32, and why."""
    rows = [
        f"| {name} | {variant.precision} | {island.node} | {island.op} | {island.reason} | {_range(island)} |"
        for name, graph in manifest.graphs.items()
        for variant in graph.variants
        for island in variant.islands
    ]
    if not rows:
        return ""
    head = "Of what is in 16 bits, these operators stay in fp32, with the range of what they were seen to write:"
    return "\n\n" + "\n".join(
        [f"{head}\n", "| graph | precision | node | operator | reason | range |", "|---|---|---|---|---|---|", *rows]
    )


def _range(island: Island) -> str:
    return f"{island.range[0]:.4g} to {island.range[1]:.4g}" if island.range else ""


def _receipts(checks: Sequence[Check]) -> str:
    head = "| what | precision | largest error | relative error | PSNR or SNR (dB) | wanted |"
    rows = [head, "|---|---|---|---|---|---|"]
    for check in checks:
        relative = "" if check.relative_error is None else f"{check.relative_error:.1e}"
        ratio = next((f"{ratio:.1f}" for ratio in (check.psnr, check.snr) if ratio is not None), "")
        rows.append(
            f"| {check.what} | {check.precision} | {check.max_error:.1e} | {relative} | {ratio} | {check.wanted} |"
        )
    return "\n".join(rows)
