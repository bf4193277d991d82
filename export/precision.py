"""Variants in fp16 and bf16: what of a graph would come out wrong in them is found by measuring, and stays in fp32.

A graph's calibration calls go through its fp32 form, with probes inside (`measure`). What these say decides which nodes
stay (`islands`), `casts` does the rest, and the result is compared with what fp32 gave, every step rounded. The two
formats differ in their range and in what they round (`casts.FORMATS`), and in what they may cost (`TOLERANCES`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from mmrt.export import casts
from mmrt.export.casts import Format, constant, is_float
from mmrt.export.graph import EMBEDDED
from mmrt.export.islands import ROOM, Plan
from mmrt.export.measure import RoundedEngine, measure, session, written
from mmrt.runtime import manifest as m
from mmrt.runtime.arrays import AnyArray
from mmrt.runtime.errors import ExportError
from mmrt.runtime.receipt import TOLERANCES, compare

_SHARE = 0.5  # of the tolerance of the receipts, for a graph alone
_LEAST = -65504 / ROOM  # constants below it are those of masks, which add to what is not to be seen
_MASKED = -8192.0  # what they become: there are no such numbers in fp16, nor in bf16 what float32 has at its end


def halve(
    name: str,
    graph: m.Graph,
    bundle: Path,
    format: Format,
    calls: Sequence[Mapping[str, AnyArray]],
    carried: Collection[str] = (),
    caches: Mapping[str, str] = MappingProxyType({}),
    exact: Collection[str] = (),
) -> m.Variant | None:
    """Write graphs/NAME.PRECISION.onnx into the bundle; None for a graph of which nothing is worth it, or known.

    calls: inputs for its fp32 variant. carried: arrays that are to be of the format at its borders, if they can be;
    caches: which of them becomes which; exact: arrays that are to be as in fp32, see `exact`. Raises `ExportError`
    where the format cannot give what fp32 does.
    """
    source = bundle / graph.variants[0].file
    target = bundle / f"graphs/{name}.{format.precision}.onnx"
    if not calls or casts.has_sequences(source):
        return None
    saturated = _can_saturate(source, calls)
    model = _load(source, saturated)
    if not any(is_float(value) for node in model.graph for value in node.outputs):
        return None
    found = measure(_load(source, saturated), source, calls, format)
    plan = Plan(model, format, found, {each for each in carried if each in graph.inputs or each in graph.outputs})
    plan.decide(caches, exact)
    doubtful = sorted(found.errors.keys() - plan.reasons.keys(), key=lambda node: -found.errors[node])
    for count in _doubling(len(doubtful)):
        plan.keep(doubtful[:count])
        if not plan.worthwhile():
            target.unlink(missing_ok=True)
            target.with_name(f"{target.name}.data").unlink(missing_ok=True)
            return None
        _write(_load(source, saturated), plan, target)
        variant = m.Variant(
            engine="onnx",
            precision=format.precision,
            file=f"graphs/{target.name}",
            dtypes=dict.fromkeys(sorted(plan.borders), format.dtype),
            islands=tuple(plan.islands()),
        )
        worst = _worst(rounded_engine(name, graph, target), calls, found.outputs, format)
        if worst is None:
            return variant
    raise ExportError(f"{name}: in {format.precision} {worst}")


def exact(manifest: m.Manifest, bundle: Path) -> set[str]:
    """The arrays that rounding may not touch: whole numbers that graphs make of floats, such as how long a sound is,
    and all floats that these are made of, in any graph.

    But pixels, which may be one off, and what the graphs of loops choose, where receipts know how clear that was.
    """
    loops = {name for stage in manifest.program if not isinstance(stage, m.Once) for name in stage.graphs}
    files = {name: casts.load(str(bundle / graph.variants[0].file)) for name, graph in manifest.graphs.items()}
    found: set[str] = set()
    before = -1
    while before < len(found):
        before = len(found)
        for name, model in files.items():
            for output in model.graph.outputs:
                whole = name not in loops and not is_float(output) and output.dtype != ir.DataType.UINT8
                if output.name in found or whole:
                    of = [value for value in casts.decides(output).values() if is_float(value) and not constant(value)]
                    found |= {value.name for value in of if value.is_graph_input()} | ({output.name} if of else set())
    return found


def rounded_engine(name: str, graph: m.Graph, file: Path) -> RoundedEngine:
    """A graph's file in fp16 or bf16 on the CPU, with every result rounded, as where there are operators in them: see
    `casts.rounded`."""
    model = casts.load(str(file))
    casts.rounded(model)
    with written(model, file, "rounded") as path:
        return RoundedEngine(name, graph, path)


def _load(source: Path, saturated: bool) -> ir.Model:
    model = casts.load(str(source))
    if saturated:
        _saturate(model)
    return model


def _saturate(model: ir.Model) -> bool:
    """Bring constants that masks are made of into the formats' range; whether there are any."""
    found = False
    for value in model.graph.initializers.values():
        if is_float(value) and value.const_value.size <= 2**20:
            array = value.const_value.numpy()
            if array.size and array.min() < _LEAST:
                value.const_value = ir.tensor(np.maximum(array, np.float32(_MASKED)), name=value.name)
                found = True
    return found


