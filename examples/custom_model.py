"""Your own encoders and decoder in plain PyTorch: x is read from words, z from a picture, and y = f(x, z) is drawn.

    mmrt export custom_model.py:recipe -o editor.mmrt

exports what custom_model/train.py has learnt.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from mmrt.export import Fit, Graph, Image, ImageOutput, Once, Recipe, Text, Tokenize

sys.path.append(str(Path(__file__).parent / "custom_model"))
import edits

WEIGHTS = Path(edits.__file__).with_name("model.safetensors")


class TextEncoder(nn.Sequential):
    def forward(self, ids):  # int64 (texts, 12) -> x, (texts, 96)
        return super().forward(ids)


class ImageEncoder(nn.Sequential):
    def forward(self, picture):  # uint8 (pictures, 64, 64, 3) -> z, (pictures, 12, 64, 64), all 0 where it is white
        ink = 1 - picture.permute(0, 3, 1, 2) / 255
        return torch.cat([ink, super().forward(ink)], 1)


class Fusion(nn.Module):
    def __init__(self):
        super().__init__()
        self.look = nn.Linear(96, 2 * 64 * 66)  # for each row and column of y, where in z to look; at its sides is 0
        self.film = nn.Linear(96, 2 * 12)

    def forward(self, x, z):  # -> y, (rows, 24, 64, 64)
        rows, columns = self.look(x).view(-1, 2, 64, 66).softmax(3).unbind(1)
        moved = torch.einsum("nhy,ncyx,nwx->nhwc", rows, F.pad(z, [1] * 4), columns)
        scale, shift = self.film(x)[:, None, None].chunk(2, 3)
        return torch.cat([moved, moved * scale + shift], 3).permute(0, 3, 1, 2)


class Decoder(nn.Sequential):
    def rgb(self, y):  # -> float32 (rows, 3, 64, 64), about [0, 1]
        return 1 - super().forward(y)

    def forward(self, y):  # -> pixels, uint8 (rows, 64, 64, 3)
        return (255 * self.rgb(y).clamp(0, 1)).round().to(torch.uint8).permute(0, 2, 3, 1)


def new_model():
    words = nn.EmbeddingBag(len(edits.WORDS), 64, mode="sum", padding_idx=0)
    text = TextEncoder(words, nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 96), nn.GELU())
    image = ImageEncoder(nn.Conv2d(3, 9, 3, padding=1, bias=False), nn.GELU())
    first, second, last = (nn.Conv2d(a, b, 3, padding=1) for a, b in ((24, 16), (16, 16), (16, 3)))
    return nn.ModuleList([text, image, Fusion(), Decoder(first, nn.GELU(), second, nn.GELU(), last)])


def recipe():
    model = new_model().eval()
    model.load_state_dict(load_file(WEIGHTS))
    text, image, fusion, decoder = model
    ids, picture = edits.ids(["mirror it", "make it blue"]), torch.randint(256, (2, 64, 64, 3)).to(torch.uint8)
    x, z = text(ids), image(picture)
    words, fit = Tokenize(file="words.json", length=edits.LENGTH, pad=0), Fit(width=64, height=64, resample="lanczos")
    graphs = {
        "text_encoder": Graph(text, {"ids": ids}, ("x",)),
        "image_encoder": Graph(image, {"picture": picture}, ("z",)),
        "fusion": Graph(fusion, {"x": x, "z": z}, ("y",)),
        "decoder": Graph(decoder, {"y": fusion(x, z)}, ("pixels",)),
    }
    inputs = {"prompt": Text(tokenize={"ids": words}), "image": Image(array="picture", fit=fit, required=True)}
    outputs = {"image": ImageOutput(source="pixels")}
    files = {"words.json": edits.new_tokenizer().to_str().encode()}
    return Recipe("picture-and-text-to-picture", inputs, outputs, graphs, (Once(graphs=tuple(graphs)),), files=files)
