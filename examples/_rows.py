"""Tables of numbers for the examples, with labels, split into parts."""

import gzip
import json
import os
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.feature_extraction.text import TfidfVectorizer

Rows = tuple[np.ndarray, np.ndarray]  # features [n, d] and labels [n]


def cancer(seed: int) -> list[Rows]:
    """Return 40 % of the rows to train, 15 and 15 % to validate, and 30 % to test."""
    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    parts = np.split(order, [int(part * len(x)) for part in (0.4, 0.55, 0.7)])
    x = (x - x[parts[0]].mean(axis=0)) / x[parts[0]].std(axis=0)
    return _scaled(x, y, parts)


def newsgroups(seed: int, words: int = 3000) -> list[Rows]:
    """Return 50, 25 and 25 % of the training documents, and the test documents.

    Both files are read from the folder in the environment variable MLOX_DATA.
    """
    parts = [_documents(name) for name in ("train", "test")]
    train, test = ([row["text"] for row in rows] for rows in parts)
    labels = [row["label"] for rows in parts for row in rows]
    tfidf = TfidfVectorizer(
        max_features=words, sublinear_tf=True, stop_words="english", dtype=np.float32
    ).fit(train)
    x = np.asarray(tfidf.transform(train + test).todense())
    y = np.unique(labels, return_inverse=True)[1]
    order, n = np.random.default_rng(seed).permutation(len(train)), len(train)
    rest = np.arange(n, len(x))
    return _scaled(x, y, [*np.split(order, [n // 2, 3 * n // 4]), rest])


def _documents(name: str) -> list[dict[str, Any]]:
    folder, file = os.environ.get("MLOX_DATA"), f"newsgroups_{name}.jsonl.gz"
    path = os.path.join(folder or ".", file)
    if folder is None or not os.path.isfile(path):
        raise SystemExit(
            f"Found no {file}: MLOX_DATA is {folder!r}. Set this environment variable "
            "to the folder that holds it, with one document of 20 newsgroups in each "
            'line: {"label": ..., "text": ...}.'
        )
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


def _scaled(x: np.ndarray, y: np.ndarray, parts: list[np.ndarray]) -> list[Rows]:
    """Add a constant, and scale X^T X / n of the first part to a largest eigenvalue 1.

    A loss of logistic regression then has a curvature of at most 1/2.
    """
    x = np.insert(x, 0, x.std(), axis=1)
    first = x[parts[0]]
    vector = np.ones(x.shape[1], x.dtype)
    for _ in range(50):
        vector = first.T @ (first @ vector)
        vector /= np.linalg.norm(vector)
    scale = np.sqrt(len(first)) / np.linalg.norm(first @ vector)
    return [(x[rows] * scale.astype(x.dtype), y[rows]) for rows in parts]


def odd_digits(seed: int, sizes: list[int], features: int) -> list[Rows]:
    """Return parts of the digits with the labels 1 (odd) and -1, and the rest.

    Pixels that hardly vary are dropped. The first feature is a constant.
    """
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = x[:, x.std(axis=0) > 1][order, :features], 2.0 * (y[order] % 2) - 1
    x = np.insert((x - x.mean(axis=0)) / x.std(axis=0), 0, 1.0, axis=1)
    cuts = np.cumsum(sizes)
    return list(zip(np.split(x, cuts), np.split(y, cuts), strict=True))
