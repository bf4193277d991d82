"""What is understood of a recording, window by window: its tokens, and segments between timestamps.

The rules are those of transformers' `WhisperForConditionalGeneration.generate` for recordings of any length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mmrt.runtime.arrays import Int64
from mmrt.runtime.events import Segment
from mmrt.runtime.manifest import Timestamps
from mmrt.runtime.search import Completion, Stopped


class Span(NamedTuple):
    """Tokens from timestamp to timestamp; `start` and `end` are steps from the window's beginning."""

    start: int
    end: int
    tokens: list[int]


class Transcript:
    """A recording of so many `frames` on its way through windows of `size`; `place` is where the next one begins."""

    def __init__(self, times: Timestamps, frames: int, size: int) -> None:
        self._times, self._frames, self._size = times, frames, size
        self.place = 0
        self._segments: list[tuple[float, float, list[int]]] = []
        self._stopped: Stopped = "end"
        self._window: list[int] = []  # the window's tokens so far
        self._certain = 0  # how many of them were given out

    @property
    def done(self) -> bool:
        """Whether all of the recording was read."""
        return self.place >= self._frames

    def push(self, token: int) -> list[int]:
        """The tokens that are certain with a new one and were not before: those of segments that are complete."""
        self._window.append(token)
        paired = len(self._window) > 1 and min(self._window[-2:]) >= self._times.first
        return self._tell(len(self._window) - 1) if paired else []

    def end(self, completion: Completion) -> list[int]:
        """End the window; its tokens that were not given out yet, without those of a segment that it cuts off."""
        tokens: list[int] = completion.tokens.tolist()
        self._stopped = completion.stopped
        read = min(self._size, self._frames - self.place)
        spans, moved = split(tokens[:-1] if completion.stopped == "end" else tokens, self._times, read)
        second = self._times.seconds / self._times.frames * self.place
        for span in spans:
            start, end = (second + step * self._times.seconds for step in (span.start, span.end))
            self._segments.append((start, end, span.tokens))
        self._window = [token for span in spans for token in span.tokens]
        rest = self._tell(len(self._window))
        self.place += moved
        self._window, self._certain = [], 0
        return rest

    def _tell(self, count: int) -> list[int]:
        told = self._window[self._certain : count]
        self._certain = count
        return told

    def completion(self) -> Completion:
        """All tokens, and why the last window's ended."""
        tokens: Int64 = np.array([token for *_, tokens in self._segments for token in tokens], np.int64)
        return Completion(tokens, None, self._stopped)

    def segments(self, text: Callable[[Sequence[int]], str]) -> list[Segment]:
        """The segments, with the `text` of their tokens."""
        return [Segment(start, end, text(tokens)) for start, end, tokens in self._segments]


def split(tokens: list[int], times: Timestamps, read: int) -> tuple[list[Span], int]:
    """A window's tokens, without the one that ends them, as spans; and by how many frames to go on, of those `read`.

    Where two timestamps follow each other, a span ends with the first of them. What comes after the last such pair is
    dropped, to be heard again in the next window, unless a single timestamp ends it: then nothing more is said in this
    one. A window without such a pair is one span.
    """
    closed = [place + 1 for place in range(len(tokens) - 1) if min(tokens[place : place + 2]) >= times.first]
    if not closed:
        last = max((token - times.first for token in tokens), default=0)
        return ([Span(0, last if last > 0 else read // times.frames, tokens)] if tokens else []), read
    finished = tokens[-2] < times.first <= tokens[-1]
    ends = [*closed, len(tokens)] if finished else [*closed[:-1], closed[-1] + 1]
    parts = [tokens[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    spans = [Span(part[0] - times.first, part[-1] - times.first, part) for part in parts]
    if finished:
        return spans, read
    end = parts[-1][-2] - times.first  # its last is the beginning of what is dropped
    return [*spans[:-1], spans[-1]._replace(end=end)], end * times.frames
