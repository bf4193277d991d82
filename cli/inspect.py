"""`mmrt inspect`: what a bundle is, or what made a picture or a sound."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from mmrt.cli.options import describe
from mmrt.runtime import manifest as m
from mmrt.runtime import manifest_file, media, sound
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.errors import printable
from mmrt.runtime.pipeline import load


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--mermaid", is_flag=True, help="The program as a mermaid flowchart.")
@click.option(
    "--device", help="Load the bundle on auto, cpu, cuda or cuda:N, and say what runs how and why not better."
)
@click.option("--json", "as_json", is_flag=True, help="The manifest, or a file's provenance, as JSON.")
def inspect(path: Path, mermaid: bool, device: str | None, as_json: bool) -> None:
    """Show what a bundle is (a folder), or what made a picture or a sound (a file)."""
    if path.is_file():
        provenance = sound.read_provenance(path) if sound.is_wav(path) else media.read_provenance(path)
        click.echo(json.dumps(provenance, indent=1, ensure_ascii=False) if as_json else "\n".join(_origin(provenance)))
        return
    bundle = Bundle(path)
    if device is not None:
        click.echo(load(path, device, build=False).describe())
    elif as_json:
        click.echo(manifest_file.encode(bundle.manifest).decode(), nl=False)
    elif mermaid:
        click.echo("\n".join(flowchart(bundle.manifest)))
    else:
        click.echo("\n".join(_bundle(bundle)))


_TEXTS = ("prompt", "text")  # inputs that are given without an option's name


def _origin(provenance: dict[str, Any]) -> list[str]:
    """The lines, of whatever the file's author wrote."""
    bundle, engines = _dict(provenance.get("bundle")), _dict(provenance.get("engines"))
    lines = [f"bundle   {bundle.get('name')}  sha256 {bundle.get('sha256')}", f"mmrt     {provenance.get('mmrt')}"]
    lines += [f"engine   {graph}: {engine}" for graph, engine in engines.items()]
    requests = provenance.get("request")
    for request in map(_dict, requests if isinstance(requests, list) else [requests]):
        text = next((name for name in _TEXTS if name in request), None)
        options = [_option(name, value) for name, value in request.items() if name != text]
        words = f" -- {shlex.quote(str(request[text]))}" if text else ""
        lines.append(f"again    mmrt generate {bundle.get('name')}.mmrt {' '.join(options)}{words}")
    return [printable(line) for line in lines]


def _option(name: str, value: Any) -> str:
    """An input as an option of the command line; of a picture only the hash is known."""
    word = f"PICTURE_{value[7:15]}" if str(value).startswith("sha256:") else shlex.quote(str(value))
    return f"--{name.replace('_', '-')} {word}"


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _bundle(bundle: Bundle) -> list[str]:
    manifest = bundle.manifest
    source = manifest.source
    size = sum(file.bytes for file in manifest.files.values())
    lines = [f"{manifest.name}: {manifest.task}, {_bytes(size)} in {len(manifest.files)} files, sha256 {bundle.sha256}"]
    versions = ", ".join(f"{name} {version}" for name, version in source.versions.items())
    lines += [
        f"from {source.family}, exported with {versions}; licence: {source.licence or 'not stated'}",
        "",
        "inputs",
    ]
    for name, spec in manifest.inputs.items():
        takes, default = describe(spec)
        lines.append(f"  {name:17} {takes}  [{default}]")
    lines += [
        "",
        "outputs",
        *(f"  {name:17} {_kind(output)}" for name, output in manifest.outputs.items()),
        "",
        "graphs",
    ]
    for name, graph in manifest.graphs.items():
        lines.append(f"  {name}")
        lines += [f"    in   {key:17} {spec}" for key, spec in graph.inputs.items()]
        lines += [f"    out  {key:17} {spec}" for key, spec in graph.outputs.items()]
        for v in graph.variants:
            lines.append(f"    {v.engine} {v.precision}  {v.file}  {_bytes(manifest.size(v.file))}")
            if v.build is not None:
                lines.append(f"      built by {v.build.version} for GPUs {', '.join(v.build.capabilities)}")
                lines += [f"      sizes {sizes}" for sizes in map(_sizes, v.build.profiles)]
            if v.dtypes:
                lines.append(f"      {' and '.join({*v.dtypes.values()})} at its border: {_shortened(v.dtypes)}")
            lines += [f"      in fp32 for {reason}: {_shortened(nodes)}" for reason, nodes in islands(v).items()]
    return [*lines, "", "program", *(f"  {line}" for line in _program(manifest))]


