"""The kernels as a GPU runs them: what came with the package, else compiled here once by NVRTC and kept."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from mmrt.runtime import folders
from mmrt.runtime.errors import EngineError, RequestError
from mmrt.runtime.files import whole
from mmrt.runtime.kernels import BINARY, OPTIONS, source

_KEPT = 16  # of compiled programs, the last ones
_DIGEST = hashlib.sha256().digest_size


def binary(capability: tuple[int, int]) -> bytes:
    """A fat binary or cubin for GPUs of this compute capability.

    Raises `EngineError` where none came with the package, and NVRTC is missing or cannot compile one.
    """
    shipped = Path(__file__).with_name(BINARY)
    if shipped.exists():
        return shipped.read_bytes()
    nvrtc, version = _nvrtc()
    code = source()
    key = hashlib.sha256("\0".join((code, str(capability), version, *OPTIONS)).encode()).hexdigest()[:32]
    try:
        file = folders.own(folders.cache() / "kernels") / f"{key}.cubin"
    except EngineError:  # no folder, or one that others may write to: whatever is in it is not used
        return _compile(nvrtc, code, capability)
    found = _read(file)
    if found is None:
        found = _compile(nvrtc, code, capability)
        _keep(file, found)
    return found


def _read(file: Path) -> bytes | None:
    """What was kept, where every byte of it is there."""
    try:
        kept = file.read_bytes()
    except OSError:
        return None
    digest, found = kept[:_DIGEST], kept[_DIGEST:]
    return found if hashlib.sha256(found).digest() == digest else None


def _keep(file: Path, found: bytes) -> None:
    try:
        with whole(file) as beside:
            beside.write_bytes(hashlib.sha256(found).digest() + found)
        kept = sorted(file.parent.glob("*.cubin"), key=lambda each: each.stat().st_mtime)
        for old in kept[:-_KEPT]:
            old.unlink(missing_ok=True)
    except (OSError, RequestError):
        return  # it is compiled again the next time


def _nvrtc() -> tuple[Any, str]:
    """NVRTC's functions, and its version. Raises `EngineError` where it is not installed."""
    try:
        from cuda.bindings import nvrtc

        _, major, minor = nvrtc.nvrtcVersion()
    except Exception as error:  # cuda-bindings finds the library when it first calls it, and has no one error for it
        raise EngineError(
            f"this mmrt came without compiled kernels, and NVRTC cannot be used to compile them "
            f"({error}): pip install nvidia-cuda-nvrtc, or build mmrt's wheel where nvcc is"
        ) from None
    return nvrtc, f"{major}.{minor}"


def _compile(nvrtc: Any, code: str, capability: tuple[int, int]) -> bytes:
    """A cubin, which any driver of the same major version takes; PTX for a GPU that NVRTC does not know yet."""
    wanted = 10 * capability[0] + capability[1]
    older = [each for each in nvrtc.nvrtcGetSupportedArchs()[1] if each <= wanted]
    if not older:
        raise EngineError(f"the GPU has compute capability {wanted / 10}, which NVRTC no longer compiles for")
    exact = older[-1] == wanted
    _, program = nvrtc.nvrtcCreateProgram(code.encode(), b"kernels.cu", 0, [], [])
    try:
        options = [*OPTIONS, f"--gpu-architecture={'sm' if exact else 'compute'}_{older[-1]}"]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [each.encode() for each in options])
        if int(status):
            log = _bytes(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
            raise EngineError(f"NVRTC cannot compile the kernels: {log.rstrip(bytes(1)).decode()}")
        if exact:
            return _bytes(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
        return _bytes(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _bytes(size: Any, read: Any, program: Any) -> bytes:
    _, count = size(program)
    found: bytes = b" " * count
    read(program, found)  # writes into it
    return found
