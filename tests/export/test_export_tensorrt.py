"""Bundles with engines of TensorRT-RTX, built without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_own import MODEL

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import mmrt  # noqa: E402
from mmrt.export.exporter import Progress, export  # noqa: E402
from mmrt.runtime import manifest as m  # noqa: E402
from mmrt.runtime import profiles, trust  # noqa: E402
from mmrt.runtime.bundle import Bundle  # noqa: E402
from mmrt.runtime.errors import ExportError  # noqa: E402


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Turns pixels before it makes them floats, as most people write it."""
    file = tmp_path_factory.mktemp("model") / "negative.py"
    code = MODEL.replace("from beside import BRIGHTEST", "BRIGHTEST = 255")
    turned = "planes = picture.permute(0, 3, 1, 2).float()\n        made = BRIGHTEST - planes"
    code = code.replace("made = BRIGHTEST - picture.float()", turned)
    code = code.replace("0 * self.mix(picture.float())", "0 * self.mix(planes.transpose(1, 3)).transpose(1, 3)")
    code = code.replace(
        "return made.round().to(torch.uint8)", "return made.round().to(torch.uint8).permute(0, 2, 3, 1)"
    )
    file.write_text(code)
    return f"{file}:recipe"


@pytest.fixture(scope="module")
def bundle(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tensorrt_rtx")
    bundle = tmp_path_factory.mktemp("bundle") / "negative.mmrt"
    shapes = profiles.read(["rows=1:2:4"])
    stages = list(export(model, bundle, targets=("cpu", "tensorrt-rtx"), shapes=shapes))
    assert [each.name for each in stages if each.stage == "engine"] == ["negative", "negative"]
    return bundle


def test_engines_stand_in_the_manifest_before_other_variants(bundle: Path) -> None:
    opened = Bundle(bundle)
    engine, *others = opened.manifest.graphs["negative"].variants
    assert (engine.engine, engine.precision, engine.file) == (
        "tensorrt-rtx",
        "fp16",
        "engines/negative.fp16.tensorrt-rtx.engine",
    )
    assert [(each.engine, each.precision) for each in others] == [("onnx", "fp32"), ("onnx", "fp16")]
    assert engine.build is not None
    assert engine.build.source == opened.digest(others[-1].file)
    assert engine.build.capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1")
    assert engine.build.profiles == ({"rows": m.Range(min=1, opt=2, max=4)},)
    assert (bundle / engine.file).stat().st_size == opened.manifest.files[engine.file].bytes > 10_000


def test_what_is_exported_here_is_trusted_and_runs_without_a_gpu_on_the_cpu(bundle: Path) -> None:
    assert trust.trusted(Bundle(bundle))
    pixels = torch.randint(0, 256, (2, 8, 16, 3), dtype=torch.uint8).numpy()
    found = mmrt.load(bundle, device="cpu").engines["negative"].run({"picture": pixels})["pixels"]
    assert (found == 255 - pixels).all()


def test_a_bundle_for_tensorrt_rtx_alone_has_no_weights_twice(model: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    for _ in export(model, tmp_path / "negative.mmrt", targets=("tensorrt-rtx",)):
        pass
    opened = Bundle(tmp_path / "negative.mmrt")
    assert [each.engine for each in opened.manifest.graphs["negative"].variants] == ["tensorrt-rtx"]
    assert not [name for name in opened.manifest.files if name.endswith(".onnx")]
    with pytest.raises(mmrt.EngineError, match=r"negative: .* tensorrt-rtx fp16"):
        mmrt.load(tmp_path / "negative.mmrt", device="cpu")


@pytest.mark.parametrize(
    ("targets", "shapes", "says"),
    [
        (("tpu",), "", r"targets are cpu, cuda, tensorrt, tensorrt-rtx, .* 'tpu' is given"),
        ((), "", "nothing is given"),
        (("tensorrt-rtx",), "bath=1", "no graph has a free dimension 'bath'; there are rows"),
    ],
)
def test_what_cannot_be_built_is_said_and_nothing_is_left(
    targets: tuple[str, ...], shapes: str, says: str, model: str, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    asked = profiles.read([shapes] if shapes else [])
    with pytest.raises(ExportError, match=says):
        [*export(model, tmp_path / "negative.mmrt", targets=targets, shapes=asked)]
    assert list(tmp_path.iterdir()) == []


def test_without_the_library_the_export_says_so_before_it_begins(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt_rtx", None)
    with pytest.raises(ExportError, match=r"TensorRT-RTX is not installed: pip install 'mmrt\[rtx\]'"):
        next(export(model, tmp_path / "negative.mmrt", targets=("tensorrt-rtx",)))


def test_progress_is_said_in_words() -> None:
    assert str(Progress("engine", "denoiser")) == "builds the engine denoiser..."
    assert str(Progress("engine", "denoiser", share=0.3)) == "builds the engine denoiser: 30%"
    assert str(Progress("engine", "denoiser", 2.04)) == "builds the engine denoiser: 2.0 s"
