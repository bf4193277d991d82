"""A recipe of one's own: the function of a Python file that returns one."""

from __future__ import annotations

import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mmrt.export.recipe import Recipe
from mmrt.runtime.errors import ExportError, MmrtError

_NAMED = re.compile(r"(.+\.py):([A-Za-z_]\w*)")


class Function(NamedTuple):
    """A function of a Python file."""

    file: Path
    name: str

    def recipe(self) -> Recipe:
        """Run the file, then the function. Raises `ExportError` that says where they fail."""
        if not self.file.is_file():
            raise ExportError(f"{self.file}: no such file")
        try:
            with _importable(self.file):
                found = self._call()
        except MmrtError:
            raise
        except (Exception, SystemExit) as error:
            raise self._failed(error) from error
        if not isinstance(found, Recipe):
            raise ExportError(f"{self.file}: {self.name}() gives {type(found).__name__}, wanted a mmrt.export.Recipe")
        return found

    def _call(self) -> Any:
        spec = importlib.util.spec_from_file_location(self.file.stem, self.file)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[self.file.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not callable(function := getattr(module, self.name, None)):
            raise ExportError(f"{self.file}: has no function {self.name!r}")
        return function()

    def _failed(self, error: BaseException) -> ExportError:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(self.file)
        ]
        where = f"{self.file}, line {lines[-1]}" if lines else str(self.file)
        ended = "; a script's own work belongs under if __name__ == '__main__'" if isinstance(error, SystemExit) else ""
        return ExportError(f"{where}: {type(error).__name__}: {' '.join(str(error).split())}{ended}")


def function(named: str) -> Function | None:
    """The function that FILE.py:NAME names, if that is what it is."""
    match = _NAMED.fullmatch(named)
    return Function(Path(match[1]).absolute(), match[2]) if match else None


@contextmanager
def _importable(file: Path) -> Iterator[None]:
    """As for a script: what lies beside it can be imported, and its classes know their module."""
    folder, before = str(file.parent), sys.modules.get(file.stem)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        sys.modules.pop(file.stem, None)
        if before is not None:
            sys.modules[file.stem] = before
