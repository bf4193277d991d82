"""Receipts: does this machine give what the source model gave?

`golden.npz` holds what the source pipeline itself computed at export, in fp32 on seeded inputs:

    graph/GRAPH/NUMBER/in/NAME, graph/GRAPH/NUMBER/out/NAME     one call of one graph
    run/CASE/in/INPUT, run/CASE/out/ARRAY                       a whole request: its pictures, and arrays at its end
    run/CASE/margin/ARRAY, run/CASE/score/ARRAY                 how clear each choice of a token was; scores of beams

Margins may be of one token more than their array has: how clear it was that a row ended there.

`receipt.json` is a `Receipt`: the requests of the cases, and what the replay measured when the bundle was made.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np

from mmrt.runtime.arrays import AnyArray, fitted
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.errors import BundleError
from mmrt.runtime.manifest import Audio, AudioOutput, Autoregress, Image
from mmrt.runtime.pipeline import Pipeline

GOLDEN = "golden.npz"
RECEIPT = "receipt.json"
_GOLDEN_LIMIT = 1 << 30  # bytes, unpacked


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    pass


class Case(_Struct, frozen=True):
    """A whole request: `request` has its inputs but for the pictures, which are arrays in the golden file."""

    name: str
    request: dict[str, Any]


class Check(_Struct, frozen=True):
    """One array compared. Floats: largest and relative (L2) error and cosine, sounds also the ratio of signal to error
    (SNR); uint8: PSNR; both in dB, 100 where equal. Other whole numbers, such as tokens, are to be equal. `margin`: how
    clear the source's choice was, at most, where the tokens of a row part from its."""

    what: str
    precision: str
    passed: bool
    wanted: str
    max_error: float
    relative_error: float | None = None
    cosine: float | None = None
    psnr: float | None = None
    snr: float | None = None
    margin: float | None = None


class Receipt(_Struct, frozen=True):
    """`source` says what computed the golden values; `checks` is what the exporting machine measured."""

    source: str
    cases: tuple[Case, ...]
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True)
class Tolerance:
    """What a precision may cost: relative L2 error of floats, PSNR of pixels and SNR of sounds in dB.

    Greedy tokens may part from the source's where its two best logits lie within `margin` standard deviations of all:
    six times what the relative error allows of one logit, where it is spread evenly. What follows then is not compared,
    nor what is made of such a row.
    """

    relative: float
    psnr: float
    snr: float
    margin: float = 0.0


TOLERANCES = {
    "fp32": Tolerance(1e-3, 40, 60),
    "fp16": Tolerance(2e-2, 35, 30, 0.12),
    "bf16": Tolerance(5e-2, 30, 20, 0.3),
    "int8": Tolerance(1e-1, 25, 15, 0.6),
}
_BY_LOSS = tuple(TOLERANCES)


def replay(pipeline: Pipeline, precisions: Mapping[str, str] = MappingProxyType({})) -> Iterator[Check]:
    """Run all golden inputs through the pipeline's engines and yield the comparisons, graph by graph, then whole runs.

    precisions: those of graphs whose engines are not the pipeline's own. Raises `BundleError` where the bundle has no
    receipt or a damaged one.
    """
    receipt = read_receipt(pipeline.bundle)
    golden = _Golden(pipeline.bundle)
    graphs = pipeline.manifest.graphs
    known = {name: variant.precision for name, variant in pipeline.variants.items()} | dict(precisions)
    for graph in graphs:
        for number in golden.names("graph", graph):
            outputs = pipeline.call(graph, golden.arrays("graph", graph, number, "in"))
            precision = known[graph]
            for name, wanted in golden.arrays("graph", graph, number, "out").items():
                yield _compare_named(f"{graph} {number}: {name}", outputs, name, wanted, precision)
    precision = max(known.values(), key=_BY_LOSS.index)
    sounds = {output.source for output in pipeline.manifest.outputs.values() if isinstance(output, AudioOutput)}
    loop = next((stage for stage in pipeline.manifest.program if isinstance(stage, Autoregress)), None)
    pictures = {name for name, spec in pipeline.manifest.inputs.items() if isinstance(spec, Image | Audio)}
    for case in receipt.cases:
        if files := pictures & case.request.keys():
            raise BundleError(f"{RECEIPT}: {case.name}: {min(files)} must be in {GOLDEN}, not a file of this machine")
        inputs = case.request | {name: list(value) for name, value in golden.arrays("run", case.name, "in").items()}
        golden_outputs = golden.arrays("run", case.name, "out")
        if not golden_outputs:
            raise BundleError(f"{RECEIPT}: {case.name}: {GOLDEN} has nothing to compare it with")
        margins, scores = (golden.arrays("run", case.name, kind) for kind in ("margin", "score"))
        arrays = pipeline.arrays(**inputs)
        arrays = fitted(arrays, {name: array for graph in graphs.values() for name, array in graph.outputs.items()})
        if missing := golden_outputs.keys() - arrays.keys():
            raise BundleError(f"{GOLDEN}: {case.name}: {min(missing)}: nothing makes {min(missing)!r}")
        same = None  # which rows have the golden tokens, where others are allowed
        for name, wanted in sorted(golden_outputs.items(), key=lambda each: each[0] not in margins.keys() | scores):
            what, found = f"{case.name}: {name}", arrays[name]
            if same is not None and len(found) == len(wanted) == len(same):
                found, wanted = found[same], wanted[same]
                if not len(wanted):
                    continue
            check = (compare_sound if name in sounds else compare)(what, found, wanted, precision)
            if loop is not None and not check.passed and TOLERANCES[precision].margin:
                if name in margins:
                    check = compare_tokens(what, found, wanted, margins[name], precision, loop.pad, loop.delays)
                elif name in scores and "scores" in arrays:
                    check = compare_beams(what, found, wanted, arrays["scores"], scores[name], precision)
                if check.passed:
                    same = (np.subtract(*_aligned(found, wanted, loop.pad)) == 0).reshape(len(wanted), -1).all(axis=1)
            yield check


