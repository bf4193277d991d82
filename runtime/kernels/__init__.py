"""The CUDA kernels of the loops: their source, how it is compiled, and how each operation of a device launches them."""

from __future__ import annotations

from pathlib import Path

SOURCES = ("floats", "normal", "guide_and_step", "choose_token", "rows", "pixels")


def source() -> str:
    """All kernels as one program in CUDA C++."""
    folder = Path(__file__).parent
    return "".join(f'#line 1 "{name}.cu"\n{(folder / f"{name}.cu").read_text("utf-8")}' for name in SOURCES)
