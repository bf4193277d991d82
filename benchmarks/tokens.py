"""Tokens a second and time to the first token: mmrt, transformers and CTranslate2 with the same weights, greedy, fp32.

    python benchmarks/tokens.py [--work FOLDER] [--rounds 5] [--models t5-small marian vit-gpt2]

All peers answer the same request in turn, in one process with as many threads each as the machine has cores; reported
are medians. transformers gets pictures and recordings as its processor leaves them, mmrt as they are. "Outside" is
mmrt's time in no engine, a token. CTranslate2 is measured where it is installed and has the family; its Whisper is not.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from checkpoints import text_model, whisper
from PIL import Image

import mmrt

MODELS = ("t5-small", "marian", "vit-gpt2", "whisper-tiny", "whisper-base")
LENGTHS = (32, 256)
TEXT = "a small house by the sea with a red heart and two cats in front of it"


def main() -> None:
    """Make what is missing, measure, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="where models and bundles are kept")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    print("| model | batch | new tokens | peer | tokens/s | ratio | first token | outside a token |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.models:
        make = whisper if name.startswith("whisper") else text_model
        checkpoint, bundle = make(name, args.work / name), args.work / f"{name}.mmrt"
        if not bundle.exists():
            subprocess.run([sys.executable, "-m", "mmrt.cli.main", "export", checkpoint, "-o", bundle], check=True)
        peers = {"transformers": Transformers(name, checkpoint), "mmrt": Mmrt(name, bundle)}
        if (other := ctranslate2(name, checkpoint, args.work)) is not None:
            peers["CTranslate2"] = other
        for batch in (1, 8):
            for length in LENGTHS:
                for line in measure(name, peers, batch, length, args.rounds):
                    print(line, flush=True)


def measure(name: str, peers: dict[str, Any], batch: int, length: int, rounds: int) -> list[str]:
    """The rows of one model, batch and length; ratios are to transformers."""
    seconds: dict[str, list[float]] = {peer: [] for peer in peers}
    first: dict[str, list[float]] = {peer: [] for peer in peers}
    for number in range(rounds + 1):
        for peer, run in peers.items():
            for kept, new in ((first, 1), (seconds, length)):
                start = time.perf_counter()
                run(batch, new)
                if number:  # the first is warm-up
                    kept[peer].append(time.perf_counter() - start)
    rates = {peer: batch * length / statistics.median(each) for peer, each in seconds.items()}
    return [
        f"| {name} | {batch} | {length} | {peer} | {rate:.0f} | {rate / rates['transformers']:.2f}x "
        f"| {statistics.median(first[peer]) * 1000:.0f} ms "
        f"| {f'{peers[peer].outside * 1e6:.0f} µs' if peer == 'mmrt' else ''} |"
        for peer, rate in rates.items()
    ]


class Mmrt:
    """mmrt's pipeline."""

    def __init__(self, name: str, bundle: Path) -> None:
        self.pipeline, self.name, self.outside = mmrt.load(bundle), name, 0.0

    def __call__(self, batch: int, new: int) -> None:
        """`new` tokens for each of `batch`."""
        given: dict[str, Any] = {"text": [TEXT] * batch}
        if self.name == "vit-gpt2":
            given = {"image": [picture()] * batch}
        if self.name.startswith("whisper"):
            given = {"audio": [recording() for _ in range(batch)]}
        result = self.pipeline.generate(**given, max_new_tokens=new, min_new_tokens=new, beams=1)
        self.outside = (result.timings["total"] - sum(result.timings["graphs"].values())) / new


class Transformers:
    """transformers' generate, eager."""

    def __init__(self, name: str, checkpoint: Path) -> None:
        kind, self.options = transformers.AutoModelForSeq2SeqLM, dict[str, Any]()
        if name.startswith("whisper"):
            kind = transformers.WhisperForConditionalGeneration
            extractor = transformers.WhisperFeatureExtractor.from_pretrained(checkpoint)
            self.inputs = {"input_features": extractor(recording(), 16000, return_tensors="pt")["input_features"]}
            self.options = {"return_timestamps": False, "force_unique_generate_call": True}
        elif name == "vit-gpt2":
            kind = transformers.VisionEncoderDecoderModel
            processor = transformers.AutoImageProcessor.from_pretrained(checkpoint)
            self.inputs = {"pixel_values": processor(images=picture(), return_tensors="pt")["pixel_values"]}
        else:
            tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
            encoded = tokenizer([TEXT], return_tensors="pt")
            self.inputs = {key: encoded[key] for key in ("input_ids", "attention_mask")}
        self.model = kind.from_pretrained(checkpoint, dtype=torch.float32).eval()

    @torch.no_grad()
    def __call__(self, batch: int, new: int) -> None:
        """As mmrt's."""
        inputs = {key: torch.cat([value] * batch) for key, value in self.inputs.items()}
        self.model.generate(
            **inputs, max_new_tokens=new, min_new_tokens=new, num_beams=1, do_sample=False, **self.options
        )


def ctranslate2(name: str, checkpoint: Path, work: Path) -> Callable[[int, int], None] | None:
    """CTranslate2's translator, where it is installed and has the family."""
    try:
        import ctranslate2 as library
    except ImportError:
        return None
    if name not in ("t5-small", "marian"):
        return None
    folder = work / f"{name}-ctranslate2"
    try:
        if not folder.exists():
            library.converters.TransformersConverter(str(checkpoint)).convert(str(folder), quantization="float32")
    except Exception as error:  # it has its own idea of transformers' versions
        print(f"CTranslate2 {library.__version__} cannot convert {name}: {error}", file=sys.stderr)
        return None
    translator = library.Translator(str(folder), compute_type="float32", intra_threads=os.cpu_count())
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(TEXT)["input_ids"])

    def run(batch: int, new: int) -> None:
        translator.translate_batch([tokens] * batch, beam_size=1, min_decoding_length=new, max_decoding_length=new)

    return run


def recording() -> Any:
    """30 s of a tone that rises, float32 (samples,) at 16,000 a second."""
    time = np.arange(30 * 16000) / 16000
    return (0.3 * np.sin(2 * np.pi * (200 + 10 * time) * time)).astype(np.float32)


def picture() -> Image.Image:
    """A picture of 320 x 240."""
    y, x = np.mgrid[0:240, 0:320]
    return Image.fromarray(np.stack([x % 256, y, (x + y) % 256], axis=-1).astype(np.uint8))


if __name__ == "__main__":
    main()
