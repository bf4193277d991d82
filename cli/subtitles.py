"""Segments of a recording as files of subtitles."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmrt.runtime.events import Segment


def srt(segments: Sequence[Segment]) -> str:
    """SubRip: numbered, with a comma before the milliseconds."""
    blocks = (f"{number}\n{_times(each, ',')}\n{_line(each)}\n" for number, each in enumerate(segments, 1))
    return "\n".join(blocks)


def vtt(segments: Sequence[Segment]) -> str:
    """WebVTT (W3C)."""
    return "\n".join(["WEBVTT\n", *(f"{_times(each, '.')}\n{_escaped(_line(each))}\n" for each in segments)])


SUBTITLES: dict[str, Callable[[Sequence[Segment]], str]] = {".srt": srt, ".vtt": vtt}


def _times(segment: Segment, point: str) -> str:
    return f"{_time(segment.start, point)} --> {_time(segment.end, point)}"


def _time(seconds: float, point: str) -> str:
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{milliseconds:03}"


def _line(segment: Segment) -> str:
    """The text on one line: an empty one would end the block."""
    return " ".join(segment.text.split())


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
