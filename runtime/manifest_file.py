"""manifest.json: read, written, and checked for what types cannot say.

Errors name the place in it (`$.graphs.decoder.variants[0].file`).
"""

from __future__ import annotations

import msgspec

from mmrt.runtime.checks import check
from mmrt.runtime.errors import BundleError
from mmrt.runtime.manifest import FORMAT, Manifest
from mmrt.version import __version__


class _Version(msgspec.Struct):
    format: int


def decode(data: bytes) -> Manifest:
    """Read and check a manifest. Raises `BundleError` naming the place."""
    try:
        version = msgspec.json.decode(data, type=_Version).format
        if version > FORMAT:
            raise BundleError(
                f"the bundle has format {version}, mmrt {__version__} reads formats up to {FORMAT}: use a newer mmrt"
            )
        if version < 1:
            raise BundleError(f"the bundle has format {version}; the first format is 1")
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BundleError(f"manifest.json: {error}") from None
    check(manifest)
    return manifest


def encode(manifest: Manifest) -> bytes:
    """The manifest as indented JSON. Raises `BundleError` where `decode` would."""
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    decode(data)
    return data
