"""`autoregress`: one token after the other, over caches of keys and values that stay where they are."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from mmrt.runtime import manifest
from mmrt.runtime.arrays import Float32, Int64, fitted
from mmrt.runtime.codes import Codes
from mmrt.runtime.devices import Array, Numbers, cpu
from mmrt.runtime.devices.choice import choice, refusal
from mmrt.runtime.engines import Call, Engine
from mmrt.runtime.errors import BundleError, RequestError
from mmrt.runtime.events import Event, Token
from mmrt.runtime.request import Request
from mmrt.runtime.search import Rows, Rules, Search, Stops, search
from mmrt.runtime.stages import Run, distinct, guided
from mmrt.runtime.stages.once import once
from mmrt.runtime.transcript import Transcript

_SMALLEST = 32  # places in the first buffers
_FIRST = 64  # new tokens that the first buffers have room for, if so many may come
_EARLY_STOPPING: Mapping[str, bool | str] = {"no": False, "yes": True, "never": "never"}


def autoregress(stage: manifest.Autoregress, engines: Mapping[str, Engine], run: Run) -> Iterator[Event]:
    """Yield a `Token` for every new token of every result as soon as it is certain, with beams at the end.

    Leaves int64 `sequences` (batch, longest), or (batch, longest, codebooks), in the request's arrays, and of beams
    their float32 `scores` (batch,); `run.completions` and `run.segments`.
    """
    words = [run.detokenizer.stream() if run.detokenizer else None for _ in range(run.request.batch)]
    for index, token in (_write if stage.windows is None else _read)(stage, engines, run):
        word = words[index]
        yield Token(index, token, word.push(token) if word else "")
    for index, word in enumerate(words):
        if word and (rest := word.finish()):
            yield Token(index, None, rest)
    sequences = _padded([each.tokens for each in run.completions], stage.pad)
    run.bring("sequences", sequences, np.arange(run.request.batch))
    scores = [each.score for each in run.completions if each.score is not None]
    if len(scores) == run.request.batch:
        run.bring("scores", np.array(scores, np.float32), np.arange(run.request.batch))


def _write(
    stage: manifest.Autoregress, engines: Mapping[str, Engine], run: Run, prompts: Sequence[Int64] = ()
) -> Iterator[tuple[int, int]]:
    """Yield every new token with its result's number; leaves `run.completions`."""
    request = run.request
    copies = 2 if guided(stage, request) else 1
    prompts = prompts or _prompts(stage, engines, run, copies)
    conditional = prompts[-request.batch // request.count :]  # unconditional ones come first
    rule = rules(stage, request, _limit(stage, engines) - max(map(len, prompts)))
    if copies == 2 and rule.beams > 1:
        raise RequestError(f"{stage.options['beams']} is {rule.beams}, wanted 1 with guidance")
    found: Search = (
        Codes(stage.delays, rule, conditional, run.uniforms())
        if stage.delays
        else search(rule, conditional, run.uniforms(), _stops(stage, run))
    )
    each = len(found.tokens) // sum(prompt[-1].size for prompt in conditional)
    loop = _Loop(stage, engines, run, prompts, copies, each, rule.max_new_tokens)
    newest = loop.prefill()
    rows = found if run.device.kind == "cuda" and isinstance(found, Rows) and not refusal(rule) else None
    if rows is not None:
        loop.choose_by(rule, conditional, newest)
    while not found.done:
        if rows is not None:
            rows.take(loop.choose())
        else:
            best = loop.step(newest)
            if (best is None or not found.follow(best)) and (order := found.advance(loop.logits())) is not None:
                loop.take(order)
            newest = found.tokens
        run.first_token = run.first_token or time.perf_counter() - run.started
        yield from found.certain()
    run.completions = found.results()


def _read(stage: manifest.Autoregress, engines: Mapping[str, Engine], run: Run) -> Iterator[tuple[int, int]]:
    """As `_write`, window by window; each result goes through its recording by itself. Leaves `run.segments` too."""
    windows, request = stage.windows, run.request
    assert windows is not None
    lengths = run.device.get(run.arrays[windows.lengths])[run.rows[windows.lengths]]
    if request.values[windows.timestamps.choice] != "yes":
        _open_window(windows, engines, run, [0] * request.batch)
        yield from _write(stage, engines, run)
        return
    if request.count > 1 and beams(stage, request) > 1:
        raise RequestError(f"{request.count} results of a recording with timestamps: wanted 1 where there are beams")
    transcripts = [Transcript(windows.timestamps, int(length), windows.size) for length in lengths]
    prompts: Sequence[Int64] = ()
    while active := [index for index, each in enumerate(transcripts) if not each.done]:
        part = run.part(active)
        _open_window(windows, engines, part, [transcripts[index].place for index in active])
        prompts = prompts or _prompts(stage, engines, part, copies=1)
        for row, token in _write(stage, engines, part, [prompts[index] for index in active]):
            yield from ((active[row], each) for each in transcripts[active[row]].push(token))
        run.first_token = run.first_token or part.first_token
        for index, completion in zip(active, part.completions, strict=True):
            yield from ((index, each) for each in transcripts[index].end(completion))
    run.completions = [each.completion() for each in transcripts]
    if run.detokenizer is not None:
        run.segments = [each.segments(run.detokenizer.text) for each in transcripts]


def _open_window(windows: manifest.Windows, engines: Mapping[str, Engine], run: Run, places: Sequence[int]) -> None:
    """Run the windows' graphs on what each result hears from its place on."""
    source, rows = run.device.get(run.arrays[windows.source]), run.rows[windows.source]
    cuts = list(zip(rows.tolist(), places, strict=True))
    window = np.zeros((len({*cuts}), source.shape[1], windows.size), source.dtype)
    for cut, (row, place) in zip(window, dict.fromkeys(cuts), strict=True):
        heard = source[row, :, place : place + windows.size]
        cut[:, : heard.shape[1]] = heard
    run.bring(windows.window, window, distinct(cuts))
    for _ in once(manifest.Once(graphs=windows.graphs), engines, run):
        pass


def _limit(stage: manifest.Autoregress, engines: Mapping[str, Engine]) -> int:
    """How many tokens a row can have: as many as the model and, where their lengths are fixed, the engines' caches."""
    specs = {name: spec for graph in stage.graphs for name, spec in engines[graph].inputs.items()}
    lengths = [specs[name].shape[2] for name in stage.caches]
    return min([stage.limit, *(length for length in lengths if isinstance(length, int))])


def rules(stage: manifest.Autoregress, request: Request, room: int) -> Rules:
    """What the stage and the request say of choosing tokens, with `room` for so many. Raises `RequestError`."""
    given = {option: request.values[name] for option, name in stage.options.items() if option != "stop"}
    if "early_stopping" in given:
        given["early_stopping"] = _EARLY_STOPPING[given["early_stopping"]]
    if (wanted := given.setdefault("max_new_tokens", stage.count or room)) > room:
        name = stage.options.get("max_new_tokens", "the number of new tokens")
        raise RequestError(f"{name} is {wanted}, the model has room for {room}")
    times = stage.windows.timestamps if stage.windows else None
    if 1 < beams(stage, request) < request.count:
        raise RequestError(
            f"{request.count} results a prompt of {given['beams']} beams: give at least as many beams as results"
        )
    return Rules(
        ends=stage.ends,
        pad=stage.pad,
        forced=request.tokens(stage.forced),
        forced_end=stage.forced_end,
        suppressed=stage.suppressed,
        begin_suppressed=stage.begin_suppressed,
        returned=request.count,
        timestamps=times if times and request.values[times.choice] == "yes" else None,
        **given,
    )


def beams(stage: manifest.Autoregress, request: Request) -> int:
    """How many are searched for a prompt; 1 where every row is on its own."""
    return int(request.values[stage.options["beams"]]) if "beams" in stage.options else 1


def _prompts(stage: manifest.Autoregress, engines: Mapping[str, Engine], run: Run, copies: int) -> Sequence[Int64]:
    """The tokens of every prompt, those of unconditional rows first."""
    count = copies * run.request.batch // run.request.count
    if not isinstance(stage.prompt, str):
        prompts: list[Int64] = [np.zeros(0, np.int64)] * count
        for token in stage.prompt:
            if isinstance(token, str) and token in run.request.detected:
                logits = _Loop(stage, engines, run, prompts, copies, each=1, new=1).first()
                options: Int64 = np.array(run.request.detected[token], np.int64)
                new = options[logits[:, options].argmax(axis=1)][:, None]
            else:
                new = np.tile(np.array(run.request.tokens((token,)), np.int64), (count, 1))
            prompts = [np.concatenate(both) for both in zip(prompts, new, strict=True)]
        return [np.tile(prompt[:, None], len(stage.delays)) for prompt in prompts] if stage.delays else prompts
    tokens = run.device.get(run.spread([stage.prompt], copies, 1)[stage.prompt])
    if stage.prompt_mask is None:
        return list(tokens)
    own = run.device.get(run.spread([stage.prompt_mask], copies, 1)[stage.prompt_mask]).sum(axis=1)
    if tokens.shape[1] < 1 or not own.all():
        raise BundleError(f"{stage.prompt} has a row without tokens")
    return [row[:length] for row, length in zip(tokens, own, strict=True)]


def _stops(stage: manifest.Autoregress, run: Run) -> Stops | None:
    """Whether a result's text holds one of the request's stop strings."""
    wanted: Sequence[str] = run.request.values[stage.options["stop"]] if "stop" in stage.options else ()
    if not wanted:
        return None
    detokenizer = run.detokenizer
    if detokenizer is None:
        raise RequestError(f"{stage.options['stop']} needs an output that is text")
    return lambda _, tokens: any(string in detokenizer.text(tokens) for string in wanted)


def _padded(sequences: Sequence[Int64], pad: int) -> Int64:
    longest = max(len(each) for each in sequences)
    whole = np.full((len(sequences), longest, *sequences[0].shape[1:]), pad, np.int64)
    for row, sequence in zip(whole, sequences, strict=True):
        row[: len(sequence)] = sequence
    return whole


class _Loop:
    """The stage's graphs over one set of buffers, bound anew only when these grow or another number of tokens comes.

    There are `each` rows for every prompt, which need not be equally long: what lies beyond a row's own position is
    written over before it is looked at. A step only writes and reads single numbers.
    """

    def __init__(
        self,
        stage: manifest.Autoregress,
        engines: Mapping[str, Engine],
        run: Run,
        prompts: Sequence[Int64],
        copies: int,
        each: int,
        new: int,
    ) -> None:
        self._stage, self._run, self._copies, self._each, self._device = stage, run, copies, each, run.device
        self._engines = {graph: engines[graph] for graph in stage.graphs}
        self._prompts = [prompt for prompt in prompts for _ in range(each)]
        given = run.spread((name for graph in self._engines.values() for name in graph.inputs), copies, each)
        self._given = {graph: fitted(given, it.inputs, self._device.cast) for graph, it in self._engines.items()}
        self._arrays: dict[str, Array] = {}  # of the loop itself
        self._first = max(map(len, self._prompts)) - 1 + min(new, _FIRST)  # places that are wanted for sure
        self._length = self._capacity = 0  # of the longest row
        self._width = self._size = 0  # tokens that the graphs are bound for: of a row, of all
        self._calls: dict[str, Call] = {}
        specs = {name: spec for engine in self._engines.values() for name, spec in engine.inputs.items()}
        sizes = {dim: size for engine in self._engines.values() for dim, size in engine.sizes.items()}
        rows = len(self._prompts)
        self._least = _SMALLEST
        for name in stage.caches:
            _, heads, length, width = specs[name].shape
            self._least = length if isinstance(length, int) else sizes.get(length, self._least)
            self._arrays[name] = self._device.zeros((rows, heads, 0, width), specs[name].dtype)  # type: ignore[arg-type]
        self._arrays["positions"] = self._device.zeros((rows,), np.int64)
        self._positions, self._places = self._device.numbers(self._arrays["positions"]), [0] * rows
        self._tokens: Numbers | None = None
        self._likeliest: Numbers | None = None
        self._choice: dict[str, Array] = {}  # by which the device chooses

    def prefill(self) -> list[int]:
        """Put all but the last token of every prompt into the caches; the last ones, which need not be alike where a
        prompt has an unconditional row."""
        if (longest := max(map(len, self._prompts))) > 1:
            self._bind(longest - 1, longest - 1)
            self._device.write(self._arrays["tokens"], _padded(self._prompts, self._stage.pad)[:, : longest - 1])
            self._run_graphs()
        self._places = [len(prompt) - 1 for prompt in self._prompts]
        return [int(token) for prompt in self._prompts for token in np.ravel(prompt[-1])]

    def first(self) -> Float32:
        """What follows the prompts, (rows, vocabulary)."""
        self.step(self.prefill())
        return self.logits()

    def step(self, tokens: list[int]) -> list[int] | None:
        """Put one more token into every row, those of a prompt's rows in step; the most likely ones that follow, if a
        graph says so."""
        if self._length == self._capacity or self._width != 1:
            self._bind(self._length + 1, 1)
        assert self._tokens is not None
        self._tokens.write(tokens * (self._size // len(tokens)))
        self._positions.write(self._places)
        self._run_graphs()
        self._places = [place + 1 for place in self._places]
        return self._likeliest.read() if self._likeliest is not None else None

    def choose_by(self, rules: Rules, prompts: Sequence[Int64], newest: list[int]) -> None:
        """From now on let the device choose, after the `newest` tokens, for the rows of these conditional `prompts`:
        see `choose`."""
        device, arrays, rows = self._device, self._arrays, len(prompts) * self._each
        self._bind(self._length + 1, 1)
        assert self._tokens is not None
        self._tokens.write(newest)
        self._positions.write(self._places)
        uniforms = np.zeros((rows, 1))
        if rules.temperature:
            uniforms = np.array([[draw() for _ in range(rules.max_new_tokens)] for draw in self._run.uniforms()])
        scale = self._run.request.values[self._stage.guidance.scale] if self._stage.guidance else 1.0
        made = choice(rules, prompts, uniforms, arrays["logits"].shape[1], scale)
        self._choice = {name: device.put(array) for name, array in made.items()}
        self._go_on = self._chosen_round()

    def choose(self) -> list[int]:
        """Go on with the newest tokens, and choose those that follow, where the logits are."""
        if self._length == self._capacity:
            self._bind(self._length + 1, 1)
            self._go_on = self._chosen_round()
        self._go_on()
        self._length += 1
        assert self._tokens is not None
        return self._tokens.read()[-len(self._choice["starts"]) :]

    def _chosen_round(self) -> Callable[[], None]:
        arrays = {name: self._arrays[name] for name in ("logits", "tokens", "positions")}
        after = partial(self._device.choose_token, **arrays, **self._choice)
        return self._run.round(self._calls, after)

    def logits(self) -> Float32:
        """What follows, (rows, vocabulary)."""
        logits: Float32 = self._device.get(self._arrays["logits"])
        if self._copies == 1:
            return logits
        assert self._stage.guidance is not None
        return cpu.guide(logits, self._run.request.values[self._stage.guidance.scale])

    def take(self, rows: Int64) -> None:
        """Let each row go on from the row that is named, in what was written so far."""
        for name in self._stage.caches:
            self._device.reorder_rows(self._arrays[name], rows, self._each, self._length)

    def _run_graphs(self) -> None:
        device, marks = self._device, self._run.marks
        for graph, call in self._calls.items():
            started = device.mark()
            call()
            marks.append((graph, started, device.mark()))
        self._length += self._width

    def _bind(self, end: int, width: int) -> None:
        arrays, rows = self._arrays, len(self._prompts)
        while max(end, self._first) > self._capacity:
            self._capacity = max(2 * self._capacity, self._least)
        for name in self._stage.caches:
            if arrays[name].shape[2] < self._capacity:
                arrays[name] = self._device.enlarge(arrays[name], self._capacity, self._length)
        if width != self._width:
            arrays["tokens"] = self._device.empty((rows, width, *self._prompts[0].shape[1:]), np.int64)
            self._tokens, self._width = self._device.numbers(arrays["tokens"]), width
            self._size = math.prod(arrays["tokens"].shape)
        for graph, engine in self._engines.items():
            into: dict[str, Array] = {
                new: arrays[old] for old, new in self._stage.caches.items() if new in engine.outputs
            }
            given, last = self._given[graph] | arrays, self._calls.get(graph)
            self._calls[graph], outputs = engine.bind(given, into, self._device, last)
            arrays |= {name: array for name, array in outputs.items() if name not in into}
        for name in ("logits", "likeliest"):
            if name in arrays and len(arrays[name]) != rows:
                raise BundleError(f"{name} has {len(arrays[name])} rows, wanted {rows} as the tokens have")
        if self._copies == 1 and any("likeliest" in engine.outputs for engine in self._engines.values()):
            self._likeliest = self._device.numbers(arrays["likeliest"])