def read_receipt(bundle: Bundle) -> Receipt:
    """The bundle's receipt. Raises `BundleError`."""
    try:
        return msgspec.json.decode(bundle.file(RECEIPT).read_bytes(), type=Receipt)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BundleError(f"{bundle.path / RECEIPT}: {error}") from None


def _compare_named(what: str, arrays: Mapping[str, AnyArray], name: str, wanted: AnyArray, precision: str) -> Check:
    if name not in arrays:
        raise BundleError(f"{GOLDEN}: {what}: nothing makes {name!r}")
    return compare(what, arrays[name], wanted, precision)


def compare_sound(what: str, found: AnyArray, wanted: AnyArray, precision: str) -> Check:
    """Compare sounds, float32, at the tolerance of the precision."""
    check, tolerance = compare(what, found, wanted, precision), TOLERANCES[precision].snr
    if check.relative_error is None:
        return check
    known = check.relative_error < math.inf  # False for NaN
    snr = min(100.0, -20 * math.log10(max(check.relative_error, 1e-9))) if known else -math.inf
    return msgspec.structs.replace(check, passed=snr >= tolerance, wanted=f"SNR >= {tolerance:g} dB", snr=snr)


def compare_tokens(
    what: str,
    found: AnyArray,
    wanted: AnyArray,
    margins: AnyArray,
    precision: str,
    pad: int = 0,
    delays: Sequence[int] = (),
) -> Check:
    """Compare the tokens of rows, int64 (rows, tokens), each up to where it first parts from its golden row.

    margins, float32 like `wanted`: how far the source's best logit was above the second, in standard deviations. With
    `delays` tokens are of as many codebooks, (rows, tokens, codebooks), of which each comes so many tokens late.
    """
    longer = (*wanted.shape[:1], *(each + 1 for each in wanted.shape[1:2]), *wanted.shape[2:])
    if margins.shape not in (wanted.shape, longer):
        raise BundleError(f"{GOLDEN}: {what}: margins are {margins.shape}, wanted {wanted.shape}")
    if (
        not _comparable(found, wanted)
        or wanted.shape[2:] != (len(delays),)[: wanted.ndim - 2]
        or np.array_equal(found, wanted)
    ):
        return compare(what, found, wanted, precision)
    ours, theirs = _aligned(found, wanted, pad)
    rows, tokens, *books = ours.shape
    margins = np.concatenate([margins, np.full((rows, tokens, *books), np.inf, np.float32)], axis=1)[:, :tokens]
    when = np.arange(tokens).reshape(-1, *[1] * len(books)) + (np.array(delays, int) if books else 0)
    when = np.where(ours != theirs, when, np.iinfo(np.int64).max)  # it was chosen, where it is another
    first = when.min(axis=tuple(range(1, when.ndim)), keepdims=True)
    parted = (when == first) & (ours != theirs)
    margin, tolerance = float(margins[parted].max(initial=0.0)), TOLERANCES[precision].margin
    return Check(
        what=what,
        precision=precision,
        passed=bool(parted.any()) and margin <= tolerance,
        wanted=f"equal, or margin <= {tolerance:g}",
        max_error=float(np.abs(ours - theirs).max(initial=0)),
        margin=margin,
    )


