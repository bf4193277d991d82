"""Tokens a second and time to the first token: mmrt and its peers with the same weights, greedy, fp32.

    python benchmarks/tokens.py [--work FOLDER] [--rounds 5] [--models t5-small] [--peers CTranslate2] [--batches 1]

Peers are transformers' `generate`, eager and with its model compiled by torch, CTranslate2 where it is installed and
has the family, and optimum-onnx in an environment of its own, made with pip under --work. All answer the same request
in turn, with as many threads each as the machine has cores; reported are medians, and tokens a second as a ratio to the
fastest peer's. Peers get pictures and recordings as transformers' processor leaves them, mmrt as they are. "Outside" is
mmrt's time in no engine, a token.
"""

from __future__ import annotations

import argparse
import json
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
from peers import PEERS as ENVIRONMENTS
from peers import environment
from PIL import Image

import mmrt

MODELS = ("t5-small", "marian", "vit-gpt2", "whisper-tiny", "whisper-base")
BATCHES, LENGTHS = (1, 8), (32, 256)
TEXT = "a small house by the sea with a red heart and two cats in front of it"
Run = Callable[[int, int], None]  # so many new tokens for each of a batch
OPTIMUM = """
import json, sys, warnings
import numpy, torch
warnings.simplefilter("ignore")
from optimum import onnxruntime
checkpoint, kind, folder, inputs, options = json.loads(sys.argv[1])
model = getattr(onnxruntime, kind)
try:
    model = model.from_pretrained(folder)
except Exception:
    model.from_pretrained(checkpoint, export=True).save_pretrained(folder)
    model = model.from_pretrained(folder)
inputs = {name: torch.from_numpy(array) for name, array in numpy.load(inputs).items()}
print(flush=True)
for line in sys.stdin:
    batch, new = json.loads(line)
    rows = {name: torch.cat([array] * batch) for name, array in inputs.items()}
    found = model.generate(**rows, max_new_tokens=new, min_new_tokens=new, num_beams=1, do_sample=False, **options)
    print(found.shape[1], flush=True)
"""


def main() -> None:
    """Make what is missing, measure, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="where models and bundles are kept")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    print("| model | batch | new tokens | peer | tokens/s | ratio | first token | outside a token |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.models:
        make = whisper if name.startswith("whisper") else text_model
        source = Source(name, make(name, args.work / name))
        bundle = args.work / f"{name}.mmrt"
        if not bundle.exists():
            subprocess.run([sys.executable, "-m", "mmrt.cli.main", "export", source.path, "-o", bundle], check=True)
        runs: dict[str, Any] = {"mmrt": Mmrt(name, bundle)}
        for peer in args.peers:
            try:
                runs[peer] = PEERS[peer](source, args.work.resolve())
                runs[peer](1, 2)
            except Exception as error:  # each has its own idea of what it can load
                runs.pop(peer, None)
                print(f"{peer}: not {name}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr, flush=True)
        for batch in args.batches:
            for length in LENGTHS:
                for line in measure(name, runs, batch, length, args.rounds):
                    print(line, flush=True)


def measure(name: str, runs: dict[str, Any], batch: int, length: int, rounds: int) -> list[str]:
    """The rows of one model, batch and length."""
    seconds: dict[str, list[float]] = {peer: [] for peer in runs}
    first: dict[str, list[float]] = {peer: [] for peer in runs}
    for number in range(rounds + 1):
        for peer, run in runs.items():
            for kept, new in ((first, 1), (seconds, length)):
                start = time.perf_counter()
                run(batch, new)
                if number:  # the first is warm-up
                    kept[peer].append(time.perf_counter() - start)
    rates = {peer: batch * length / statistics.median(each) for peer, each in seconds.items()}
    fastest = max((rate for peer, rate in rates.items() if peer != "mmrt"), default=rates["mmrt"])
    return [
        f"| {name} | {batch} | {length} | {peer} | {rate:.0f} | {rate / fastest:.2f}x "
        f"| {statistics.median(first[peer]) * 1000:.0f} ms "
        f"| {f'{runs[peer].outside * 1e6:.0f} µs' if peer == 'mmrt' else ''} |"
        for peer, rate in rates.items()
    ]


class Source:
    """A checkpoint, transformers' model of it, and a request as its processor leaves it."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path, self.options = name, path, dict[str, Any]()
        self.kind = "Seq2SeqLM"
        if name.startswith("whisper"):
            self.kind = "SpeechSeq2Seq"
            extractor = transformers.WhisperFeatureExtractor.from_pretrained(path)
            self.inputs = {"input_features": extractor(recording(), 16000, return_tensors="pt")["input_features"]}
            self.options = {"return_timestamps": False, "force_unique_generate_call": True}
        elif name == "vit-gpt2":
            self.kind = "Vision2Seq"
            processor = transformers.AutoImageProcessor.from_pretrained(path)
            self.inputs = {"pixel_values": processor(images=picture(), return_tensors="pt")["pixel_values"]}
        else:
            encoded = self.tokenizer()([TEXT], return_tensors="pt")
            self.inputs = {key: encoded[key] for key in ("input_ids", "attention_mask")}

    def tokenizer(self) -> Any:
        """transformers' own."""
        return transformers.AutoTokenizer.from_pretrained(self.path)

    def model(self) -> Any:
        """transformers' own, in fp32."""
        kind = "ImageTextToText" if self.kind == "Vision2Seq" else self.kind
        return getattr(transformers, f"AutoModelFor{kind}").from_pretrained(self.path, dtype=torch.float32).eval()


