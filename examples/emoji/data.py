"""The data: pictures of emoji and their names in English and Chinese, out of two npm packages.

    npm pack emoji-datasource-google@16.0.0    # pictures, 64 px, Noto Emoji 2.048 (Apache-2.0)
    npm pack emojibase-data@17.0.0             # names (MIT)

The packages are read as npm packs them.
"""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

SIZE = 64
PICTURES = "package/img/google/64/"
LANGUAGES = ("english", "chinese")


class Emoji(NamedTuple):
    """One emoji: the character itself and its name in both languages, English in lower case."""

    emoji: str
    english: str
    chinese: str


def read_packages(pictures: Path, names: Path) -> tuple[list[Emoji], npt.NDArray[np.uint8]]:
    """The emoji without skin tone of `emoji-datasource-google`, with their names of `emojibase-data`.

    Returns the names and the pictures, uint8 (emoji, 64, 64, 3), composited on white.
    """
    labels = [_labels(names, language) for language in ("en", "zh")]
    emoji, (codes, images) = [], read_pictures(pictures)
    for code in codes:
        english, chinese = (table[code.replace("-FE0F", "")] for table in labels)
        character = "".join(chr(int(point, 16)) for point in code.split("-"))
        emoji.append(Emoji(character, english.lower(), chinese.lower()))
    return emoji, images


def read_pictures(package: Path) -> tuple[list[str], npt.NDArray[np.uint8]]:
    """The emoji without skin tone of `emoji-datasource-google`: code points such as "1F1E6-1F1E8", and the pictures."""
    with tarfile.open(package) as tar:  # read in its own order: to go back in it is to unpack it again
        wanted = (member for member in tar if member.name.startswith((PICTURES, "package/emoji.json")))
        files = {member.name: _open(tar, member).read() for member in wanted}
    entries: list[dict[str, Any]] = json.loads(files["package/emoji.json"])
    entries.sort(key=lambda entry: int(entry["sort_order"]))
    shown = [entry for entry in entries if entry["category"] != "Component"]  # which are skin tones and hair
    images = [_on_white(io.BytesIO(files[PICTURES + entry["image"]])) for entry in shown]
    return [entry["unified"] for entry in shown], np.stack(images)


def spellings(name: str) -> list[str]:
    """The name and, where it has punctuation, the name without: `flag: france`, `flag france`."""
    bare = re.sub(r"\s+", " ", re.sub(r"[^\w\s]", "" if "'" in name or "\u2019" in name else " ", name)).strip()
    return [name, bare] if bare and bare != name else [name]


def write_names(path: Path, emoji: list[Emoji]) -> None:
    """Write the names as a table of three columns."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(Emoji._fields)
        table.writerows(emoji)


def read_names(path: Path) -> list[Emoji]:
    """Read what `write_names` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return [Emoji(*row) for row in list(csv.reader(file, delimiter="\t"))[1:]]


def counting_as(emoji: list[Emoji], pictures: npt.NDArray[np.uint8]) -> list[list[Emoji]]:
    """For each emoji those that count as one with it, itself first: the same but for the direction, or to look at."""
    bases = [row.english.removesuffix(" facing right") for row in emoji]
    looks = [picture.tobytes() for picture in pictures]
    return [
        [emoji[i], *(emoji[j] for j in range(len(emoji)) if j != i and (bases[i] == bases[j] or looks[i] == looks[j]))]
        for i in range(len(emoji))
    ]


def _labels(package: Path, language: str) -> dict[str, str]:
    with tarfile.open(package) as tar:
        entries: list[dict[str, str]] = json.load(_open(tar, tar.getmember(f"package/{language}/data.json")))
    return {entry["hexcode"].replace("-FE0F", ""): entry["label"] for entry in entries}


def _on_white(file: io.BufferedIOBase) -> npt.NDArray[np.uint8]:
    picture = Image.open(file).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))


def _open(tar: tarfile.TarFile, member: tarfile.TarInfo) -> io.BufferedIOBase:
    file = tar.extractfile(member)
    assert file is not None, f"{member.name} is not a file"
    return file  # type: ignore[return-value]
