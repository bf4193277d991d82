"""Files of subtitles, written out by hand."""

from __future__ import annotations

from mmrt.cli.subtitles import srt, vtt
from mmrt.runtime.events import Segment

SEGMENTS = [Segment(0.0, 1.5, " Hello"), Segment(3599.9996, 36000.02, " a < b\n\n & c ")]


def test_srt() -> None:
    assert srt(SEGMENTS) == ("1\n00:00:00,000 --> 00:00:01,500\nHello\n\n2\n01:00:00,000 --> 10:00:00,020\na < b & c\n")
    assert srt([]) == ""


def test_vtt() -> None:
    assert vtt(SEGMENTS) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello\n\n01:00:00.000 --> 10:00:00.020\na &lt; b &amp; c\n"
    )
    assert vtt([]) == "WEBVTT\n"
