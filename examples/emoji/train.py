"""Train a small text-to-image diffusion model on emoji, from two npm packages to a diffusers pipeline.

    python train.py data --pictures emoji-datasource-google-16.0.0.tgz --names emojibase-data-17.0.0.tgz
    python train.py autoencoder --minutes 26   # pictures <-> latents
    python train.py text --minutes 10          # names -> tokens that tell of the latents
    python train.py denoiser --minutes 65      # noise, tokens -> latents
    python train.py decoder --minutes 20       # sharper pictures from the latents as they are
    python train.py save --checkpoint checkpoint

Every stage keeps its state under --work, goes on from there when it is started again, and ends when its minutes are
used; the learning rate falls to zero over them.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import data
import models
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer


def prepare(args: argparse.Namespace) -> None:
    """Unpack pictures and names."""
    emoji, pictures = data.read_packages(args.pictures, args.names)
    args.work.mkdir(parents=True, exist_ok=True)
    np.save(args.work / "pictures.npy", pictures)
    data.write_names(args.work / "names.tsv", emoji)
    print(f"{len(emoji)} emoji, {pictures.nbytes / 1e6:.0f} MB of pictures")


def train_autoencoder(args: argparse.Namespace) -> None:
    """Pictures there and back, with a trace of KL."""
    pictures = load_pictures(args.work)
    model = models.new_autoencoder()
    for batch in schedule(args, "autoencoder", model, batch=16, examples=len(pictures), lr=2e-3):
        wanted = pictures[batch.rows]
        posterior = model.encode(wanted).latent_dist
        made = model.decode(posterior.sample()).sample
        batch.step(picture_loss(made, wanted) + 1e-6 * posterior.kl().mean())


def picture_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """L1 of the pixels and, for sharp edges, of their differences to the neighbours below and to the right."""
    error = made - wanted
    return error.abs().mean() + 0.5 * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())


class Text(nn.Module):
    """The text encoder and two heads that it is trained with and that nobody needs afterwards.

    One head reads a 2 x 2 patch of the latents from each of the last 16 tokens, the other reads from their mean which
    emoji it is.
    """

    def __init__(self, tokenizer: CLIPTokenizer, emoji: int) -> None:
        super().__init__()
        self.encoder = models.new_text_encoder(tokenizer)
        self.patch = nn.Linear(models.WIDTH, models.LATENT**3 // models.PATCHES)
        self.which = nn.Linear(models.WIDTH, emoji)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (batch, 32) -> latents (batch, 8, 8, 8), scores (batch, emoji)."""
        tokens = self.encoder(ids).last_hidden_state[:, -models.PATCHES :]
        latents = F.fold(self.patch(tokens).transpose(1, 2), models.LATENT, kernel_size=2, stride=2)
        return latents, self.which(tokens.mean(1))


def train_text(args: argparse.Namespace) -> None:
    """Names to the latents themselves, by regression: what names mean is learnt here, without noise and hence fast."""
    latents, prompts = load_latents(args.work)[0], Prompts(args.work)
    model = Text(prompts.tokenizer, len(latents))
    for batch in schedule(args, "text", model, batch=128, examples=len(latents), lr=2e-3):
        made, scores = model(prompts.draw(batch.rows))
        batch.step(F.mse_loss(made, latents[batch.rows]) + 0.1 * F.cross_entropy(scores, batch.rows))
    with torch.inference_mode():
        for language, ids in zip(data.LANGUAGES, prompts.names, strict=True):
            made = torch.cat([model(part)[0] for part in ids.split(256)])
            nearest = torch.cdist(made.flatten(1), latents.flatten(1)).argmin(1)
            print(f"{language}: nearest latents are right for {(nearest == torch.arange(len(ids))).float().mean():.1%}")


class Prompts:
    """The names as ids, in all languages and spellings."""

    def __init__(self, work: Path) -> None:
        emoji = data.read_names(work / "names.tsv")
        self.tokenizer = models.kept_tokenizer(work / "tokenizer", emoji)
        self.names = [self.ids([row[1 + k] for row in emoji]) for k in range(len(data.LANGUAGES))]
        self.bare = [self.ids([data.spellings(row[1 + k])[-1] for row in emoji]) for k in range(len(data.LANGUAGES))]
        self.empty = self.ids([""])

    def ids(self, texts: list[str]) -> Tensor:
        """Ids (texts, 32), padded."""
        return torch.tensor(self.tokenizer(texts, padding="max_length", truncation=True)["input_ids"])

    def draw(self, rows: Tensor) -> Tensor:
        """A prompt for each row: either language, and one time in four the spelling without punctuation."""
        choices = torch.stack([*self.names, *self.names, *self.names, *self.bare])
        return choices[torch.randint(len(choices), rows.shape), rows]


