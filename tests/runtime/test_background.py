"""Engines that are built in the background, with doubles of TensorRT and of the GPU in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tensorrt_double
from tensorrt_double import Gpu

import mmrt
from mmrt.runtime import background, folders, selection
from mmrt.runtime.background import Building
from mmrt.runtime.build import Waiting, build
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.devices import cuda
from mmrt.runtime.engines.builder import Building as Progress
from mmrt.runtime.errors import EngineWarning
from mmrt.runtime.pipeline import Pipeline

HAS_PYTHON = background._has_python  # before the tests are told that there is none
ON_ONNX = "onnx fp32 on cuda:0 (a double)"
ON_TENSORRT = "tensorrt fp32 on cuda:0 (a double)"
ALWAYS = ("text_encoder", "denoiser", "decoder")
# In a process of its own, whatever imports TensorRT gets the doubles; `how` says what happens when it builds.
TENSORRT = """
import os, pathlib, signal, time
import tensorrt_double
from mmrt.runtime.devices import cuda, driver

globals().update(vars(tensorrt_double.module("tensorrt")))
folder = pathlib.Path(__file__).parent


def build(graph):
    with (folder / "built").open("a") as file:
        print(os.getpid(), graph, os.getsid(0), os.getpriority(os.PRIO_PROCESS, 0), file=file)
    how = (folder / "how").read_text()
    if how == "die" and "denoiser" in graph:
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "wait":
        while not (folder / "go").exists():
            time.sleep(0.01)
    return "out of luck" if how == "fail" and "denoiser" in graph else None


tensorrt_double.BUILDS[:] = [build]
if cuda.DRIVER is driver.Driver:
    cuda.DRIVER = lambda index: tensorrt_double.Gpu(lambda launches: None, index)
