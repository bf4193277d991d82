"""Which bundles' engines may run: engine files are code, and a bundle is not trusted for being there.

The user's config folder has a file for the sha256 of each manifest that was trusted, by `mmrt trust` or by being
exported here; a manifest covers all files of its bundle. Engines built on this machine need none of it: they lie in the
user's own cache.
"""

from __future__ import annotations

from mmrt.runtime import folders
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.files import whole


def trust(bundle: Bundle) -> None:
    """From now on, let the bundle's engines run. Every one is compared with the manifest first."""
    bundle.files(engines(bundle))
    with whole(folders.own(folders.config() / "trusted") / bundle.sha256) as file:
        file.write_text(f"{bundle.manifest.name} {bundle.path.resolve()}\n", encoding="utf-8")


def forget(bundle: Bundle) -> None:
    """Let them run no longer."""
    (folders.config() / "trusted" / bundle.sha256).unlink(missing_ok=True)


def trusted(bundle: Bundle) -> bool:
    """Whether the bundle's engines may run."""
    return (folders.own(folders.config() / "trusted") / bundle.sha256).is_file()


def engines(bundle: Bundle) -> list[str]:
    """The bundle's engine files."""
    graphs = bundle.manifest.graphs.values()
    return [variant.file for graph in graphs for variant in graph.variants if variant.engine != "onnx"]