def train_denoiser(args: argparse.Namespace) -> None:
    """The velocity of the latents, given the text encoder's tokens; no prompt one time in ten, for guidance."""
    latents, prompts = load_latents(args.work)[0], Prompts(args.work)
    tokens = encode_prompts(args.work, prompts, len(latents))
    model, sampler = models.new_denoiser(), models.new_sampler()
    average = copy.deepcopy(model).requires_grad_(False)
    for batch in schedule(args, "denoiser", model, batch=64, examples=len(latents), lr=1e-3, average=average):
        count = len(batch.rows)
        when = (1000 * torch.rand(count) ** 0.7).long()  # more often where the name decides, at high noise
        noise = torch.randn(count, *latents.shape[1:])
        wanted = sampler.get_velocity(latents[batch.rows], noise, when)
        context = tokens[torch.randint(len(tokens) - 1, (count,)), batch.rows]
        context[torch.rand(count) < 0.1] = tokens[-1, 0]
        made = model(sampler.add_noise(latents[batch.rows], noise, when), when, context).sample
        batch.step(F.mse_loss(made, wanted))


@torch.inference_mode()
def encode_prompts(work: Path, prompts: Prompts, emoji: int) -> Tensor:
    """Tokens (choices, emoji, 32, 192) of all that `Prompts.draw` draws from, and of the empty prompt last."""
    model = Text(prompts.tokenizer, emoji)
    model.load_state_dict(load_state(work, "text")["model"])
    choices = [*prompts.names, *prompts.names, *prompts.names, *prompts.bare, prompts.empty.expand(emoji, -1)]
    done: dict[int, Tensor] = {}
    for ids in choices:
        if id(ids) not in done:
            done[id(ids)] = torch.cat([model.encoder(part).last_hidden_state for part in ids.split(256)])
    return torch.stack([done[id(ids)] for ids in choices])


def train_decoder(args: argparse.Namespace) -> None:
    """The decoder alone, on latents as they are and a little beside, as the denoiser will hit them."""
    pictures = load_pictures(args.work)
    latents, scale = load_latents(args.work)
    whole = load_autoencoder(args.work)
    model = nn.ModuleDict({"post_quant_conv": whole.post_quant_conv, "decoder": whole.decoder})
    for batch in schedule(args, "decoder", model, batch=16, examples=len(pictures), lr=1e-3):
        near = latents[batch.rows] + 0.05 * torch.randn(len(batch.rows), *latents.shape[1:])
        batch.step(picture_loss(whole.decode(near / scale).sample, pictures[batch.rows]))


def save(args: argparse.Namespace) -> None:
    """Write the pipeline: fp16 weights of the autoencoder, the text encoder and the averaged denoiser."""
    prompts = Prompts(args.work)
    text = Text(prompts.tokenizer, len(prompts.names[0]))
    text.load_state_dict(load_state(args.work, "text")["model"])
    unet = models.new_denoiser()
    unet.load_state_dict(load_state(args.work, "denoiser")["average"])
    vae = load_autoencoder(args.work)
    if (args.work / "decoder.pt").exists():
        vae.load_state_dict(load_state(args.work, "decoder")["model"], strict=False)
    vae.register_to_config(scaling_factor=load_latents(args.work)[1])
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text.encoder.half(),
        tokenizer=prompts.tokenizer,
        unet=unet.half(),
        scheduler=models.new_sampler(),
        safety_checker=None,
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(args.checkpoint)
    for weights in args.checkpoint.rglob("*.safetensors"):  # written readable by the owner alone
        weights.chmod(0o644)
    prompts.tokenizer.backend_tokenizer.model.save(str(args.checkpoint / "tokenizer"))  # vocab.json, merges.txt
    config = args.checkpoint / "text_encoder" / "config.json"  # transformers computes in the type it names
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    data.write_names(args.checkpoint.parent / "names.tsv", data.read_names(args.work / "names.tsv"))


