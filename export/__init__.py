"""From a checkpoint to a bundle: torch modules become ONNX graphs, verified against the source model.

What a recipe of one's own is made of is here: `mmrt export my_model.py:recipe -o my.mmrt`.
"""

from mmrt.export.exporter import Progress, export
from mmrt.export.generator import TextEncoder, generator
from mmrt.export.recipe import Golden, Graph, Recipe
from mmrt.export.tokenizer import source_tokenizer, target_tokenizer, tokenizer_file
from mmrt.runtime.manifest import (
    Audio,
    AudioOutput,
    Autoregress,
    Choice,
    Count,
    Diffuse,
    Fit,
    Float,
    Guidance,
    Image,
    ImageOutput,
    Int,
    Number,
    Once,
    Patches,
    Seed,
    Similarity,
    Size,
    Text,
    TextOutput,
    Tiles,
    Tokenize,
    VectorOutput,
)
from mmrt.runtime.receipt import Case

__all__ = [
    "Audio",
    "AudioOutput",
    "Autoregress",
    "Case",
    "Choice",
    "Count",
    "Diffuse",
    "Fit",
    "Float",
    "Golden",
    "Graph",
    "Guidance",
    "Image",
    "ImageOutput",
    "Int",
    "Number",
    "Once",
    "Patches",
    "Progress",
    "Recipe",
    "Seed",
    "Similarity",
    "Size",
    "Text",
    "TextEncoder",
    "TextOutput",
    "Tiles",
    "Tokenize",
    "VectorOutput",
    "export",
    "generator",
    "source_tokenizer",
    "target_tokenizer",
    "tokenizer_file",
]
