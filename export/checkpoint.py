"""A checkpoint: a local folder that is only read, and believed in nothing that can be checked.

What it is, its config files say: `model_index.json` makes it diffusers', `config.json` transformers',
`open_clip_config.json` open_clip's, `dalle.json` dalle-pytorch's; without one, the file `dalle.pt` in it does, which
may also be given itself, by any name that ends in `.pt`. Names of folders say nothing. Links to files are followed, as
the hub's cache is made of them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mmrt.runtime.bundle import hash_file
from mmrt.runtime.errors import ExportError

INDEXES = {
    "model_index.json": "diffusers",
    "config.json": "transformers",
    "open_clip_config.json": "open_clip",
    "dalle.json": "dalle-pytorch",
}
PICKLE = "dalle.pt"
_JSON_LIMIT = 64 << 20
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_OPEN_CLIP_STEMS = ("open_clip_model", "open_clip_pytorch_model", "model", "pytorch_model")
_VARIANTS = (None, "fp32", "fp16")


@dataclass(frozen=True)
class Weights:
    """A component's weight files, whether they are safetensors, and the variant (`fp16`) in their names."""

    files: tuple[Path, ...]
    safe: bool
    variant: str | None


class Checkpoint:
    """An opened checkpoint: `path`, a folder, `kind` (a value of `INDEXES`), and `index`, what the
    file that says so holds; `pickle` is the one file that has all, where there is such."""

    def __init__(self, path: str | Path) -> None:
        """Raises `ExportError` where the folder is no checkpoint."""
        self.path = Path(path)
        self.pickle: Path | None = None
        self.kind: str
        self.index: dict[str, Any]
        if self.path.suffix == ".pt" and self.path.is_file():
            self._open_pickle(self.path)
            return
        if not self.path.exists():
            raise ExportError(f"{self.path}: no such checkpoint; checkpoints are local folders")
        if not self.path.is_dir():
            raise ExportError(
                f"{self.path}: not a folder; checkpoints are folders in the layout of diffusers or transformers"
            )
        for name, kind in INDEXES.items():
            if (self.path / name).is_file():
                self.kind = kind
                self.index = self.json(name)
                return
        if not (self.path / PICKLE).is_file():
            raise ExportError(f"{self.path}: not a checkpoint: it has neither {' nor '.join(INDEXES)}")
        self._open_pickle(self.path / PICKLE)

    def _open_pickle(self, file: Path) -> None:
        self.path, self.pickle = file.parent, file
        self.kind, self.index = "dalle-pytorch", {}

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def architecture(self) -> str | None:
        """The class that its config file names, of diffusers or transformers; of other kinds there is one, the kind."""
        if self.kind == "transformers":
            names = self.index.get("architectures")
            found = names[0] if isinstance(names, list) and names else None
        else:
            found = self.index.get("_class_name") if self.kind == "diffusers" else self.kind
        return found if isinstance(found, str) else None

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file that holds an object. Raises `ExportError` naming the file."""
        path = self.path / name
        try:
            if path.stat().st_size > _JSON_LIMIT:
                raise ExportError(f"{path}: more than {_JSON_LIMIT:,} bytes, not a config file")
            value = json.loads(path.read_bytes())
        except OSError as error:
            raise ExportError(f"{path}: cannot be read: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            raise ExportError(f"{path}: not JSON: {error}") from None
        if not isinstance(value, dict):
            raise ExportError(f"{path}: holds {type(value).__name__}, wanted an object")
        return value

    def need_class(self, component: str, *supported: str) -> str:
        """The class of a component of a diffusers pipeline, as `library.Class`, which must be one of `supported`."""
        entry = self.index.get(component)
        found = ".".join(map(str, entry)) if isinstance(entry, list) else repr(entry)
        if found not in supported:
            raise ExportError(
                f"{self.path / 'model_index.json'}: {component} is {found}, supported is {' or '.join(supported)}"
            )
        if not (self.path / component).is_dir():
            raise ExportError(f"{self.path / component}: the folder of this component is missing")
        return found

    def weights(self, component: str) -> Weights:
        """The weight files to load: safetensors before pickles, full names before variants.

        Raises `ExportError` where there are none, or a safetensors file is damaged.
        """
        folder = self.path / component
        if self.pickle:
            return Weights((self.pickle,), False, None)
        stems = _OPEN_CLIP_STEMS if self.kind == "open_clip" else _STEMS
        for ending, safe in ((".safetensors", True), (".bin", False)):
            for variant in _VARIANTS:
                for stem in stems:
                    files = self._weight_files(folder, f"{stem}.{variant}" if variant else stem, ending)
                    if files:
                        for file in files if safe else ():
                            _check_safetensors(file)
                        return Weights(files, safe, variant)
        raise ExportError(f"{folder}: has no weights: wanted {stems[0]}.safetensors or {stems[1]}.safetensors")

    def _weight_files(self, folder: Path, stem: str, ending: str) -> tuple[Path, ...]:
        whole = folder / f"{stem}{ending}"
        if whole.is_file():
            return (whole,)
        index = folder / f"{stem}{ending}.index.json"
        if not index.is_file():
            return ()
        table = self.json(str(index.relative_to(self.path))).get("weight_map")
        if not isinstance(table, dict) or not table:
            raise ExportError(f"{index}: weight_map is missing")
        names = sorted({str(name) for name in table.values()})
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise ExportError(f"{index}: names the file {name!r}, which is not in its folder")
        return tuple(folder / name for name in names)

    def hashes(self, *components: str) -> dict[str, str]:
        """The sha256 of the components' weight files, by their paths within the checkpoint."""
        files = [file for component in components for file in self.weights(component).files]
        return {str(file.relative_to(self.path)): hash_file(file) for file in files}

    @property
    def licence(self) -> str | None:
        """The licence that the front matter of README.md names, if it does."""
        path = self.path / "README.md"
        if not path.is_file():
            return None
        text = path.read_bytes()[:65536].decode("utf-8", "replace")
        front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
        for key in ("license_name", "license") if front else ():
            if found := re.search(
                rf"^{key}:[ \t]*['\"]?([A-Za-z0-9 .+_-]{{1,100}})", front[1] if front else "", re.MULTILINE
            ):
                return found[1].strip()
        return None


def _check_safetensors(path: Path) -> None:
    try:
        with safe_open(path, framework="numpy") as file:
            file.keys()
    except (SafetensorError, OSError, ValueError) as error:
        raise ExportError(f"{path}: not a whole safetensors file: {error}") from None
