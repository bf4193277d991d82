"""A bundle appears whole or not at all: written beside its place, flushed to the disk, then renamed.

The folder beside is `.NAME.PID.part`; one that is left lying is of a process that was killed and may be deleted.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from mmrt.runtime import manifest
from mmrt.runtime.bundle import MANIFEST, hash_file
from mmrt.runtime.errors import ExportError


@contextlib.contextmanager
def staging(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill, which becomes `target` at the end; after any error or signal it is gone instead.

    Raises `ExportError` where `target` exists (unless `overwrite`, and it is a bundle) or cannot be written.
    """
    target = Path(os.path.abspath(target))
    check_free(target, overwrite)
    folder = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    except OSError as error:
        raise ExportError(f"{target}: cannot be written: {error.strerror or error}") from None
    with _removed_at_end(folder), _sigterm_raises():
        try:
            yield folder
            _flush(folder)
            check_free(target, overwrite)
            _put_in_place(folder, target)
        except OSError as error:
            raise ExportError(f"{target}: cannot be written: {error.strerror or error}") from error


def check_free(target: Path, overwrite: bool) -> None:
    """Refuse a target that is there, unless it is a bundle that may be replaced."""
    if not target.parent.is_dir():
        raise ExportError(f"{target}: cannot be written: the folder {target.parent} does not exist")
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise ExportError(f"{target}: already exists; choose another name or overwrite it (--overwrite)")
    if target.is_symlink() or not (target / MANIFEST).is_file():
        raise ExportError(f"{target}: is not a bundle, and only a bundle is overwritten")


def list_files(folder: Path) -> dict[str, manifest.File]:
    """All files under `folder` but the manifest, with sizes and hashes, by their paths from it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {path.relative_to(folder).as_posix(): file_entry(path) for path in paths}


def file_entry(path: Path) -> manifest.File:
    """A file's size and hash."""
    return manifest.File(bytes=path.stat().st_size, sha256=hash_file(path))


@contextlib.contextmanager
def _removed_at_end(folder: Path) -> Iterator[None]:
    def remove() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)  # a generator that an interrupt left hanging is not closed before the process ends
    try:
        yield
    finally:
        remove()
        atexit.unregister(remove)


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM unwind the stack, where nobody else handles it."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _flush(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(folder: Path, target: Path) -> None:
    """Rename; an old bundle steps aside first, and comes back if the new one cannot take its place."""
    aside = folder.with_suffix(".old")
    if target.exists():
        target.rename(aside)
    try:
        folder.rename(target)
    except BaseException:
        if aside.exists():
            aside.rename(target)
        raise
    _fsync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)
