"""What pyproject.toml cannot say: a wheel that is built where nvcc is brings the kernels compiled."""

from __future__ import annotations

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

KERNELS = "mmrt/runtime/kernels"


class Build(build_py):
    """Compiles the kernels into the wheel; an editable install, or a machine without nvcc, compiles at first use."""

    def run(self) -> None:
        super().run()
        kernels = runpy.run_path(str(Path("src", KERNELS, "__init__.py")))
        compiler = kernels["nvcc"]()
        if compiler and not self.editable_mode:
            kernels["build"](compiler, Path(self.build_lib, KERNELS, kernels["BINARY"]))


setup(cmdclass={"build_py": Build})
