"""Texts and pictures a second as vectors: mmrt and its peers with the same weights, in fp32.

    python benchmarks/embed.py [--work FOLDER] [--rounds 7] [--models minilm clip open-clip] [--batches 1 64]

Random weights at real sizes: MiniLM (22 M) as sentence-transformers reads it, and CLIP ViT-B/32 (151 M) as transformers
and as open_clip have it. All get texts and pictures as they are, of many lengths and of 320 x 240 pixels, and are asked
in turn, several times each, with as many threads as the machine has cores; reported are medians, and a ratio to the
fastest peer's.
sentence-transformers and open_clip are measured where they are installed, optimum-onnx in an environment of its own,
made with pip under --work. Where torchvision is not installed, open_clip's pictures are cut to size by mmrt.
"""

from __future__ import annotations

import argparse
import json
import random
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
from checkpoints import embedder
from peers import PEERS as ENVIRONMENTS
from peers import environment
from PIL import Image

import mmrt

KINDS = {"minilm": ("text",), "clip": ("text", "image"), "open-clip": ("text", "image")}
WORDS = [
    "a",
    "the",
    "small",
    "red",
    "blue",
    "heart",
    "house",
    "cat",
    "dog",
    "sea",
    "tree",
    "with",
    "and",
    "in",
    "front",
    "of",
    "under",
    "two",
    "three",
    "sleeping",
    "running",
]
Embed = Callable[[list[Any]], Any]  # vectors of texts, or of pictures
OPTIMUM = """
import json, sys
from pathlib import Path
import numpy, onnxruntime, torch
from transformers import PreTrainedTokenizerFast
from optimum.exporters.onnx import main_export
checkpoint, folder = sys.argv[1:]
if not (Path(folder) / "model.onnx").exists():
    main_export(checkpoint, folder, task="feature-extraction", library_name="transformers")
session = onnxruntime.InferenceSession(str(Path(folder) / "model.onnx"))
names = {each.name for each in session.get_inputs()}
file = f"{checkpoint}/tokenizer.json"  # without its configuration, which is newer than this transformers
tokenizer = PreTrainedTokenizerFast(tokenizer_file=file, pad_token="<pad>")
print(flush=True)
for line in sys.stdin:
    encoded = tokenizer(json.loads(line), padding=True, return_tensors="np")
    ids, mask = (encoded[name].astype("int64") for name in ("input_ids", "attention_mask"))
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": numpy.zeros_like(ids)}
    states = session.run(None, {name: given[name] for name in names})[0]
    weights = mask[:, :, None].astype("float32")
    vectors = (states * weights).sum(1) / weights.sum(1)
    vectors /= numpy.linalg.norm(vectors, axis=1, keepdims=True)
    print(json.dumps(vectors[-1].tolist()), flush=True)
"""


def main() -> None:
    """Make what is missing, measure, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="where models and bundles are kept")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 64))
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    print("| model | of | batch | peer | a second | ratio | cosine to mmrt's |")
    print("|---|---|---|---|---|---|---|")
    for name in args.models:
        checkpoint, bundle = embedder(name, args.work / name), args.work / f"{name}.mmrt"
        if not bundle.exists():
            subprocess.run([sys.executable, "-m", "mmrt.cli.main", "export", checkpoint, "-o", bundle], check=True)
        for kind in KINDS[name]:
            runs: dict[str, Embed] = {"mmrt": ours(bundle, kind)}
            for peer, make in PEERS[name].items():
                try:
                    runs[peer] = make(checkpoint, kind, args.work.resolve())
                    runs[peer](items(kind, 1))
                except Exception as error:  # each has its own idea of what it can load
                    runs.pop(peer, None)
                    print(
                        f"{peer}: not {name}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr, flush=True
                    )
            for batch in args.batches:
                for line in measure(name, kind, runs, batch, args.rounds):
                    print(line, flush=True)


def measure(name: str, kind: str, runs: dict[str, Embed], batch: int, rounds: int) -> list[str]:
    """The rows of one model, kind and batch."""
    seconds: dict[str, list[float]] = {peer: [] for peer in runs}
    given = items(kind, batch)
    vectors: dict[str, Any] = {}
    for _ in range(rounds):
        for peer, run in runs.items():
            vectors[peer] = np.asarray(run(given)[-1])  # not counted: threads of the peer before may still spin
            for _ in range(max(16 // batch, 1)):
                start = time.perf_counter()
                run(given)
                seconds[peer].append(time.perf_counter() - start)
    rates = {peer: batch / statistics.median(each) for peer, each in seconds.items()}
    fastest = max((rate for peer, rate in rates.items() if peer != "mmrt"), default=rates["mmrt"])
    return [
        f"| {name} | {kind} | {batch} | {peer} | {rate:.1f} | {rate / fastest:.2f}x "
        f"| {vectors[peer] @ vectors['mmrt']:.5f} |"
        for peer, rate in rates.items()
    ]


def items(kind: str, count: int) -> list[Any]:
    """Texts of 3 to 24 words, or pictures of 320 x 240."""
    chance = random.Random(0)
    if kind == "text":
        return [" ".join(chance.choices(WORDS, k=chance.randint(3, 24))) for _ in range(count)]
    y, x = np.mgrid[0:240, 0:320]
    shifted = (np.stack([(x + 7 * place) % 256, y, (x + y) % 256], axis=-1) for place in range(count))
    return [Image.fromarray(each.astype(np.uint8)) for each in shifted]


def ours(bundle: Path, kind: str) -> Embed:
    """mmrt's pipeline."""
    pipeline = mmrt.load(bundle)
    return lambda given: pipeline.generate(**{kind: given}).embeddings


