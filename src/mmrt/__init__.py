"""mmrt: multimodal generators, exported from torch once and run without it.

pipeline = mmrt.load("thing.mmrt")
pipeline.generate("a red heart", seed=7).image.save("heart.png")
"""

from mmrt.runtime.errors import BundleError, EngineError, ExportError, MmrtError, RequestError, RequestWarning
from mmrt.runtime.pipeline import Pipeline, load
from mmrt.version import __version__

__all__ = [
    "BundleError",
    "EngineError",
    "ExportError",
    "MmrtError",
    "Pipeline",
    "RequestError",
    "RequestWarning",
    "__version__",
    "load",
]
