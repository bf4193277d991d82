"""TensorRT and TensorRT-RTX: two Python modules with one API, imported only when an engine is wanted."""

from __future__ import annotations

import importlib
import threading
import weakref
from typing import Any, Literal

from mmrt.runtime.errors import EngineError

Kind = Literal["tensorrt", "tensorrt-rtx"]

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_EXTRAS = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
NAMES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "UINT8": "uint8",
    "BOOL": "bool",
}
_IDLE: list[tuple[Any, Any]] = []  # modules' loggers that nobody uses
_LOCK = threading.Lock()


def capability(place: Any) -> str:
    """The compute capability of a place's GPU, such as 8.9."""
    return "{}.{}".format(*place.driver.capability)


class Library:
    """One of the two: its `module`, its `version`, and a `log` for what it creates."""

    def __init__(self, kind: Kind) -> None:
        """Raises `EngineError` where it is not installed."""
        self.kind = kind
        self.name = NAMES[kind]
        try:
            self.module: Any = importlib.import_module(_MODULES[kind])
        except (ImportError, OSError) as error:  # a library that it needs may be missing
            absent = isinstance(error, ModuleNotFoundError) and error.name == _MODULES[kind]
            what = "is not installed" if absent else f"cannot be loaded ({error})"
            raise EngineError(f"{self.name} {what}: pip install 'mmrt[{_EXTRAS[kind]}]'") from None
        self.version = str(self.module.__version__)
        self.log = _log(self.module)
        weakref.finalize(self, _IDLE.append, (self.module, self.log))

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def _log(module: Any) -> Any:
    """A logger that prints nothing; `take()` gives the errors since the last time as one line.

    It is never let go, but lent again: the library goes on with the first that it was given, whose ever it was.
    """
    with _LOCK:
        for index, (of, log) in enumerate(_IDLE):
            if of is module:
                del _IDLE[index]
                log.take()
                return log

    class Log(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._errors: list[str] = []
            self._lock = threading.Lock()

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR):
                with self._lock:
                    self._errors.append(message)

        def take(self) -> str:
            with self._lock:
                errors, self._errors = self._errors, []
            return " ".join(" ".join(errors).split())

    return Log()