def _can_saturate(source: Path, calls: Sequence[Mapping[str, AnyArray]]) -> bool:
    """Whether there are such constants, and the graph gives the same with them in range."""
    model = casts.load(str(source))
    if not _saturate(model):
        return False
    borders = [[value.name for value in each] for each in (model.graph.inputs, model.graph.outputs)]
    with written(model, source, "saturated") as file:
        wanted, found = (_outputs(path, borders, calls) for path in (source, file))
    return all(
        compare("", ours[each], theirs[each], "fp32").passed
        for ours, theirs in zip(found, wanted, strict=True)
        for each in ours
    )


def _outputs(
    file: Path, borders: list[list[str]], calls: Sequence[Mapping[str, AnyArray]]
) -> list[dict[str, AnyArray]]:
    runner = session(file)
    return [dict(zip(borders[1], runner.run(None, {n: call[n] for n in borders[0]}), strict=True)) for call in calls]


def _write(model: ir.Model, plan: Plan, target: Path) -> None:
    casts.to_half(model, plan.format, plan.reasons.keys(), plan.borders)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    ir.save(model, target, external_data=f"{target.name}.data" if size > EMBEDDED else None)


def _doubling(most: int) -> Iterator[int]:
    """0, 1, 2, 4, ... and the most."""
    count = 0
    while count < most:
        yield count
        count = 2 * count or 1
    yield most


def _worst(
    engine: RoundedEngine,
    calls: Sequence[Mapping[str, AnyArray]],
    wanted: Sequence[dict[str, AnyArray]],
    format: Format,
) -> str | None:
    """The output that is furthest from what fp32 gave, if one is too far."""
    tolerance = TOLERANCES[format.precision]
    found: dict[str, float] = {}
    for call, golden in zip(calls, wanted, strict=True):
        for name, array in engine.run(call).items():
            if (
                array.dtype.kind in "ib" and array.dtype != np.uint8
            ):  # choices, which the receipts judge by their margins
                continue
            check = compare(name, array, golden[name], format.precision)
            if check.psnr is not None:
                share = (tolerance.psnr - 20 * math.log10(_SHARE)) / max(check.psnr, 1e-9)
            else:
                share = (check.relative_error or 0.0) / (_SHARE * tolerance.relative)
                if math.isnan(share) or not np.isfinite(array).all():
                    share = math.inf
            found[name] = max(share, found.get(name, 0.0))
    name = max(found, key=lambda each: found[each], default="")
    return f"{name!r} is {found[name]:.3g} times as far from fp32 as it may be" if found.get(name, 0.0) > 1 else None
