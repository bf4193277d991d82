"""Locks on files, which go with the last process that has the file open, however it ends."""

from __future__ import annotations

import sys
from typing import IO

if sys.platform != "win32":
    import fcntl


def lock(file: IO[bytes], *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file until it is closed here and in the processes that inherited it; whether it is locked now.

    `shared`: together with others who share it. Raises `OSError` where the file's system or this one has no locks.
    """
    if sys.platform == "win32":
        raise OSError("files cannot be locked for other processes here")
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, how if wait else how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
