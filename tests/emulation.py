"""The CUDA kernels on NumPy arrays: their own source, compiled by g++ (`emulator/cuda.h`), or as a GPU runs them."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mmrt.runtime.devices.cuda import Gpu
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


class Card:
    """A GPU, which gets copies of the arrays, as far from an aligned address as they are here."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu, self._driver, self._stream = gpu, gpu.driver, gpu.driver.stream()

    def __call__(self, launches: Iterable[Launch], seed: int = 0) -> None:
        """Carry out launches, in order."""
        driver, stream = self._driver, self._stream
        for launch in launches:
            arrays = {id(each): each for each in launch.arguments if isinstance(each, np.ndarray) and each.nbytes}
            memory = {key: driver.allocate(array.nbytes + 16, stream) for key, array in arrays.items()}
            places = {key: driver.pointer(memory[key]) + arrays[key].ctypes.data % 16 for key in arrays}
            blocks = {key: self._gpu.block(array.nbytes) for key, array in arrays.items()}
            for key, array in arrays.items():
                blocks[key].bytes[: array.nbytes] = array.reshape(-1).view(np.uint8)
                driver.copy(places[key], blocks[key].pointer, array.nbytes, stream)
            values = [
                places.get(id(each), 0) if each is None or isinstance(each, np.ndarray) else each
                for each in launch.arguments
            ]
            kernel = self._gpu.kernel(launch.kernel)
            driver.launch(stream, kernel, launch.grid, launch.block, launch.shared, values)
            for key, array in arrays.items():
                driver.copy(blocks[key].pointer, places[key], array.nbytes, stream)
            driver.sync(stream)
            for key, array in arrays.items():
                array.reshape(-1).view(np.uint8)[:] = blocks[key].bytes[: array.nbytes]
                self._gpu.give(blocks[key], None)


def _value(argument: object) -> int:
    if argument is None:
        return 0
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous
        return int(argument.ctypes.data)
    assert isinstance(argument, np.int32 | int)  # an int is an address
    return int(argument)
