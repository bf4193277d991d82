"""The user's own folders: what mmrt keeps between runs, and what the user has decided."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from mmrt.runtime.errors import EngineError


def cache() -> Path:
    """What can be made again: built engines."""
    return _folder("XDG_CACHE_HOME", ".cache", "cache")


def config() -> Path:
    """What the user has decided."""
    return _folder("XDG_CONFIG_HOME", ".config", "config")


def own(folder: Path) -> Path:
    """The folder, made where it is missing. Raises `EngineError` where others could have put something into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
    except OSError as error:
        raise EngineError(f"{folder}: cannot be used: {error.strerror or error}") from None
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise EngineError(f"{folder}: others may write to it, and what is in it is run: chmod go-w it, or move it away")
    return folder


def _folder(variable: str, of_home: str, of_windows: str) -> Path:
    if given := os.environ.get(variable):
        return Path(given) / "mmrt"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "mmrt" / of_windows
    return Path.home() / of_home / "mmrt"
