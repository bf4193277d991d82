"""Engines that are built while another engine serves, by a process of its own that outlives the one that began it.

What that process says goes into a log in the user's cache, which is named by all that can change how it ends: the
bundle, the library and its version, the GPU, the precision. It has the log locked as long as it lives, however it ends.
So the log says how things stand: where there is none, nothing was begun; while it is locked, it is being written; else
its last line is how it ended. What was cut off is begun again, three times in all. What failed is not, since it would
fail again and take minutes of the GPU: that is for `mmrt build`, which is asked.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Literal, cast

from mmrt.runtime import folders, locks
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.devices.cuda import Gpu
from mmrt.runtime.engines.nvidia import NAMES, Kind, Library, capability
from mmrt.runtime.errors import one_line
from mmrt.version import __version__

DONE = "engines are in"  # how the last line of a building begins that succeeded
_FAILED = ("mmrt: ", "Traceback")  # how a line begins that says why one failed
_HEAD = "mmrt build "  # how the first line of each begins
_TRIES = 3  # of what is cut off
_NICE = 10  # how far the process stands back behind others for the processors
# `python -m mmrt`, whose modules are where this process found its own
_MAIN = """
import sys
sys.path[:] = sys.argv.pop(1).split("\\n")
import runpy
runpy.run_module("mmrt", run_name="__main__")
"""

State = Literal["none", "running", "done", "failed", "cut off"]


class Building:
    """The building of a bundle's engines for one GPU. As text, how it stands; `notice` says that it is under way."""

    def __init__(self, bundle: Bundle, engine: str, place: Gpu, precision: str) -> None:
        """`engine`: that of TensorRT or TensorRT-RTX; `precision`: the one that was asked for.

        Raises `EngineError` where the library or the cache is of no use.
        """
        kind = cast("Kind", engine)
        parts = (bundle.sha256, kind, Library(kind).version, capability(place), precision, __version__)
        name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
        self.log = folders.own(folders.cache() / "builds") / f"{name}.log"
        self._what = f"{NAMES[kind]} engines of {bundle.path}"
        self.notice = f"{self._what} are being built in the background for the next load ({self.log})"
        self._again = f"mmrt build {bundle.path} --target {kind}"
        wanted = ("--target", kind, "--precision", precision, "--device", place.name)
        self._command = ("build", str(bundle.path.resolve()), *wanted)

    def __str__(self) -> str:
        last = next(iter(self._lines()[::-1]), "it says nothing")
        match self.state():
            case "none":
                return f"no {self._what} were built in the background"
            case "running":
                return f"{self.notice}: {last}"
            case "done":
                return f"{self._what} have been built for the next load ({self.log})"
            case "cut off":
                return f"the building of {self._what} was cut off: {last} ({self.log})"
            case "failed":
                return f"{self._what} could not be built: {last} ({self.log}); {self._again} tries again"

    def state(self) -> State:
        """How it stands: of whatever process has begun it."""
        try:
            with self.log.open("rb") as log:
                return self._ended() if locks.lock(log, shared=True) else "running"
        except OSError:
            return "none"

    def begin(self) -> None:
        """Begin, unless it is under way or has failed, or there can be no such process here."""
        if self.state() in ("running", "failed") or not _has_python():
            return
        with suppress(OSError), self.log.open("ab") as log:
            if locks.lock(log) and (state := self._ended()) != "failed":  # no other process was quicker
                if state == "done":
                    log.truncate(0)
                log.write(f"mmrt {' '.join(self._command)}\n".encode())
                log.flush()
                self._start(log.fileno())

    def _ended(self) -> State:
        """How it stands where it is not under way."""
        lines = self._lines()
        if not lines:
            return "none"
        if lines[-1].startswith(DONE):
            return "done"
        tries = sum(line.startswith(_HEAD) for line in lines)
        return "failed" if tries >= _TRIES or any(line.startswith(_FAILED) for line in lines) else "cut off"

    def _start(self, log: int) -> None:
        """Start the process, which inherits the log with its lock, and neither the terminal nor its signals."""
        paths = "\n".join(map(os.path.abspath, sys.path))
        command = [sys.executable, "-c", _MAIN, paths, *self._command]
        nothing, both = subprocess.DEVNULL, subprocess.STDOUT
        try:
            child = subprocess.Popen(command, stdin=nothing, stdout=log, stderr=both, start_new_session=True)
        except OSError as error:
            os.write(log, f"mmrt: no process can be started: {error}\n".encode())
            return
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, child.pid, os.getpriority(os.PRIO_PROCESS, 0) + _NICE)
        threading.Thread(target=child.wait, name="mmrt build", daemon=True).start()  # or its end stays in the system

    def _lines(self) -> list[str]:
        """What the log has."""
        try:
            text = self.log.read_text("utf-8", errors="replace")
        except OSError:
            return []
        return [one_line(line) for line in text.splitlines() if line.strip()]


def _has_python() -> bool:
    """Whether this process is Python itself, and not a program that Python is a part of."""
    return not getattr(sys, "frozen", False) and "python" in Path(sys.executable or "").name.lower()
