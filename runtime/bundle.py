"""A bundle on disk: a folder in which every file is listed with its size and sha256, and nothing else lies.

A bundle is untrusted. Names, links and sizes are checked when it is opened, a file's hash before the file is used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from mmrt.runtime import manifest_file
from mmrt.runtime.checks import legal_path
from mmrt.runtime.engines.onnx_file import external_files
from mmrt.runtime.errors import BundleError
from mmrt.runtime.manifest import File, Manifest

MANIFEST = "manifest.json"
_MANIFEST_LIMIT = 16 << 20
_DEEPEST = 16  # folders in folders


class Bundle:
    """An opened bundle: its `path`, its `manifest`, and `sha256`, the hash of the manifest, which covers all files."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the manifest and compare the folder with it. Raises `BundleError`."""
        self.path = Path(path)
        self._hashed: dict[str, tuple[int, ...]] = {}  # what was hashed, as it was then
        try:
            data = _read_manifest(self.path)
            self.sha256 = hashlib.sha256(data).hexdigest()
            self.manifest: Manifest = manifest_file.decode(data)
            self._compare_folder()
        except OSError as error:
            raise BundleError(f"{self.path}: cannot be read: {error.strerror}") from None

    def files(self, names: Iterable[str]) -> dict[str, Path]:
        """The paths of files of the bundle, each after its bytes were found to have the listed hash, now or before."""
        listed = {name: self._listed(name) for name in dict.fromkeys(names)}
        paths = {name: path for name, path in listed.items() if self._hashed.get(name) != _version(path)}
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            for (name, path), found in zip(paths.items(), pool.map(hash_file, paths.values()), strict=True):
                wanted = self.manifest.files[name].sha256
                if found != wanted:
                    raise BundleError(f"{path}: sha256 is {found}, wanted {wanted}: the file is damaged or was changed")
                self._hashed[name] = _version(path)
        return listed

    def file(self, name: str) -> Path:
        """One file's path, its hash checked."""
        return self.files([name])[name]

    def onnx_file(self, name: str) -> Path:
        """An ONNX file's path, its hash and those of the files with its weights checked."""
        path = self.file(name)
        self.files(self._weights(name, path))
        return path

    def digest(self, name: str) -> str:
        """One sha256 for an ONNX file and the files with its weights, of which that file's own is checked."""
        names = [name, *sorted(self._weights(name, self.file(name)))]
        return hashlib.sha256("".join(self._entry(each).sha256 for each in names).encode()).hexdigest()

    def _weights(self, name: str, path: Path) -> list[str]:
        beside = [str(PurePosixPath(name).parent / location) for location in external_files(path)]
        for weights in beside:
            if not legal_path(weights):
                raise BundleError(f"{path}: its weights are in {weights!r}, which is not inside the bundle")
        return beside

    def _listed(self, name: str) -> Path:
        self._entry(name)
        return self.path / name

    def _entry(self, name: str) -> File:
        if name not in self.manifest.files:
            raise BundleError(f"{self.path}: {name!r} is not listed in the manifest")
        return self.manifest.files[name]

    def _compare_folder(self) -> None:
        found = dict(_walk(self.path))
        found.pop(MANIFEST, None)
        for name, file in self.manifest.files.items():
            if name not in found:
                raise BundleError(f"{self.path / name}: listed in the manifest, but missing")
            if found[name] != file.bytes:
                raise BundleError(f"{self.path / name}: has {found[name]} bytes, wanted {file.bytes}")
        strangers = sorted(found.keys() - self.manifest.files.keys())
        if strangers:
            raise BundleError(f"{self.path / strangers[0]}: not listed in the manifest")


def _version(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or another takes its place."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def hash_file(path: Path) -> str:
    """The sha256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(stream)


def _digest(stream: object) -> str:  # Python 3.10 has no file_digest
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):  # type: ignore[attr-defined]
        digest.update(block)
    return digest.hexdigest()


def _read_manifest(folder: Path) -> bytes:
    if not folder.exists():
        raise BundleError(f"{folder}: no such bundle")
    if not folder.is_dir():
        raise BundleError(f"{folder}: not a bundle, which is a folder with a manifest.json")
    path = folder / MANIFEST
    if path.is_symlink():
        raise BundleError(f"{path}: a link, which a bundle may not hold")
    if not path.is_file():
        raise BundleError(f"{folder}: not a bundle: it has no manifest.json")
    if path.stat().st_size > _MANIFEST_LIMIT:
        raise BundleError(f"{path}: {path.stat().st_size} bytes, more than a manifest may have ({_MANIFEST_LIMIT})")
    return path.read_bytes()


def _walk(folder: Path, prefix: str = "") -> Iterable[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if entry.is_symlink():
                raise BundleError(f"{entry.path}: a link, which a bundle may not hold")
            if entry.is_dir():
                if name.count("/") >= _DEEPEST:
                    raise BundleError(f"{folder}: folders are nested more than {_DEEPEST} deep")
                yield from _walk(Path(entry.path), f"{name}/")
            elif entry.is_file():
                yield name, entry.stat().st_size
            else:
                raise BundleError(f"{entry.path}: not a regular file")
