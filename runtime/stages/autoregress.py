"""`autoregress`: one token after the other, over caches of keys and values that stay where they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from mmrt.runtime import manifest
from mmrt.runtime.arrays import AnyArray, Float32, Int64
from mmrt.runtime.devices import cpu
from mmrt.runtime.engines import Engine
from mmrt.runtime.errors import BundleError, RequestError
from mmrt.runtime.events import Event, Token
from mmrt.runtime.request import Request
from mmrt.runtime.search import Rules, search
from mmrt.runtime.stages import Run

_SMALLEST = 32  # places in the first buffers
_EARLY_STOPPING: Mapping[str, bool | str] = {"no": False, "yes": True, "never": "never"}


def autoregress(stage: manifest.Autoregress, engines: Mapping[str, Engine], run: Run) -> Iterator[Event]:
    """Yield a `Token` for every new token of every result, or for each word of them at the end with beams.

    Leaves int64 `sequences` (batch, longest) in the request's arrays, and why each ended in `run.stopped`.
    """
    request = run.request
    rule = rules(stage, request)
    prompt = np.array(request.tokens(stage.prompt), np.int64)
    if len(prompt) + rule.max_new_tokens > stage.limit:
        raise RequestError(
            f"{stage.options.get('max_new_tokens', 'max_new_tokens')} is {rule.max_new_tokens}, "
            f"the model has room for {stage.limit - len(prompt)}"
        )
    prompts = request.batch // request.count
    found = search(rule, [prompt] * prompts, run.uniforms(), _stops(stage, run))
    rows = len(found.tokens)
    _spread_conditions(stage, run, rows)
    loop = _Loop(stage, engines, run, rows)
    if len(prompt) > 1:  # all but the last, which is the first step's
        loop.feed(np.tile(prompt[:-1], (rows, 1)))
    words = [run.detokenizer.stream() if run.detokenizer else None for _ in range(request.batch)]
    streamed = rule.beams == 1
    told = [0] * request.batch
    while not found.done:
        order = found.advance(loop.feed(found.tokens[:, None]))
        run.first_token = run.first_token or time.perf_counter() - run.started
        if order is not None:
            loop.take(order)
        for index, tokens in enumerate(found.new_tokens()) if streamed else ():
            if len(tokens) > told[index]:
                word = words[index]
                told[index] = len(tokens)
                yield Token(index, int(tokens[-1]), word.push(int(tokens[-1])) if word else "")
    results = found.results()
    for index, (result, word) in enumerate(zip(results, words, strict=True)):
        for token in result.tokens[told[index] :]:
            yield Token(index, int(token), word.push(int(token)) if word else "")
        if word and (rest := word.finish()):
            yield Token(index, None, rest)
    run.tokens = sum(len(result.tokens) for result in results)
    run.stopped = [result.stopped for result in results]
    run.arrays["sequences"] = _padded([result.tokens for result in results], stage.pad)


def rules(stage: manifest.Autoregress, request: Request) -> Rules:
    """What the stage and the request say of choosing tokens."""
    given = {option: request.values[name] for option, name in stage.options.items() if option != "stop"}
    if "early_stopping" in given:
        given["early_stopping"] = _EARLY_STOPPING[given["early_stopping"]]
    if 1 < (beams := given.get("beams", 1)) < request.count:
        raise RequestError(f"{request.count} results a prompt of {beams} beams: give at least as many beams as results")
    return Rules(
        ends=stage.ends,
        pad=stage.pad,
        forced=request.tokens(stage.forced),
        forced_end=stage.forced_end,
        suppressed=stage.suppressed,
        begin_suppressed=stage.begin_suppressed,
        returned=request.count,
        **given,
    )


def _stops(stage: manifest.Autoregress, run: Run) -> Callable[[int, Int64], bool] | None:
    """Whether a result's text holds one of the request's stop strings."""
    wanted: Sequence[str] = run.request.values[stage.options["stop"]] if "stop" in stage.options else ()
    if not wanted:
        return None
    detokenizer = run.detokenizer
    if detokenizer is None:
        raise RequestError(f"{stage.options['stop']} needs an output that is text")
    return lambda _, tokens: any(string in detokenizer.text(tokens) for string in wanted)


def _spread_conditions(stage: manifest.Autoregress, run: Run, rows: int) -> None:
    """Give every row its own copy of what belongs to its text or picture."""
    for name, source in stage.conditions.items():
        of_prompt = run.rows[source][:: run.request.count]
        if len(run.arrays[name]) != of_prompt.max() + 1:
            raise BundleError(f"{name} has {len(run.arrays[name])} rows for {of_prompt.max() + 1} of {source}")
        wanted = np.repeat(of_prompt, rows // len(of_prompt))
        if len(wanted) != len(run.arrays[name]) or (wanted != np.arange(len(wanted))).any():
            run.arrays[name] = cpu.take_rows(run.arrays[name], wanted)


def _padded(sequences: Sequence[Int64], pad: int) -> Int64:
    whole = np.full((len(sequences), max(len(each) for each in sequences)), pad, np.int64)
    for row, sequence in zip(whole, sequences, strict=True):
        row[: len(sequence)] = sequence
    return whole


class _Loop:
    """The stage's graphs over one set of buffers, bound anew only when these grow or another number of tokens comes."""

    def __init__(self, stage: manifest.Autoregress, engines: Mapping[str, Engine], run: Run, rows: int) -> None:
        self._stage, self._run, self._rows = stage, run, rows
        self._engines = {graph: engines[graph] for graph in stage.graphs}
        self._length = self._capacity = 0
        self._width = 0  # tokens that the graphs are bound for
        self._calls: dict[str, Callable[[], None]] = {}
        specs = {name: spec for engine in self._engines.values() for name, spec in engine.inputs.items()}
        for name in stage.caches:
            _, heads, _, width = specs[name].shape
            run.arrays[name] = np.zeros((rows, heads, 0, width), specs[name].dtype)  # type: ignore[arg-type]
        run.arrays["positions"] = np.zeros(rows, np.int64)

    def feed(self, tokens: Int64) -> Float32:
        """Put (rows, n) more tokens into the caches; the logits after the last of them."""
        arrays, width = self._run.arrays, tokens.shape[1]
        if self._length + width > self._capacity or width != self._width:
            self._bind(width)
        arrays["tokens"][:] = tokens
        arrays["positions"][:] = self._length
        for graph, call in self._calls.items():
            with self._run.clock(graph):
                call()
        self._length += width
        return arrays["logits"]

    def take(self, rows: Int64) -> None:
        """Let each row go on from the row that is named, in what was written so far."""
        for name in self._stage.caches:
            written = self._run.arrays[name][:, :, : self._length]
            written[:] = written[rows]

    def _bind(self, width: int) -> None:
        arrays = self._run.arrays
        while self._length + width > self._capacity:
            self._capacity = max(2 * self._capacity, _SMALLEST)
        for name in self._stage.caches:
            if (old := arrays[name]).shape[2] < self._capacity:
                arrays[name] = np.zeros((*old.shape[:2], self._capacity, old.shape[3]), old.dtype)
                arrays[name][:, :, : self._length] = old[:, :, : self._length]
        arrays["tokens"] = np.zeros((self._rows, width), np.int64)
        self._width = width
        for graph, engine in self._engines.items():
            into: dict[str, AnyArray] = {
                new: arrays[old] for old, new in self._stage.caches.items() if new in engine.outputs
            }
            self._calls[graph], outputs = engine.bind(arrays, into)
            arrays |= {name: array for name, array in outputs.items() if name not in into}
        if len(arrays["logits"]) != self._rows:
            raise BundleError(f"logits have {len(arrays['logits'])} rows, wanted {self._rows} as the tokens have")