def hugging_face(checkpoint: Path, kind: str, _: Path) -> Embed:
    """transformers' own model, its processor and, for sentences, the mean of the tokens' vectors."""
    model = transformers.AutoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    clip = hasattr(model, "get_text_features")
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    images = transformers.AutoImageProcessor.from_pretrained(checkpoint) if kind == "image" else None

    @torch.inference_mode()
    def embed(given: list[Any]) -> Any:
        if images is not None:
            found = model.get_image_features(**images(images=given, return_tensors="pt"))
        else:
            encoded = tokenizer(given, padding=True, truncation=True, return_tensors="pt")
            rows = {name: encoded[name] for name in ("input_ids", "attention_mask")}
            found = model.get_text_features(**rows) if clip else mean(model(**rows).last_hidden_state, rows)
        return torch.nn.functional.normalize(getattr(found, "pooler_output", found), dim=-1).numpy()

    return embed


def mean(states: torch.Tensor, rows: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of the vectors of a text's own tokens."""
    weights = rows["attention_mask"][:, :, None].to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


def sentence_transformers(checkpoint: Path, _: str, __: Path) -> Embed:
    """The library's `encode`, at the batch that it is asked for."""
    import sentence_transformers as library

    model = library.SentenceTransformer(str(checkpoint), device="cpu")
    return lambda given: model.encode(given, batch_size=len(given), normalize_embeddings=True, show_progress_bar=False)


def open_clip(checkpoint: Path, kind: str, _: Path) -> Embed:
    """open_clip's own model and tokenizer."""
    from mmrt.export.checkpoint import Checkpoint
    from mmrt.export.families.open_clip import _pictures
    from mmrt.export.open_clip_library import open_clip as library
    from mmrt.runtime import media

    model = library().create_model(f"local-dir:{checkpoint}").eval()
    tokenizer = library().get_tokenizer(f"local-dir:{checkpoint}")
    size, normalize = _pictures(Checkpoint(checkpoint), model.visual.preprocess_cfg)

    @torch.inference_mode()
    def embed(given: list[Any]) -> Any:
        if kind == "text":
            return model.encode_text(tokenizer(given), normalize=True).numpy()
        pixels = torch.from_numpy(np.stack([media.fit(each, size) for each in given]))
        return model.encode_image(normalize(pixels), normalize=True).numpy()

    return embed


def optimum(checkpoint: Path, kind: str, work: Path) -> Embed:
    """optimum-onnx's graph in ONNX Runtime, in a process of its own."""
    assert kind == "text"
    python = environment(work / "venv-optimum-onnx", ENVIRONMENTS["optimum-onnx"])
    command = [python, "-c", OPTIMUM, str(checkpoint.resolve()), str(work / f"{checkpoint.name}-optimum")]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdin is not None
    assert worker.stdout is not None
    while worker.stdout.readline() != "\n":  # what it says while it exports
        if worker.poll() is not None:
            raise RuntimeError(f"its process ended with {worker.returncode}")

    def embed(given: list[Any]) -> Any:
        print(json.dumps(given), file=worker.stdin, flush=True)
        return [json.loads(worker.stdout.readline())]

    return embed


PEERS: dict[str, dict[str, Callable[[Path, str, Path], Embed]]] = {
    "minilm": {
        "transformers": hugging_face,
        "sentence-transformers": sentence_transformers,
        "optimum-onnx": optimum,
    },
    "clip": {"transformers": hugging_face},
    "open-clip": {"open_clip": open_clip},
}


if __name__ == "__main__":
    main()