"""


@pytest.fixture
def how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """TensorRT and a GPU are here, and nothing was built; says what happens when something is."""
    for variable in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "tensorrt.py").write_text(TENSORRT)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    del sys.modules["tensorrt"]  # to be imported, and forgotten at the end
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setattr(tensorrt_double, "BUILDS", [])
    monkeypatch.setattr(tensorrt_double, "CURRENT", set())
    monkeypatch.setattr(cuda, "DRIVER", lambda index: Gpu(lambda launches: None, index))  # type: ignore[arg-type]
    monkeypatch.setattr(cuda, "_GPUS", {})
    monkeypatch.setattr(selection, "_SAID", set())
    monkeypatch.setattr(background, "_has_python", HAS_PYTHON)

    def say(text: str) -> None:
        (tmp_path / "modules" / "how").write_text(text)

    say("")
    return say


def built(tmp_path: Path) -> list[list[str]]:
    """Whose turn it was to build, which graph, in which session, with which priority."""
    file = tmp_path / "modules" / "built"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def building(pipeline: Pipeline) -> Building:
    found = pipeline._selected._building
    assert found is not None
    return found


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def ended(pipeline: Pipeline) -> str:
    """How the building of its engines ended."""
    wait(lambda: building(pipeline).state() != "running")
    return pipeline.describe().building


def quiet_load(path: Path, **options: Any) -> Pipeline:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return mmrt.load(path, device="cuda", **options)


def all_on_tensorrt(path: Path) -> bool:
    """Whether the graphs that every request needs have engines now."""
    engines = quiet_load(path).describe().engines
    return {engines[name] for name in ALWAYS} == {ON_TENSORRT}


def test_the_first_load_builds_and_the_next_one_has_the_engines(
    how: Callable[[str], None], damaged: Path, tmp_path: Path
) -> None:
    how("wait")
    with pytest.warns(EngineWarning) as said:
        first = mmrt.load(damaged, device="cuda")
    (message,) = (str(each.message) for each in said)
    notice = (
        f"TensorRT engines of {damaged} are being built in the background for the next load ({building(first).log})"
    )
    assert message == f"{notice}; another engine serves meanwhile"
    assert first.describe().engines["denoiser"] == ON_ONNX
    wait(lambda: len(built(tmp_path)) > 0)
    looking = quiet_load(damaged, build=False)  # what `mmrt inspect --device` does; it was said
    assert f"\nbuilding: {notice}: builds the engine text_encoder: 0% (" in str(looking.describe())
    (tmp_path / "modules" / "go").touch()
    assert ended(first).startswith(f"TensorRT engines of {damaged} have been built for the next load")
    assert first.describe().engines["denoiser"] == ON_ONNX
    next_ = quiet_load(damaged)
    assert next_.describe().engines == dict.fromkeys(ALWAYS, ON_TENSORRT) | {
        "image_encoder": f"{ON_TENSORRT}, if it loads"
    }
    assert next_.describe().building == ""
    pids, _, sessions, priorities = zip(*built(tmp_path), strict=True)
    assert len(pids) == 4
    assert set(sessions) == {pids[0]}  # a session of its own: no terminal, none of its signals
    assert int(priorities[0]) >= os.getpriority(os.PRIO_PROCESS, 0) + 10 or int(priorities[0]) == 19


def test_of_two_processes_one_builds_and_goes_on_when_they_end(
    how: Callable[[str], None], damaged: Path, tmp_path: Path
) -> None:
    how("wait")
    code = "import sys, tensorrt, mmrt; print(mmrt.load(sys.argv[1], device='cuda').describe().engines['denoiser'])"
    path = os.pathsep.join(filter(None, map(os.path.abspath, sys.path)))
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, damaged], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}
        )
        for _ in range(2)
    ]
    assert [each.communicate(timeout=60)[0].decode().strip() for each in both] == [ON_ONNX] * 2
    wait(lambda: len(built(tmp_path)) == 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EngineWarning)
        looking = mmrt.load(damaged, device="cuda", build=False)
    (tmp_path / "modules" / "go").touch()
    ended(looking)
    assert all_on_tensorrt(damaged)
    assert len({pid for pid, *_ in built(tmp_path)}) == 1
    assert len(built(tmp_path)) == 4


def test_a_failure_is_remembered_until_it_is_asked_for(
    how: Callable[[str], None], damaged: Path, tmp_path: Path
) -> None:
    how("fail")
    with pytest.warns(EngineWarning, match="are being built"):
        first = mmrt.load(damaged, device="cuda")
    state = ended(first)
    why = "could not be built: mmrt: denoiser: TensorRT 11.4.1 cannot build it: out of luck"
    assert state.startswith(f"TensorRT engines of {damaged} {why} ({building(first).log})")
    assert state.endswith(f"mmrt build {damaged} --target tensorrt tries again")
    count = len(built(tmp_path))
    assert count == 4  # the other graphs have theirs
    second = quiet_load(damaged)
    assert second.describe().engines["denoiser"] == ON_ONNX
    assert second.describe().engines["decoder"] == ON_TENSORRT
    assert second.describe().building == state
    assert len(built(tmp_path)) == count
    how("")
    shares = [each.share for each in build(Bundle(damaged), "tensorrt") if isinstance(each, Progress)]
    assert shares == [1.0, 0.0, 1.0, 1.0, 1.0]
    assert len(built(tmp_path)) == count + 1
    assert all_on_tensorrt(damaged)


def test_a_builder_that_is_cut_off_leaves_no_lock_and_is_begun_again_but_not_forever(
    how: Callable[[str], None], damaged: Path, tmp_path: Path
) -> None:
    how("die")
    with pytest.warns(EngineWarning, match="are being built"):
        first = mmrt.load(damaged, device="cuda")
    assert ended(first).startswith(
        f"the building of TensorRT engines of {damaged} was cut off: builds the engine denoi"
    )
    assert "could not be built: builds the engine denoiser: 0% (" in [ended(quiet_load(damaged)) for _ in range(2)][1]
    deaths = [graph for _, graph, *_ in built(tmp_path) if "denoiser" in graph]
    assert len(deaths) == 3
    assert quiet_load(damaged).describe().engines["denoiser"] == ON_ONNX
    assert len([graph for _, graph, *_ in built(tmp_path) if "denoiser" in graph]) == 3
    how("")
    assert list(build(Bundle(damaged), "tensorrt"))[-1] == Progress("image_encoder", 1.0)
    assert all_on_tensorrt(damaged)
    assert sorted(each.suffix for each in (folders.cache() / "builds").iterdir()) == ["", ".log"]


def test_without_onnx_runtime_for_the_gpu_the_cpu_serves_meanwhile(
    how: Callable[[str], None], damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = selection.ENGINES["onnx"]

    def load(graph: str, spec: Any, variant: Any, bundle: Bundle, place: Any, threads: int) -> Any:
        if place.kind == "cuda":
            raise mmrt.EngineError("ONNX Runtime is here without CUDAExecutionProvider")
        return onnx.load(graph, spec, variant, bundle, place, threads)

    monkeypatch.setattr(selection, "ENGINES", selection.ENGINES | {"onnx": onnx._replace(load=load)})
    with pytest.warns(EngineWarning) as said:
        description = mmrt.load(damaged).describe()
    assert ["background" in str(each.message) for each in said] == [True, False]
    assert description.engines["denoiser"] == "onnx fp32 on cpu"
    assert "CUDAExecutionProvider; TensorRT engines of" in description.refused["cuda:0"]
    (log,) = (folders.cache() / "builds").glob("*.log")
    wait(lambda: background.DONE in log.read_text())
    assert all_on_tensorrt(damaged)


def test_what_is_switched_off_is_not_begun(how: Callable[[str], None], damaged: Path, tmp_path: Path) -> None:
    with pytest.warns(
        EngineWarning, match=f"no engine was built here: mmrt build {damaged} --target tensorrt; another"
    ):
        found = mmrt.load(damaged, device="cuda", build=False)
    assert found.describe().building == ""
    assert not list((folders.cache() / "builds").glob("*.log"))


def test_a_program_that_python_is_a_part_of_begins_nothing(
    how: Callable[[str], None], damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.warns(EngineWarning, match="no engine was built here: mmrt build"):
        mmrt.load(damaged, device="cuda")


def test_an_engine_that_was_asked_for_and_is_missing_is_an_error(how: Callable[[str], None], damaged: Path) -> None:
    with pytest.raises(mmrt.EngineError, match="no engine was built here: mmrt build"):
        mmrt.load(damaged, device="cuda", engine="tensorrt")
    assert not (folders.cache() / "builds").exists()


def test_only_one_builds_on_a_machine(how: Callable[[str], None], damaged: Path, tmp_path: Path) -> None:
    how("wait")
    first = build(Bundle(damaged), "tensorrt")
    with pytest.warns(EngineWarning, match="are being built"):
        pipeline = mmrt.load(damaged, device="cuda")
    wait(lambda: len(built(tmp_path)) == 1)
    assert next(first) == Waiting("text_encoder")
    (tmp_path / "modules" / "go").touch()
    shares = [each for each in first if isinstance(each, Progress) and each.share == 1]
    assert len(shares) == 4
    ended(pipeline)
    assert len(built(tmp_path)) == 4  # each was built once, here or there


def test_what_can_change_how_it_ends_has_a_log_of_its_own(
    how: Callable[[str], None], handmade: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, place = Bundle(handmade), cuda.gpu(0)
    other: Any = SimpleNamespace(name="cuda:0", driver=SimpleNamespace(capability=(12, 0)))
    logs = {Building(bundle, "tensorrt", place, "auto").log, Building(bundle, "tensorrt", place, "fp32").log}
    logs |= {Building(bundle, "tensorrt", other, "auto").log}
    monkeypatch.setattr(background, "__version__", "9.9")
    logs |= {Building(bundle, "tensorrt", place, "auto").log}
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "11.5")
    logs |= {Building(bundle, "tensorrt", place, "auto").log}
    assert len(logs) == 5