class Mmrt:
    """mmrt's pipeline; `outside` is of its last run."""

    def __init__(self, name: str, bundle: Path) -> None:
        self.pipeline, self.name, self.outside = mmrt.load(bundle), name, 0.0

    def __call__(self, batch: int, new: int) -> None:
        given: dict[str, Any] = {"text": [TEXT] * batch}
        if self.name == "vit-gpt2":
            given = {"image": [picture()] * batch}
        if self.name.startswith("whisper"):
            given = {"audio": [recording() for _ in range(batch)]}
        result = self.pipeline.generate(**given, max_new_tokens=new, min_new_tokens=new, beams=1)
        self.outside = (result.timings["total"] - sum(result.timings["graphs"].values())) / new


def eager(source: Source, _: Path) -> Run:
    """transformers' `generate`."""
    model = source.model()

    @torch.no_grad()
    def run(batch: int, new: int) -> None:
        rows = {name: torch.cat([array] * batch) for name, array in source.inputs.items()}
        found = model.generate(
            **rows, max_new_tokens=new, min_new_tokens=new, num_beams=1, do_sample=False, **source.options
        )
        assert found.shape[1] >= new

    run.model = model  # type: ignore[attr-defined]
    return run


def compiled(source: Source, _: Path) -> Run:
    """The same, its forward pass compiled for caches that grow."""
    run = eager(source, _)
    model = run.model  # type: ignore[attr-defined]
    model.forward = torch.compile(model.forward, dynamic=True)
    for new in (1, *LENGTHS):  # what it compiles anew for
        for batch in BATCHES:
            run(batch, new)
    return run


def optimum(source: Source, work: Path) -> Run:
    """optimum-onnx's model of the same class, in a process of its own."""
    python = environment(work / "venv-optimum-onnx", ENVIRONMENTS["optimum-onnx"])
    inputs, folder = work / f"{source.name}-inputs.npz", work / f"{source.name}-optimum"
    np.savez(inputs, **{name: array.numpy() for name, array in source.inputs.items()})
    options = {name: value for name, value in source.options.items() if name == "return_timestamps"}
    given = json.dumps([str(source.path.resolve()), f"ORTModelFor{source.kind}", str(folder), str(inputs), options])
    worker = subprocess.Popen([python, "-c", OPTIMUM, given], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdin is not None
    assert worker.stdout is not None
    while worker.stdout.readline() != "\n":  # what it says while it exports
        if worker.poll() is not None:
            raise RuntimeError(f"its process ended with {worker.returncode}")

    def run(batch: int, new: int) -> None:
        print(json.dumps([batch, new]), file=worker.stdin, flush=True)
        if int(worker.stdout.readline() or 0) < new:
            raise RuntimeError("its process ended, or wrote less")

    return run


def ctranslate2(source: Source, work: Path) -> Run:
    """CTranslate2's translator or its Whisper."""
    import ctranslate2 as library
    from ctranslate2.converters import transformers as converters

    class Marian(converters.MarianMTLoader):  # type: ignore[misc, name-defined]
        """With names for the vocabulary's rest, as the made checkpoint's tokenizer is smaller."""

        def get_vocabulary(self, model: Any, tokenizer: Any) -> list[str]:
            tokens: list[str] = super().get_vocabulary(model, tokenizer)
            return tokens + [f"<unused {number}>" for number in range(model.config.vocab_size - 1 - len(tokens))]

    class Whisper(converters.WhisperLoader):  # type: ignore[misc, name-defined]
        """With the names that Whisper's own tokenizer gives its special tokens."""

        def get_vocabulary(self, model: Any, tokenizer: Any) -> list[str]:
            languages = [f"<|language {number}|>" for number in range(99)]
            tasks = ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
            special = ["<|endoftext|>", "<|startoftranscript|>", *languages, *(f"<|{task}|>" for task in tasks)]
            times = [f"<|{number * 0.02:.2f}|>" for number in range(1501)]
            return [f"<unused {number}>" for number in range(50257)] + special + times

    converters._MODEL_LOADERS |= {"MarianConfig": Marian(), "WhisperConfig": Whisper()}
    folder, threads = work / f"{source.name}-ctranslate2", os.cpu_count()
    if not folder.exists():
        converters.TransformersConverter(str(source.path)).convert(str(folder), quantization="float32")
    if source.name.startswith("whisper"):
        model = library.models.Whisper(str(folder), compute_type="float32", intra_threads=threads)
        features = source.inputs["input_features"].numpy()

        def hear(batch: int, new: int) -> None:
            rows = library.StorageView.from_array(np.concatenate([features] * batch))
            prompts = [[50258, 50363]] * batch  # half of `max_length` is its new tokens'
            found = model.generate(rows, prompts, beam_size=1, max_length=2 * new, suppress_tokens=[50257])
            assert len(found[0].sequences_ids[0]) == new, len(found[0].sequences_ids[0])

        return hear
    translator = library.Translator(str(folder), compute_type="float32", intra_threads=threads)
    tokens = source.tokenizer().convert_ids_to_tokens(source.inputs["input_ids"][0])

    def translate(batch: int, new: int) -> None:
        translator.translate_batch([tokens] * batch, beam_size=1, min_decoding_length=new, max_decoding_length=new)

    return translate


PEERS: dict[str, Callable[[Source, Path], Run]] = {
    "transformers": eager,
    "transformers, compiled": compiled,
    "optimum-onnx": optimum,
    "CTranslate2": ctranslate2,
}


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
