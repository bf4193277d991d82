"""The kernels compiled for real: for every architecture by nvcc, and at first use by NVRTC, whose work is kept."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from mmrt.runtime import kernels
from mmrt.runtime.errors import EngineError
from mmrt.runtime.kernels import ARCHITECTURES, compiled

FAKE_NVCC = """#!{python}
import sys
if "--list-gpu-arch" in sys.argv:
    print("compute_75\\ncompute_90\\ncompute_100")
elif "--broken" in sys.argv:
    sys.exit("kernels.cu(3): error: that is not C++")
else:
    code = open(sys.argv[-1]).read()
    open(sys.argv[sys.argv.index("-o") + 1], "w").write(f"{{len(code)}} {{sys.argv[1:]}}")
"""


@pytest.mark.skipif(kernels.nvcc() is None, reason="needs nvcc")
def test_nvcc_compiles_every_kernel_without_local_memory_for_every_architecture(tmp_path: Path) -> None:
    compiler = kernels.nvcc()
    assert compiler is not None
    told = kernels.build(compiler, tmp_path / "kernels.fatbin", ["-Xptxas=-v"])
    found = re.findall(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        told,
        re.DOTALL,
    )
    assert {int(architecture) for _, architecture, *_ in found} == set(ARCHITECTURES)
    assert len(found) == len(ARCHITECTURES) * len({name for name, *_ in found})
    assert len({name for name, *_ in found}) == 35
    assert [each for each in found if each[2:5] != ("0", "0", "0")] == []
    assert "warning" not in told
    assert 100_000 < (tmp_path / "kernels.fatbin").stat().st_size < 2_000_000


@pytest.fixture
def fake_nvcc(tmp_path: Path) -> str:
    path = tmp_path / "nvcc"
    path.write_text(FAKE_NVCC.format(python=sys.executable))
    path.chmod(0o755)
    return str(path)


def test_an_older_nvcc_compiles_for_what_it_knows(fake_nvcc: str, tmp_path: Path) -> None:
    kernels.build(fake_nvcc, tmp_path / "kernels.fatbin")
    told = (tmp_path / "kernels.fatbin").read_text()
    assert told.startswith(f"{len(kernels.source())} ")
    assert [each for each in ("sm_75", "sm_90", "sm_100", "code=compute_100") if each not in told] == []
    assert "sm_80" not in told
    assert "--fmad=false" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kernels.fatbin", "nvcc"]


def test_what_nvcc_says_is_said(fake_nvcc: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="that is not C"):
        kernels.build(fake_nvcc, tmp_path / "kernels.fatbin", ["--broken"])


def test_nvcc_is_found_where_cuda_is(fake_nvcc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    assert kernels.nvcc() is None
    (tmp_path / "bin").mkdir()
    Path(fake_nvcc).rename(tmp_path / "bin" / "nvcc")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert kernels.nvcc() == str(tmp_path / "bin" / "nvcc")


# ---------------------------------------------------------------- NVRTC


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "mmrt" / "kernels"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """For which GPUs was compiled: in place of NVRTC, a stub that gives the source's length."""
    made: list[tuple[int, int]] = []

    def compile_(_: object, code: str, capability: tuple[int, int]) -> bytes:
        made.append(capability)
        return f"{len(code)} {capability}".encode()

    monkeypatch.setattr(compiled, "_nvrtc", lambda: (None, "13.5"))
    monkeypatch.setattr(compiled, "_compile", compile_)
    return made


def test_nvrtc_compiles_the_kernels(cache: Path) -> None:
    try:
        compiled._nvrtc()
    except EngineError as error:
        pytest.skip(str(error))
    found = compiled.binary((8, 9))
    assert found[:4] == b"\x7fELF"
    assert b"guide_and_step_float16_float32" in found
    [kept] = cache.iterdir()
    assert kept.read_bytes()[32:] == found
    with pytest.raises(EngineError, match=r"compute capability 5\.2, which NVRTC no longer compiles for"):
        compiled.binary((5, 2))


def test_what_was_compiled_is_kept(cache: Path, calls: list[tuple[int, int]]) -> None:
    first = compiled.binary((8, 9))
    assert compiled.binary((8, 9)) == first
    assert compiled.binary((9, 0)) != first
    assert calls == [(8, 9), (9, 0)]
    assert len(list(cache.iterdir())) == 2
    assert cache.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("of", ["source", "version"])
def test_another_source_or_compiler_compiles_anew(
    of: str, cache: Path, calls: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled.binary((8, 9))
    if of == "source":
        monkeypatch.setattr(compiled, "source", lambda: "other")
    else:
        monkeypatch.setattr(compiled, "_nvrtc", lambda: (None, "13.6"))
    compiled.binary((8, 9))
    assert len(calls) == 2


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_a_damaged_file_is_as_none(damage: bytes | None, cache: Path, calls: list[tuple[int, int]]) -> None:
    found = compiled.binary((8, 9))
    [kept] = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:-1] + b"x" if damage is None else damage)
    assert compiled.binary((8, 9)) == found
    assert len(calls) == 2
    assert compiled.binary((8, 9)) == found
    assert len(calls) == 2


def test_the_cache_is_bounded(cache: Path, calls: list[tuple[int, int]]) -> None:
    for minor in range(40):
        compiled.binary((8, minor))
    assert len(list(cache.iterdir())) == 16
    compiled.binary((8, 39))
    assert len(calls) == 40


def test_without_a_cache_it_works_too(
    cache: Path, calls: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.write_text("a file where the folder should be")
    assert compiled.binary((8, 9)) == compiled.binary((8, 9))
    assert len(calls) == 2
    cache.parent.unlink()
    cache.mkdir(parents=True)
    cache.chmod(0o777)  # anyone could have put something into it
    assert compiled.binary((8, 9)) == compiled.binary((8, 9))
    assert list(cache.iterdir()) == []


def test_without_nvrtc_it_is_said_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(EngineError, match="pip install nvidia-cuda-nvrtc"):
        compiled.binary((8, 9))


def test_kernels_that_came_with_the_package_are_taken(
    tmp_path: Path, calls: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / kernels.BINARY).write_bytes(b"all of them")
    monkeypatch.setattr(compiled, "__file__", str(tmp_path / "compiled.py"))
    assert compiled.binary((8, 9)) == b"all of them"
    assert not calls
