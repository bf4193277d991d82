"""Arrays at borders: their types, and the one check of what comes in against what the manifest says."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mmrt.runtime import manifest
from mmrt.runtime.errors import EngineError

AnyArray: TypeAlias = npt.NDArray[Any]
Float32: TypeAlias = npt.NDArray[np.float32]
Float64: TypeAlias = npt.NDArray[np.float64]
Int32: TypeAlias = npt.NDArray[np.int32]
Int64: TypeAlias = npt.NDArray[np.int64]
UInt8: TypeAlias = npt.NDArray[np.uint8]
UInt32: TypeAlias = npt.NDArray[np.uint32]
UInt64: TypeAlias = npt.NDArray[np.uint64]
_FLOATS = {"float32", "float16", "bfloat16"}


def fitted(
    arrays: Mapping[str, Any], specs: Mapping[str, manifest.Array], cast: Callable[[Any, str], Any] = np.ndarray.astype
) -> dict[str, Any]:
    """`arrays`, those of floats as wide as `specs` want them: copies where they are not, the arrays themselves else.

    `cast` is that of the arrays' device.
    """
    return {
        name: cast(array, specs[name].dtype)
        if name in specs and array.dtype.name != specs[name].dtype and {array.dtype.name, specs[name].dtype} <= _FLOATS
        else array
        for name, array in arrays.items()
    }


def need_bfloat16() -> None:
    """Let NumPy have the dtype "bfloat16". Raises `EngineError` where it cannot."""
    try:
        importlib.import_module("ml_dtypes")
    except ImportError:
        raise EngineError("NumPy has no bfloat16 without ml_dtypes: pip install ml_dtypes") from None


def mismatch(
    graph: str,
    side: str,
    specs: Mapping[str, manifest.Array],
    arrays: Mapping[str, Any],
    sizes: dict[str, int],
) -> str | None:
    """What is wrong with `arrays` as inputs (the `side`) of a graph with these `specs`, in one line; None if nothing.

    `sizes` are those of free dimensions that are known; it takes those that become known.
    """
    for name, spec in specs.items():
        if name not in arrays:
            return f"{graph}: {side} {name!r} is missing, wanted {spec}"
        array = arrays[name]
        fits = array.dtype == np.dtype(spec.dtype) and len(array.shape) == len(spec.shape)
        for size, dim in zip(array.shape, spec.shape, strict=False):
            fits = fits and size == (sizes.setdefault(dim, size) if isinstance(dim, str) else dim)
        if not fits:
            known = ", ".join(f"{dim} {size}" for dim, size in sizes.items() if dim in spec.shape)
            wanted = f"{spec} with {known}" if known else f"{spec}"
            return f"{graph}: {side} {name!r} is {array.dtype.name}{tuple(array.shape)}, wanted {wanted}"
    return None
