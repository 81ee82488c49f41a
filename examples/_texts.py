"""Short texts of two kinds, some of them with wrong labels, as numbers of words."""

import argparse
import ast
import functools
import gzip
import importlib.util
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _data import Pair
from _program import parser

LENGTH, WORDS = 24, 2000  # words of a text that are read, numbers of words
REVIEWS = "reviews.jsonl.gz"
NAMES = {"docstrings": ["scipy", "sklearn"], "reviews": ["rotten", "fresh"]}


class Texts(NamedTuple):
    """Texts with noisy labels, texts with clean labels, and test texts."""

    noisy: Pair  # words [n, LENGTH] and labels [n]; some of these are wrong
    clean: Pair
    test: Pair
    true: np.ndarray  # the correct labels of `noisy`
    texts: list[str]  # of `noisy`
    seed: int


def sentences(package: str) -> Iterator[str]:
    """Yield the first sentence of each docstring in the files of a package."""
    found = importlib.util.find_spec(package)
    (folder,) = found.submodule_search_locations or () if found else ()
    for file in sorted(Path(folder).rglob("*.py")):
        if "tests" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                text = " ".join((ast.get_docstring(node) or "").split())
                yield re.split(r"(?<=\w\w[.])\s| Parameters -|::", text)[0]


@functools.cache
def load(name: str) -> tuple[list[str], np.ndarray]:
    """Return texts and their labels, 0 or 1.

    "docstrings" are first sentences in scipy (0) and scikit-learn (1), without those
    that name either or occur in both. "reviews" (rotten is 0, fresh is 1) is read from
    the folder in the environment variable MLOX_DATA.
    """
    if name == "reviews":
        lines = gzip.decompress(_reviews().read_bytes()).splitlines()
        rows = [json.loads(line) for line in lines]
        return [row["text"] for row in rows], np.array([row["label"] for row in rows])
    kinds = [dict.fromkeys(sentences(package)) for package in NAMES[name]]
    both, names = kinds[0].keys() & kinds[1].keys(), re.compile("(?i)sci(py|kit)|sklea")
    found = [
        (text, label)
        for label, kind in enumerate(kinds)
        for text in kind
        if text not in both and len(text.split()) > 3 and not names.search(text)
    ]
    return [text for text, _ in found], np.array([label for _, label in found])


def _reviews() -> Path:
    folder = os.environ.get("MLOX_DATA")
    file = Path(folder or ".") / REVIEWS
    if folder is None or not file.is_file():
        raise SystemExit(
            f"Found no {REVIEWS}: MLOX_DATA is {folder!r}. Set this environment "
            'variable to the folder that holds this file, a line {"label": 0 or 1, '
            '"text": ...} for each review, such as those of the movie review data '
            "(cs.cornell.edu/people/pabo/movie-review-data)."
        )
    return file


def numbers(text: str) -> list[int]:
    """Return a number below WORDS for each word, and 0 where there is none."""
    words = re.findall(r"[a-z]+|[0-9!?]", text.lower())[:LENGTH]
    found = [1 + zlib.crc32(word.encode()) % (WORDS - 1) for word in words]
    return found + [0] * (LENGTH - len(found))


def split_texts(name: str, noise: float, size: int, clean: int, seed: int) -> Texts:
    """Draw `size` noisy texts, `clean` ones, and up to 1000 for tests.

    Half of them are of each kind. A fraction `noise` of the noisy labels is flipped.
    """
    texts, labels = load(name)
    rng = np.random.default_rng(seed)
    kinds = [rng.permutation(np.flatnonzero(labels == k)) for k in range(2)]
    pairs = np.stack([kind[: min(map(len, kinds))] for kind in kinds], axis=1)
    rows = pairs.ravel()[: size + clean + 1000]
    words = np.array([numbers(texts[i]) for i in rows], np.int32)
    labels = labels[rows].astype(np.int32)
    true, end = labels[:size], size + clean
    return Texts(
        noisy=(words[:size], np.where(rng.random(size) < noise, 1 - true, true)),
        clean=(words[size:end], labels[size:end]),
        test=(words[end:], labels[end:]),
        true=true,
        texts=[texts[i] for i in rows[:size]],
        seed=seed,
    )


def options() -> argparse.ArgumentParser:
    """Return a parser of what is drawn, and of the number of steps."""
    found = parser("Classify texts with noisy labels with mlox.")
    found.add_argument("--data", choices=list(NAMES), default="docstrings")
    found.add_argument("--noise", type=float, default=0.4, help="of the labels")
    found.add_argument("--size", type=int, default=3000, help="noisy texts")
    found.add_argument("--clean", type=int, default=400, help="clean texts")
    found.add_argument("--steps", type=int, default=300, help="multiple of 100")
    return found