def _aligned(found: AnyArray, wanted: AnyArray, pad: int) -> tuple[AnyArray, AnyArray]:
    """Both as long as the longer."""
    tokens = max(found.shape[1], wanted.shape[1])

    def longer(array: AnyArray) -> AnyArray:
        wide = [(0, tokens - array.shape[1]) if axis == 1 else (0, 0) for axis in range(array.ndim)]
        return np.pad(array, wide, constant_values=pad)

    return longer(found), longer(wanted)


def compare_beams(
    what: str, found: AnyArray, wanted: AnyArray, scores: AnyArray, wanted_scores: AnyArray, precision: str
) -> Check:
    """Compare the tokens of beams, int64 (rows, tokens): a row may be another that is as likely.

    scores, float32 (rows,): the mean log-probabilities that beams are chosen by, here and of the source's own. Their
    error is relative, or, of scores above -1, absolute.
    """
    if not _comparable(found, wanted) or scores.shape != wanted_scores.shape or scores.shape != (len(wanted),):
        return compare(what, found, wanted, precision)
    error = float((np.abs(scores - wanted_scores) / np.maximum(np.abs(wanted_scores), 1.0)).max(initial=0.0))
    tolerance = TOLERANCES[precision].relative
    return Check(
        what=what,
        precision=precision,
        passed=error <= tolerance,
        wanted=f"equal, or scores within {tolerance:g}",
        max_error=float(np.abs(scores - wanted_scores).max(initial=0.0)),
        relative_error=error,
    )


def _comparable(found: AnyArray, wanted: AnyArray) -> bool:
    """Whether both are as many rows of tokens, or of vectors of as many."""
    alike = found.dtype == wanted.dtype and found.ndim == wanted.ndim and found.ndim in (2, 3)
    return alike and found.shape[:1] + found.shape[2:] == wanted.shape[:1] + wanted.shape[2:]


@np.errstate(invalid="ignore", over="ignore")  # NaN and infinity fail a check, which is news enough
def compare(what: str, found: AnyArray, wanted: AnyArray, precision: str) -> Check:
    """Compare one array with its golden value, at the tolerance of the precision."""
    tolerance = TOLERANCES[precision]
    same_kind = found.shape == wanted.shape and found.dtype == wanted.dtype
    if not same_kind:
        problem = f"{wanted.dtype}{wanted.shape}, not {found.dtype}{found.shape}"
        return Check(what=what, precision=precision, passed=False, wanted=problem, max_error=math.inf)
    a, b = found.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
    max_error = float(np.abs(a - b).max(initial=0.0))
    if wanted.dtype.kind in "ib" and wanted.dtype != np.uint8:
        return Check(what=what, precision=precision, passed=bool((a == b).all()), wanted="equal", max_error=max_error)
    if wanted.dtype == np.uint8:
        psnr = min(100.0, 10 * math.log10(255**2 / max(float(np.mean((a - b) ** 2)), 1e-9)))
        passed, goal = psnr >= tolerance.psnr, f"PSNR >= {tolerance.psnr:g} dB"
        return Check(what=what, precision=precision, passed=passed, wanted=goal, max_error=max_error, psnr=psnr)
    norm = float(np.linalg.norm(b))
    relative = float(np.linalg.norm(a - b)) / max(norm, 1e-12)
    cosine = float(a @ b) / max(float(np.linalg.norm(a)) * norm, 1e-12)
    return Check(
        what=what,
        precision=precision,
        passed=relative <= tolerance.relative,  # False for NaN
        wanted=f"relative error <= {tolerance.relative:g}",
        max_error=max_error,
        relative_error=relative,
        cosine=cosine,
    )


class _Golden:
    """The golden arrays, by the parts of their names."""

    def __init__(self, bundle: Bundle) -> None:
        path = bundle.file(GOLDEN)
        try:
            _check_size(path)
            with np.load(path, allow_pickle=False) as archive:
                self._arrays = {tuple(name.split("/")): archive[name] for name in archive.files}
        except BundleError:
            raise
        except Exception as error:  # zipfile and NumPy raise whatever comes
            raise BundleError(f"{path}: not readable golden data: {error}") from None

    def names(self, *prefix: str) -> list[str]:
        """The next parts of the names that begin so."""
        depth = len(prefix)
        return list(dict.fromkeys(name[depth] for name in self._arrays if name[:depth] == prefix and name[depth:]))

    def arrays(self, *prefix: str) -> Mapping[str, AnyArray]:
        """The arrays whose names begin so, by the last part."""
        return {name[-1]: array for name, array in self._arrays.items() if name[:-1] == prefix}


def _check_size(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > _GOLDEN_LIMIT:
        raise BundleError(f"{path}: unpacks to {size:,} bytes, more than {_GOLDEN_LIMIT:,}")