def load_pictures(work: Path) -> Tensor:
    """float32 (emoji, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(np.load(work / "pictures.npy")).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def load_autoencoder(work: Path) -> AutoencoderKL:
    """The autoencoder as the stage of that name left it."""
    model = models.new_autoencoder()
    model.load_state_dict(load_state(work, "autoencoder")["model"])
    return model


def load_latents(work: Path) -> tuple[Tensor, float]:
    """Latents (emoji, 8, 8, 8) scaled to a deviation of one, and the scale."""
    path = work / "latents.pt"
    if not path.exists():
        model = load_autoencoder(work).eval()
        with torch.inference_mode():
            raw = torch.cat([model.encode(part).latent_dist.mode() for part in load_pictures(work).split(64)])
        scale = round(1 / raw.std().item(), 4)
        save_state(path, {"latents": raw * scale, "scale": scale})
    state = load_state(work, "latents")
    return state["latents"], state["scale"]


def load_state(work: Path, name: str) -> dict[str, Any]:
    """What `save_state` wrote."""
    state: dict[str, Any] = torch.load(work / f"{name}.pt", weights_only=True)
    return state


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write beside, then rename: a state is whole or not there."""
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


class Batch:
    """One step of training: the rows to learn from, and the step itself."""

    def __init__(self, rows: Tensor, optimizer: torch.optim.Optimizer, lr: float) -> None:
        self.rows, self.optimizer, self.lr, self.loss = rows, optimizer, lr, 0.0

    def step(self, loss: Tensor) -> None:
        """Learn from `loss`, a scalar."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], 1.0)
        self.optimizer.step()
        self.loss = loss.item()


def schedule(
    args: argparse.Namespace,
    name: str,
    model: nn.Module,
    *,
    batch: int,
    examples: int,
    lr: float,
    average: nn.Module | None = None,
) -> Iterator[Batch]:
    """The steps of a stage: shuffled rows; the learning rate warms up over 100 steps, then falls as a cosine of time.

    Every half minute the progress is printed and the state written to `WORK/NAME.pt`, from which a stage that was cut
    off goes on. Time in which the process stood still counts as used. `average` follows the weights of `model` (EMA).
    """
    path = args.work / f"{name}.pt"
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=1e-2, foreach=True)
    step, used, losses = 0, 0.0, []
    if path.exists():
        state = load_state(args.work, name)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, used = state["step"], state["seconds"]
        if average is not None:
            average.load_state_dict(state["average"])
    torch.manual_seed(step)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{name}: {millions:.2f} M parameters, begins at step {step}, {used / 60:.1f} minutes", flush=True)
    total, begin = 60 * args.minutes, time.monotonic() - used
    told, told_step, rows = used, step, torch.randperm(examples)
    while used < total:
        if len(rows) < batch:
            rows = torch.cat([rows, torch.randperm(examples)])
        taken, rows = rows[:batch], rows[batch:]
        now = Batch(taken, optimizer, float(lr * min((step + 1) / 100, 0.5 + 0.5 * np.cos(np.pi * used / total))))
        yield now
        step, used = step + 1, time.monotonic() - begin
        if average is not None:
            weight = 1 - min(0.998, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), weight)
        losses.append(now.loss)
        if used - told > 30 or used >= total:
            speed = (step - told_step) * batch / (used - told)
            print(
                f"{name}: step {step}, loss {np.mean(losses):.4f}, {speed:.1f} samples/s, lr {now.lr:.1e}, "
                f"{(total - used) / 60:.1f} minutes left",
                flush=True,
            )
            told, told_step, losses = used, step, []
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": used}
            save_state(path, state | ({"average": average.state_dict()} if average is not None else {}))


def main() -> None:
    """Read the command line and run one stage."""
    stages = {
        "data": prepare,
        "autoencoder": train_autoencoder,
        "text": train_text,
        "denoiser": train_denoiser,
        "decoder": train_decoder,
        "save": save,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--work", type=Path, default=Path("work"), help="where data and training state are kept")
    parser.add_argument("--pictures", type=Path, default=Path("emoji-datasource-google-16.0.0.tgz"))
    parser.add_argument("--names", type=Path, default=Path("emojibase-data-17.0.0.tgz"))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint"), help="where `save` writes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    stages[args.stage](args)


if __name__ == "__main__":
    main()
