"""The pipeline: load a bundle once, then answer requests: load -> condition -> stages -> outputs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mmrt.runtime import manifest, placing, request
from mmrt.runtime.arrays import AnyArray, fitted
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.engines import Engine
from mmrt.runtime.errors import BundleError, EngineError, RequestError
from mmrt.runtime.events import Done, Event, Result
from mmrt.runtime.request import Request
from mmrt.runtime.selection import MEMORIES, Description, Engines, Memory, places, say_once
from mmrt.runtime.sound import sounds
from mmrt.runtime.stages import Run, distinct, guided
from mmrt.runtime.stages.autoregress import autoregress, beams
from mmrt.runtime.stages.diffuse import diffuse
from mmrt.runtime.stages.once import once
from mmrt.runtime.tokenizer import Detokenizer, Tokenizer, blanked
from mmrt.version import __version__

STAGES: dict[type, Any] = {manifest.Once: once, manifest.Diffuse: diffuse, manifest.Autoregress: autoregress}


def load(
    path: str | os.PathLike[str],
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
    threads: int = 0,
    memory: Memory = "full",
    build: bool = True,
) -> Pipeline:
    """Open a bundle and load its graphs, on the best that this machine can run; `Pipeline.describe` says what and why.

    device: "auto", "cpu", "cuda" or "cuda:N"; engine: "auto" or a key of `ENGINES`; precision: "auto", which is the
    best here, "fp32", "fp16", "bf16" or "int8", for the graphs that have it; threads: how many an operator may use on
    a CPU, 0 for one a core; memory: "low" loads each stage's graphs when it comes and lets them go after it; build:
    where TensorRT is installed and has no engines of the bundle, they are built in the background, for the next time,
    while ONNX Runtime serves. Raises `BundleError` where the bundle is damaged, `EngineError` where this machine cannot
    run it so.
    """
    if memory not in MEMORIES:
        raise EngineError(f"memory is {memory!r}, wanted {' or '.join(MEMORIES)}")
    bundle = Bundle(path)
    found, refused = places(device, engine)
    for place in found:
        engines = None
        try:
            engines = Engines(bundle, place, engine, precision, threads, memory, build)
            return Pipeline(bundle, engines, refused)
        except EngineError as error:
            if place is found[-1]:
                raise
            meanwhile = engines.building() if engines is not None else ""
            refused[place.name] = f"{error}; {meanwhile}" if meanwhile else str(error)
            say_once(f"does without {place.name}: {error}")
    raise AssertionError("the last place returns or raises")


class Pipeline:
    """A loaded bundle. Immutable, and safe to call from many threads: a request's state lives in its generator."""

    def __init__(self, bundle: Bundle, engines: Engines, refused: Mapping[str, str]) -> None:
        """Load what every request needs; the rest is loaded when first asked for. `refused`: places, and why."""
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.engines: Mapping[str, Engine] = engines
        self.place, self._selected, self._refused = engines.place, engines, refused
        self._tokenizers = {
            ids: Tokenizer(bundle.file(spec.file), spec)
            for text in self.manifest.text_inputs().values()
            for ids, spec in text.tokenize.items()
        }
        self._detokenizers = {
            output.source: Detokenizer(bundle.file(output.file), output.clean)
            for output in self.manifest.outputs.values()
            if isinstance(output, manifest.TextOutput)
        }
        engines.load(_always_used(self.manifest))

    def generate(self, *texts: str | list[str], **inputs: Any) -> Result:
        """Answer a request; see `stream` for the arguments."""
        for event in self.stream(*texts, **inputs):  # a list of them would keep every step's latents
            if isinstance(event, Done):
                return event.result
        raise AssertionError("a stream ends with Done")

    def stream(self, *texts: str | list[str], **inputs: Any) -> Iterator[Event]:
        """Answer a request step by step: `Step`s and `Token`s, then `Done` with the result. Leaving the loop cancels.

        inputs: values for the manifest's inputs by name; a positional text is the first input that wants one. Raises
        `RequestError` where the bundle cannot answer the request: at once, or before the first event where its sampler
        cannot do these steps.
        """
        named = self._named(texts) | inputs
        if twice := sorted(self._named(texts).keys() & inputs.keys()):
            raise RequestError(f"{twice[0]} is given twice")
        return self._stream(request.resolve(self.manifest, named))

    def arrays(self, **inputs: Any) -> dict[str, AnyArray]:
        """Answer a request, and give all named arrays as they are at its end, such as `latents` and `pixels`."""
        run = self._start(request.resolve(self.manifest, inputs))
        for _ in self._run(run):
            pass
        return {name: run.device.get(array) for name, array in run.arrays.items()}

    def call(self, graph: str, arrays: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """What one graph makes of arrays, floats being as wide as the graph says; both are NumPy's."""
        device = self.place.device()
        with self._selected.lent([graph]):
            engine = self.engines[graph]
            given = {name: device.put(array) for name, array in fitted(arrays, engine.inputs).items()}
            found = {name: device.get(array) for name, array in engine.run(given, device).items()}
        return fitted(found, self.manifest.graphs[graph].outputs)

    @property
    def variants(self) -> dict[str, manifest.Variant]:
        """The variant of each graph that runs here."""
        return {name: self._selected.variant(name)[1] for name in self._selected}

    def describe(self) -> Description:
        """How each graph runs here, what was refused for it, and whether better engines are being built."""
        return Description(self._engines(), {**self._refused, **self._selected.refused}, self._selected.building())

    def _engines(self) -> dict[str, str]:
        return {name: self._selected.described(name) for name in self._selected}

    def _stream(self, request: Request) -> Iterator[Event]:
        run = self._start(request)
        yield from self._run(run)
        made = {name: output for name, output in self.manifest.outputs.items() if output.source in run.arrays}
        outputs = {name: self._finish(output, run) for name, output in made.items()}
        timings: dict[str, Any] = {"total": time.perf_counter() - run.started, "graphs": run.seconds()}
        if run.first_token is not None:
            tokens = sum(len(each.tokens) for each in run.completions)
            timings |= {"first_token": run.first_token, "tokens": tokens}
        provenance = [self._provenance(request, index) for index in range(request.batch)]
        stopped: list[str] = [each.stopped for each in run.completions]
        yield Done(Result(outputs, provenance, timings, stopped, run.segments))

    def _start(self, request: Request) -> Run:
        return Run(request, self._detokenizers.get("sequences"), self.place.device())

    def _run(self, run: Run) -> Iterator[Event]:
        self._condition(run)
        for stage in self.manifest.program:
            with self._selected.lent(_graphs(stage, run.request)):
                yield from STAGES[type(stage)](stage, self.engines, run)
                self.place.look()

    def _condition(self, run: Run) -> None:
        """Pictures, token ids of the distinct texts, and which row takes which; unconditional rows come first."""
        values = run.request.values
        for name, spec in self.manifest.inputs.items():
            if isinstance(spec, manifest.Image) and run.request.given(name):
                own_size = spec.fit or spec.patches or spec.split or not run.request.width
                rows = distinct(map(id, values[name])) if own_size else np.arange(run.request.batch)
                pictures = [values[name][index] for index in np.unique(rows, return_index=True)[1]]
                if spec.split or spec.patches:
                    from mmrt.runtime import media  # pillow is needed for pictures only
                if spec.split:
                    run.bring(spec.array, np.concatenate([media.split(each, spec.split) for each in pictures]), None)
                    continue
                if spec.patches:
                    pictures, shapes = media.cut(pictures, spec.patches)
                    run.bring(spec.patches.shapes, shapes, rows)
                run.bring(spec.array, np.stack(pictures), rows)
            if isinstance(spec, manifest.Number) and spec.array is not None:
                rows = distinct(values[name])
                numbers = np.array(list(dict.fromkeys(values[name])), manifest.NUMBERS[type(spec)])
                run.bring(spec.array, numbers, rows)
            if isinstance(spec, manifest.Choice) and spec.array is not None:
                run.bring(spec.array, np.array([run.request.chosen[name]]), np.zeros(run.request.batch, np.int64))
            if isinstance(spec, manifest.Audio) and run.request.given(name):
                rows = distinct(map(id, values[name]))
                recordings = [values[name][index] for index in np.unique(rows, return_index=True)[1]]
                lengths = np.array([len(each) for each in recordings])
                filled = [np.pad(each, (0, lengths.max() - len(each))) for each in recordings]
                run.bring(spec.array, np.stack(filled), rows)
                run.bring(spec.lengths, lengths, rows)
        loops = [stage for stage in self.manifest.program if not isinstance(stage, manifest.Once)]
        unconditional = any(guided(stage, run.request) for stage in loops)
        for name, text in self.manifest.text_inputs().items():
            if not run.request.given(name):
                continue
            texts = values[text.negative] + values[name] if text.negative and unconditional else values[name]
            for ids, tokenize in text.tokenize.items():
                placed = self._placed(tokenize.picture, values) or [None] * len(texts)
                prompts = list(dict.fromkeys(zip(texts, placed, strict=True)))
                pictures = [picture for _, picture in prompts if picture is not None]
                array, mask = self._tokenizers[ids]([text for text, _ in prompts], run.request.chosen, pictures)
                rows = distinct(zip(texts, placed, strict=True))
                if tokenize.absent and unconditional and not text.negative:
                    rows = np.concatenate([np.zeros_like(rows), rows + 1])
                    array = np.concatenate([np.full_like(array[:1], tokenize.pad), array])
                    mask = np.concatenate([np.zeros_like(mask[:1]), mask])
                elif tokenize.blank is not None and unconditional and not text.negative:
                    rows = np.concatenate([rows, rows + len(array)])
                    array, mask = np.concatenate([blanked(array, mask, tokenize.blank), array]), np.tile(mask, (2, 1))
                run.bring(ids, array, rows)
                if tokenize.mask:
                    run.bring(tokenize.mask, mask, rows)
                    run.lengths[ids] = mask.sum(axis=1)

    def _placed(self, spec: manifest.Placing | None, values: Mapping[str, Any]) -> list[placing.Placed | None]:
        """Each result's picture in its text; none where texts have none."""
        if spec is None:
            return []
        image = self.manifest.inputs[spec.image]
        assert isinstance(image, manifest.Image)
        assert image.split is not None
        return [*placing.placed(values[spec.image], image.split.size)]

    def _finish(self, output: manifest.Output, run: Run) -> list[Any]:
        array = run.device.get(run.arrays[output.source])
        if isinstance(output, manifest.TextOutput):
            return [self._detokenizers[output.source].text(row) for row in array]
        if isinstance(output, manifest.VectorOutput):
            return list(array[run.rows[output.source]])
        if isinstance(output, manifest.AudioOutput):
            lengths = run.results(output.lengths) if output.lengths else None
            return list(sounds(run.results(output.source), output.rate, lengths))
        from mmrt.runtime import media  # pillow is needed for pictures only

        wanted = (run.request.batch, run.request.height, run.request.width, 3)
        if not wanted[1]:
            array = array[run.rows[output.source][-run.request.batch :]]
        elif array.shape != wanted:
            raise BundleError(f"{output.source} is {array.shape}, wanted {wanted}")
        return media.pictures(array)

    def _named(self, texts: tuple[Any, ...]) -> dict[str, Any]:
        wanted = [name for name, value in self.manifest.inputs.items() if isinstance(value, manifest.Text)]
        if len(texts) > len(wanted):
            raise RequestError(f"{len(texts)} texts are given, {self.manifest.name} takes {len(wanted)}")
        return dict(zip(wanted, texts, strict=False))

    def _provenance(self, request: Request, index: int) -> dict[str, Any]:
        together = request.count > 1 and any(
            isinstance(stage, manifest.Autoregress) and beams(stage, request) > 1 for stage in self.manifest.program
        )
        return ({"result": index % request.count} if together else {}) | {
            "mmrt": __version__,
            "bundle": {"name": self.manifest.name, "sha256": self.bundle.sha256},
            "request": request.single(self.manifest, index, together),
            "engines": self._engines(),
        }


def _graphs(stage: manifest.Stage, request: Request) -> tuple[str, ...]:
    """Those that a request asks for in a stage."""
    if isinstance(stage, manifest.Once):
        return stage.graphs if stage.when is None or request.given(stage.when) else ()
    windows = stage.windows if isinstance(stage, manifest.Autoregress) else None
    return (*stage.graphs, *(windows.graphs if windows else ()))


def _always_used(manifest_: manifest.Manifest) -> list[str]:
    conditional = [stage.graphs for stage in manifest_.program if isinstance(stage, manifest.Once) and stage.when]
    return [name for name in manifest_.graphs if not any(name in graphs for graphs in conditional)]
