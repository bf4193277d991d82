"""The CUDA kernels of the loops: their source, how it is compiled, and how each operation of a device launches them.

This file needs nothing but Python: the build of a wheel runs it too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

SOURCES = ("floats", "normal", "guide_and_step", "choose_token", "rows", "pixels")
ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 110, 120)  # 75 is Turing, 87 Jetson Orin, 110 Thor
BINARY = "kernels.fatbin"
OPTIONS = ("-std=c++17", "--fmad=false")


def source() -> str:
    """All kernels as one program in CUDA C++."""
    folder = Path(__file__).parent
    return "".join(f'#line 1 "{name}.cu"\n{(folder / f"{name}.cu").read_text("utf-8")}' for name in SOURCES)


def nvcc() -> str | None:
    """CUDA's compiler, where there is one."""
    homes = [os.path.join(home, "bin") for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if home]
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(homes))


def build(compiler: str, file: Path, options: Sequence[str] = ()) -> str:
    """Compile the kernels into one fat binary, for all of `ARCHITECTURES` that the compiler knows and cards to come.

    Returns what the compiler said. Raises `RuntimeError` with that where it fails.
    """
    code = file.with_suffix(".cu")
    code.write_text(source(), "utf-8")
    known = _run([compiler, "--list-gpu-arch"]).split()
    wanted = [each for each in ARCHITECTURES if f"compute_{each}" in known]
    targets = [f"-gencode=arch=compute_{each},code=sm_{each}" for each in wanted]
    targets.append(f"-gencode=arch=compute_{wanted[-1]},code=compute_{wanted[-1]}")
    shape = "--threads=2", "-Xfatbin=-compress-all", "-fatbin", "-o", str(file)
    told = _run([compiler, *OPTIONS, *options, *targets, *shape, str(code)])
    code.unlink()
    return told


def _run(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}")
    return done.stdout
