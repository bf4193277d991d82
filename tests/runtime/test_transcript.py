"""What is understood of a recording, against windows whose tokens are written out by hand: 100 and more are times."""

from __future__ import annotations

import numpy as np
import pytest

from mmrt.runtime.events import Segment
from mmrt.runtime.manifest import Timestamps
from mmrt.runtime.search import Completion, Stopped
from mmrt.runtime.transcript import Span, Transcript, split

TIMES = Timestamps(choice="timestamps", first=100, without=99, frames=2, seconds=0.5)
SPLITS: dict[str, tuple[list[int], list[tuple[int, int, list[int]]], int]] = {  # tokens, spans, frames to go on
    "two segments, the next one is cut off": (
        [100, 1, 2, 103, 103, 3, 107, 107, 4],
        [(0, 3, [100, 1, 2, 103]), (3, 7, [103, 3, 107, 107])],
        14,
    ),
    "two segments, the next one begins": (
        [100, 1, 103, 104, 3, 107, 108],
        [(0, 3, [100, 1, 103]), (4, 7, [104, 3, 107, 108])],
        14,
    ),
    "two segments, nothing more is said": (
        [100, 1, 103, 104, 3, 107],
        [(0, 3, [100, 1, 103]), (4, 7, [104, 3, 107])],
        20,
    ),
    "one segment": ([100, 1, 104], [(0, 4, [100, 1, 104])], 20),
    "one segment without an end": ([100, 1, 2], [(0, 10, [100, 1, 2])], 20),
    "one segment and the next begins": ([101, 1, 104, 104], [(1, 4, [101, 1, 104, 104])], 8),
    "nothing": ([], [], 20),
}


@pytest.mark.parametrize("name", SPLITS)
def test_split(name: str) -> None:
    tokens, spans, moved = SPLITS[name]
    assert split(tokens, TIMES, read=20) == ([Span(*span) for span in spans], moved)


def window(tokens: list[int], stopped: Stopped = "end") -> Completion:
    return Completion(np.array(tokens, np.int64), None, stopped)


def test_windows_one_after_the_other() -> None:
    """The second begins where the first's last segment ends, and is shorter as the recording ends there."""
    transcript = Transcript(TIMES, frames=26, size=20)
    told = [token for each in [100, 1, 103, 103, 2, 107, 107, 3, 9] for token in transcript.push(each)]
    assert told == [100, 1, 103, 103, 2, 107]  # the segments that are complete
    assert transcript.end(window([100, 1, 103, 103, 2, 107, 107, 3, 9])) == [107]
    assert (transcript.place, transcript.done) == (14, False)
    assert [transcript.push(each) for each in [100, 3, 105]] == [[], [], []]
    assert transcript.end(window([100, 3, 105], "length")) == [100, 3, 105]
    assert transcript.done
    assert transcript.completion().tokens.tolist() == [100, 1, 103, 103, 2, 107, 107, 100, 3, 105]
    assert transcript.completion().stopped == "length"
    words = [Segment(0, 1.5, "1"), Segment(1.5, 3.5, "2"), Segment(3.5, 6, "3")]
    assert transcript.segments(lambda tokens: "".join(str(token) for token in tokens if token < 99)) == words


def test_a_window_without_tokens_is_passed_over() -> None:
    transcript = Transcript(TIMES, frames=30, size=20)
    assert transcript.end(window([9])) == []
    assert transcript.end(window([])) == []
    assert transcript.done
    assert transcript.segments(str) == []