def _sizes(sizes: m.Sizes) -> str:
    """As `--shapes` has them."""
    return ", ".join(f"{name}={size.min}:{size.opt}:{size.max}" for name, size in sizes.items())


def islands(variant: m.Variant) -> dict[str, list[str]]:
    """Why operators are in fp32, and which: each with the range it was seen to write."""
    found: dict[str, list[str]] = {}
    for island in variant.islands:
        seen = f" [{island.range[0]:.4g}, {island.range[1]:.4g}]" if island.range else ""
        found.setdefault(island.reason, []).append(f"{island.node}{seen}")
    return found


def _shortened(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def _program(manifest: m.Manifest) -> list[str]:
    lines = []
    for number, stage in enumerate(manifest.program, 1):
        match stage:
            case m.Once():
                kind, more = "once", f"  if {stage.when} is given" if stage.when else ""
            case m.Diffuse():
                kind, more = "diffuse", f"  {stage.schedule.prediction}, samplers: {', '.join(stage.samplers)}"
            case m.Autoregress():
                kind, more = "autoregress", f"  up to {stage.limit} tokens, {len(stage.caches)} caches"
                more += f", {len(stage.delays)} codebooks" if stage.delays else ""
                if stage.windows is not None:
                    more += f", of each window of {stage.windows.source} by {', '.join(stage.windows.graphs)}"
        lines.append(f"{number}. {kind:8} {', '.join(stage.graphs)}{more}")
    return lines


_SHOWN = 6  # names in a line
_ARROWS = 3  # from one maker to one graph; more are drawn as one


def flowchart(manifest: m.Manifest) -> list[str]:
    """The program as a mermaid flowchart: inputs and outputs rounded, graphs as boxes, arrays on the arrows."""
    lines, makers = ["flowchart LR"], dict[str, str]()
    for name, spec in manifest.inputs.items():
        if isinstance(spec, m.Text | m.Image | m.Audio) or m.arrays_of(spec):
            lines.append(f"  {name}([{name}])")
            makers |= dict.fromkeys(m.arrays_of(spec), name)
            if isinstance(spec, m.Text) and spec.negative:
                makers |= {f"{spec.negative}/{array}": spec.negative for array in spec.tokenize}
    for number, stage in enumerate(manifest.program):
        if isinstance(stage, m.Diffuse):
            lines.append(f'  loop{number}{{{{"noise, {stage.steps} × {stage.sampler}"}}}}')  # noqa: RUF001
            if stage.start in makers:
                lines.append(f"  {makers[stage.start]} -. {stage.start} .-> loop{number}")
            makers |= dict.fromkeys(("latents", "timestep", "guidance"), f"loop{number}")
        if isinstance(stage, m.Autoregress):
            lines.append(f'  loop{number}{{{{"one token after the other"}}}}')
            makers |= dict.fromkeys(("tokens", "positions", "sequences", *stage.caches), f"loop{number}")
        windows = stage.windows if isinstance(stage, m.Autoregress) else None
        if windows is not None:
            lines.append(f"  {makers[windows.source]} -- {windows.source} --> loop{number}")
            makers[windows.window] = f"loop{number}"
        for graph in (*(windows.graphs if windows else ()), *stage.graphs):
            lines.append(f"  {graph}[{graph}]")
            arrows: dict[str, list[str]] = {}
            for array in manifest.graphs[graph].inputs:
                for name, maker in makers.items():
                    if name == array or name.endswith(f"/{array}"):
                        arrows.setdefault(maker, []).append(array)
            for source, arrays in arrows.items():
                labels = arrays if len(arrays) <= _ARROWS else [f"{arrays[0]} and {len(arrays) - 1} more"]
                lines += [f"  {source} -- {label} --> {graph}" for label in labels]
            makers |= dict.fromkeys(manifest.graphs[graph].outputs, graph)
        if isinstance(stage, m.Diffuse):
            lines.append(f"  {makers['prediction']} -- prediction --> loop{number}")
        if isinstance(stage, m.Autoregress):
            lines.append(f"  {makers['logits']} -- logits --> loop{number}")
    for name, output in manifest.outputs.items():
        lines.append(f"  {makers[output.source]} -- {output.source} --> {name}_out([{name}])")
    return lines


def _kind(output: m.Output) -> str:
    kinds = {m.TextOutput: "text", m.ImageOutput: "picture", m.VectorOutput: "vector", m.AudioOutput: "sound"}
    rate = f", {output.rate} samples a second" if isinstance(output, m.AudioOutput) else ""
    return f"{kinds[type(output)]}, from {output.source}{rate}"


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
