"""Runs the CUDA kernels' launches on NumPy arrays, by the kernels' own source, compiled by g++ (`emulator/cuda.h`)."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mmrt.runtime.kernels import source
from mmrt.runtime.kernels.launch import Launch

HEADER = Path(__file__).parent / "emulator" / "cuda.h"
ARGUMENTS = 24
COMPILER = shutil.which("g++")


class Emulator:
    """The kernels, compiled into a folder."""

    def __init__(self, folder: Path) -> None:
        code, library = folder / "kernels.cpp", folder / "kernels.so"
        code.write_text(f'#include "{HEADER}"\n{source()}', "utf-8")
        options = ["-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-Wno-unknown-pragmas", "-w"]
        assert COMPILER is not None
        subprocess.run([COMPILER, *options, "-o", library, code], check=True)
        self._library = ctypes.CDLL(str(library))

    def __call__(self, launches: Iterable[Launch], seed: int = 0) -> None:
        """Carry out launches, in order. `seed` says in which order threads and blocks go."""
        for launch in launches:
            assert len(launch.arguments) <= ARGUMENTS
            values = (ctypes.c_int64 * ARGUMENTS)(*map(_value, launch.arguments))
            sizes = [(ctypes.c_int * 3)(*size) for size in (launch.grid, launch.block)]
            kernel = ctypes.cast(getattr(self._library, launch.kernel), ctypes.c_void_p)
            if self._library.emulate(kernel, values, *sizes, ctypes.c_uint64(seed)):
                raise RuntimeError(f"{launch.kernel}: threads wait for others that do not come")


def _value(argument: object) -> int:
    if argument is None:
        return 0
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous
        return int(argument.ctypes.data)
    assert isinstance(argument, np.int32 | int)  # an int is an address
    return int(argument)
