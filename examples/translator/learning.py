"""What translator and captioner share: the vocabulary, the steps of training, greedy answers, the checkpoint."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import UnigramTrainer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

PAD, EOS, UNK = 0, 1, 2  # as T5 has them
IGNORED = -100  # a label that no loss is taken of


def kept_tokenizer(folder: Path, texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """The tokenizer in `folder`, learnt from `texts` where there is none: ids must stay what they were trained as.

    Unigram over words and punctuation, in lower case; a text ends with `</s>`.
    """
    if not (folder / "tokenizer.json").exists():
        learner = Tokenizer(models.Unigram())
        learner.normalizer = normalizers.Lowercase()
        learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
        learner.decoder = decoders.Metaspace()
        special = ["<pad>", "</s>", "<unk>"]
        trainer = UnigramTrainer(vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False)
        learner.train_from_iterator(texts, trainer)
        learner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS)])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=learner,
            pad_token="<pad>",
            eos_token="</s>",
            unk_token="<unk>",
            model_input_names=["input_ids", "attention_mask"],
        )
        tokenizer.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def labels(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Ids (texts, longest), with `IGNORED` where a text has ended."""
    ids = tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
    return ids.masked_fill(ids == PAD, IGNORED)


@dataclass
class Batch:
    """One step of training: the rows to learn from, how much of the time is over (0 to 1), and the step itself."""

    rows: Tensor
    over: float
    optimizer: torch.optim.Optimizer
    loss: float = 0.0

    def step(self, loss: Tensor) -> None:
        """Learn from `loss`, a scalar."""
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], 1.0)
        self.optimizer.step()
        self.loss = loss.item()


def schedule(path: Path, model: nn.Module, *, minutes: float, batch: int, examples: int, lr: float) -> Iterator[Batch]:
    """Steps over shuffled rows for `minutes`; the learning rate warms up over 100 steps, then falls as a cosine.

    The minutes are processor time, as other programs on the machine shall not decide how much is learnt. Every half of
    one progress is printed and the state written to `path`, from which a training that was cut off, or is
    given more minutes, goes on.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=1e-2, foreach=True)
    step, used = 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, used = state["step"], state["seconds"]
    torch.manual_seed(step)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{path.stem}: {millions:.2f} M parameters, begins at step {step}, {used / 60:.1f} minutes", flush=True)
    total, begin, told, losses = 60 * minutes, time.process_time() - used, used, []
    rows = torch.randperm(examples)
    while used < total:
        if len(rows) < batch:
            rows = torch.cat([rows, torch.randperm(examples)])
        taken, rows = rows[:batch], rows[batch:]
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * used / total))
        now = Batch(taken, used / total, optimizer)
        yield now
        step, used = step + 1, time.process_time() - begin
        losses.append(now.loss)
        if used - told > 30 or used >= total:
            loss, speed = sum(losses) / len(losses), len(losses) * batch / (used - told)
            print(
                f"{path.stem}: step {step}, epoch {step * batch / examples:.0f}, loss {loss:.4f}, "
                f"{speed:.0f} samples/s, {(total - used) / 60:.1f} minutes left",
                flush=True,
            )
            told, losses = used, []
            save_state(path, model, optimizer, step, used)


def save_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
    """Write beside, then rename: a state is whole or not there."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds}
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch: int = 256, **inputs: Any) -> list[str]:
    """What the model says, greedily, to each row of `inputs`."""
    said = []
    for first in range(0, len(next(iter(inputs.values()))), batch):
        part = {name: value[first : first + batch] for name, value in inputs.items()}
        said += tokenizer.batch_decode(model.generate(**part), skip_special_tokens=True)
    return said


def save_checkpoint(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write model and tokenizer as transformers reads them: weights in fp16, to be computed with in fp32."""
    copy.deepcopy(model).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # written readable by the owner alone
    config = folder / "config.json"  # transformers computes in the type it names
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
