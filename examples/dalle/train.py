"""Train a small DALL-E on emoji, from two npm packages to a checkpoint.

    python train.py vae --pictures emoji-datasource-google-16.0.0.tgz --names emojibase-data-17.0.0.tgz --minutes 30
    python train.py dalle --minutes 30
    python train.py save

`vae` learns pictures as 8 x 8 codes, `dalle` the codes that follow a name. Both keep their state under --work and go on
from there; the learning rate falls to zero over the minutes, which are processor time.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from mmrt.export.dalle_library import dalle_pytorch

EXAMPLES = Path(__file__).resolve().parent.parent
sys.path += [str(EXAMPLES / "emoji"), str(EXAMPLES / "translator")]
import data  # noqa: E402
import learning  # noqa: E402

VAE = {
    "image_size": data.SIZE,
    "num_layers": 3,
    "num_tokens": 512,
    "codebook_dim": 128,
    "hidden_dim": 64,
    "num_resnet_blocks": 1,
}
DALLE = {
    "num_text_tokens": 2800,
    "text_seq_len": 16,
    "dim": 192,
    "depth": 3,
    "heads": 4,
    "dim_head": 48,
    "share_input_output_emb": True,
}
NULL = 0.1  # of the texts are left out, for guidance


def new_vae(**options: Any) -> Any:
    """64 px to 8 x 8 codes and back."""
    return dalle_pytorch().DiscreteVAE(**(VAE | options))


def kept_vae(work: Path, pictures: Tensor) -> Any:
    """The VAE as the stage left it, but for the codes that no picture has."""
    whole = new_vae().eval()
    whole.load_state_dict(torch.load(work / "vae.pt", weights_only=True)["model"])
    used = load_codes(whole, pictures).unique()
    weights = whole.state_dict()
    last = max(name for name in weights if name.startswith("encoder.") and weights[name].shape[0] == VAE["num_tokens"])
    for name in ("codebook.weight", last, f"{last.rpartition('.')[0]}.bias"):
        weights[name] = weights[name][used]
    vae = new_vae(num_tokens=len(used)).eval()
    vae.load_state_dict(weights)
    return vae


def train_vae(args: argparse.Namespace) -> None:
    """Pictures there and back by way of codes that are drawn; less and less of chance, and at last only the best ones.

    In the last third the encoder stands still, and the decoder learns from the codes as they are.
    """
    pictures = load_pictures(args)
    model = new_vae()
    path = args.work / "vae.pt"
    for batch in learning.schedule(path, model, minutes=args.minutes, batch=16, examples=len(pictures), lr=2e-3):
        wanted = pictures[batch.rows]
        image = model.norm(wanted)
        if batch.over < 0.65:
            heat = max(0.1, 0.9 * (1 - batch.over / 0.6))
            drawn = F.gumbel_softmax(model.encoder(image), tau=heat, dim=1)
            made = model.decoder(torch.einsum("bnhw,nd->bdhw", drawn, model.codebook.weight))
        else:
            made = model.decode(model.get_codebook_indices(wanted))
        batch.step(picture_loss(made, image))
    codes = load_codes(model.eval(), pictures)
    with torch.inference_mode():
        made = torch.cat([model.decode(part) for part in codes.split(256)])
    wanted = pictures.flatten(1)
    nearest = torch.cdist((made / 2 + 0.5).clamp(0, 1).flatten(1), wanted).argmin(1)
    right = (nearest == torch.arange(len(codes))).float().mean()
    print(f"{len(codes.unique())} codes are in use, {len(codes.unique(dim=0))} pictures differ in theirs")
    print(f"L1 {(made / 2 + 0.5 - pictures).abs().mean() * 255:.1f} of 255, nearest picture right {right:.1%}")


def picture_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """L1 of the pixels and, for sharp edges, of their differences to the neighbours below and to the right."""
    error = made - wanted
    return error.abs().mean() + 0.5 * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())


def train_dalle(args: argparse.Namespace) -> None:
    """The codes of a picture after its English name; no name one time in ten, for guidance."""
    pictures = load_pictures(args)
    vae = kept_vae(args.work, pictures)
    codes, (names, _) = load_codes(vae, pictures), load_names(args.names_table)
    model = dalle_pytorch().DALLE(vae=vae, **DALLE)
    print(f"{vae.num_tokens} codes", flush=True)
    for batch in learning.schedule(
        args.work / "dalle.pt", model, minutes=args.minutes, batch=args.batch, examples=len(codes), lr=args.lr
    ):
        text = names[torch.randint(len(names), batch.rows.shape), batch.rows]
        text = text * (torch.rand(len(text), 1) >= NULL)
        batch.step(code_loss(model, text, codes[batch.rows]))


def code_loss(model: Any, text: Tensor, codes: Tensor) -> Tensor:
    """The cross entropy of the codes (batch, 64) alone: `DALLE.forward` would also make the logits of all texts."""
    places = torch.arange(model.text_seq_len) + model.num_text_tokens - model.text_seq_len
    text = F.pad(torch.where(text == 0, places, text), (1, 0))
    tokens = torch.cat([model.text_emb(text), model.image_emb(codes[:, :-1])], dim=1)
    states = model.transformer(tokens)[:, model.text_seq_len :]
    norm, head = model.to_logits
    logits = F.linear(norm(states), head.weight[model.num_text_tokens :], head.bias[model.num_text_tokens :])
    return F.cross_entropy(logits.flatten(0, 1), codes.flatten())


def load_names(path: Path) -> tuple[Tensor, Tokenizer]:
    """Names as ids (spellings, emoji, 16), 0 after their ends: one in three without punctuation; and the tokenizer.

    The vocabulary is the translator's, whose padding is 0; a text has no other special tokens.
    """
    tokenizer = Tokenizer.from_file(str(EXAMPLES / "translator" / "checkpoint" / "tokenizer.json"))
    tokenizer.post_processor = None
    tokenizer.no_padding()
    emoji = data.read_names(path)
    english, bare = ([data.spellings(row.english)[k] for row in emoji] for k in (0, -1))
    ids = [[tokenizer.encode(text).ids for text in group] for group in (english, english, bare)]
    length = DALLE["text_seq_len"]
    return torch.tensor([[row + [0] * (length - len(row)) for row in group] for group in ids]), tokenizer


@torch.inference_mode()
def load_codes(vae: Any, pictures: Tensor) -> Tensor:
    """int64 (emoji, 64)."""
    return torch.cat([vae.get_codebook_indices(part) for part in pictures.split(256)])


def load_pictures(args: argparse.Namespace) -> Tensor:
    """float32 (emoji, 3, 64, 64) in [0, 1]."""
    _, pictures = data.read_packages(args.pictures, args.names)
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous().float() / 255


def save(args: argparse.Namespace) -> None:
    """Write the checkpoint: dalle-pytorch's parameters, fp16 weights, the tokenizer."""
    args.checkpoint.mkdir(parents=True, exist_ok=True)
    weights = torch.load(args.work / "dalle.pt", weights_only=True)["model"]
    tied = ("text_emb.linear.", "image_emb.linear.")  # the same as to_logits.1
    kept = {name: value.half().contiguous() for name, value in weights.items() if not name.startswith(tied)}
    kept["transformer.pos_emb"] = weights["transformer.pos_emb"]  # angles, which fp16 would turn
    save_file(kept, args.checkpoint / "model.safetensors")
    (args.checkpoint / "model.safetensors").chmod(0o644)
    vae = VAE | {"num_tokens": len(weights["vae.codebook.weight"])}
    config = {"hparams": DALLE, "vae_params": vae, "vae_class_name": "DiscreteVAE"}
    (args.checkpoint / "dalle.json").write_text(json.dumps(config, indent=1) + "\n")
    load_names(args.names_table)[1].save(str(args.checkpoint / "tokenizer.json"), pretty=False)


def main() -> None:
    """Read the command line and run one stage."""
    stages = {"vae": train_vae, "dalle": train_dalle, "save": save}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--work", type=Path, default=Path("work"), help="where the training state is kept")
    parser.add_argument("--pictures", type=Path, default=Path("emoji-datasource-google-16.0.0.tgz"))
    parser.add_argument("--names", type=Path, default=Path("emojibase-data-17.0.0.tgz"))
    parser.add_argument("--names-table", type=Path, default=EXAMPLES / "emoji" / "names.tsv")
    parser.add_argument("--minutes", type=float, default=25, help="of processor time")
    parser.add_argument("--batch", type=int, default=16, help="of the stage `dalle`")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="of the stage `dalle`")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint"), help="where `save` writes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    args.work.mkdir(parents=True, exist_ok=True)
    stages[args.stage](args)


if __name__ == "__main__":
    main()
