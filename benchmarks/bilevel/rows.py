"""The rows of the jobs: what scikit-learn ships, or files in the folder MLOX_DATA.

fashion_mnist.npz       data cleaning: x_train, y_train of Fashion-MNIST
                        (github.com/zalandoresearch/fashion-mnist); without it the
                        digits of scikit-learn, 1,200 to 500
ijcnn1.bz2, ijcnn1.t.bz2, covtype.libsvm.binary.scale.bz2
                        the original tables of the selection of penalties, from
                        www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary.html
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from sklearn import datasets

Rows = dict[str, np.ndarray]
Split = dict[str, Rows]


def path_of(file: str) -> Path | None:
    """Return the path of a file in the folder MLOX_DATA, None if it is not there."""
    path = Path(os.environ.get("MLOX_DATA", "")) / file
    return path if path.is_file() else None


def diabetes() -> Split:
    """Return 442 patients: 320 and 112, ten features with their products: 65."""
    inputs, target = datasets.load_diabetes(return_X_y=True)
    inputs = _standardized(inputs, 320)
    left, right = np.triu_indices(inputs.shape[1])
    products = inputs[:, left] * inputs[:, right]
    inputs = _standardized(np.hstack([inputs, products]), 320)
    return _split(inputs, (target - target.mean()) / target.std(), 320, 112)


def digits() -> Split:
    """Return 1,280 and 512 images of 8x8 digits: is the digit odd?"""
    inputs, target = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(target))
    inputs = inputs[order][:, inputs.std(axis=0) > 0]
    sign = 2.0 * (target[order] % 2) - 1
    return _split(_standardized(inputs, 1280), sign, 1280, 512, shuffle=False)


def ijcnn1() -> Split:
    """Return the 49,984 and 91,648 rows of ijcnn1, 22 features."""
    parts = {}
    for key, file, number in (
        ("lower", "ijcnn1.bz2", 49_984),
        ("upper", "ijcnn1.t.bz2", 91_648),
    ):
        inputs, target = _svmlight(file)
        parts[key] = _floats(inputs=inputs[:number], target=target[:number])
    return parts


def covtype() -> Split:
    """Return 460,800 and 115,200 rows of the binary covtype, 54 features."""
    inputs, target = _svmlight("covtype.libsvm.binary.scale.bz2")
    return _split(inputs, np.where(target > target.min(), 1.0, -1.0), 460_800, 115_200)


def images(corruption: float, number: int = 25_000) -> Split:
    """Return images, four fifths to train on, of which a part has random labels."""
    generator = np.random.default_rng(0)
    if path := path_of("fashion_mnist.npz"):
        with np.load(path) as file:
            inputs, target = file["x_train"], file["y_train"]
    else:
        inputs, target = datasets.load_digits(return_X_y=True)
        number = min(number, 1500)
    order = generator.permutation(len(target))[:number]
    inputs = np.float32(inputs[order].reshape(number, -1))
    train = number // 5 * 4
    wrong = generator.random(number) < corruption
    wrong[train:] = False
    target = np.where(wrong, generator.integers(10, size=number), target[order])
    inputs = _standardized(inputs, train)
    found = _split(inputs, target, train, number - train, shuffle=False)
    return {
        key: {**part, "target": part["target"].astype(np.int32)}
        for key, part in found.items()
    }


def quadratics(lower: int, upper: int, widths: tuple[int, int] = (100, 10)) -> Split:
    """Return the factors of random quadratics of rank one, with a convex F.

    One sample costs (a y)^2 / 2 + (b x)^2 / 2 + (u x)(v y) + p y + q x. The mean
    matrices of the squares have spectra from 0.1 to 1, those of the products singular
    values up to 0.1.
    """
    for seed in range(20):
        generator = np.random.default_rng(seed)
        data = {
            "lower": _factors(generator, lower, *widths),
            "upper": _factors(generator, upper, *widths),
        }
        if _curvature(data) > 0.01:
            return data
    raise RuntimeError("found no quadratics whose value function is convex")


def _factors(generator: np.random.Generator, n: int, wide: int, narrow: int) -> Rows:
    def rotated(width: int) -> np.ndarray:
        basis, _ = np.linalg.qr(generator.normal(size=(width, width)))
        root = np.logspace(-0.5, 0, width)
        return generator.normal(size=(n, width)) @ (basis * root) @ basis.T

    noise = generator.normal(size=(n, wide))
    left, _ = np.linalg.qr(generator.normal(size=(narrow, narrow)))
    right, _ = np.linalg.qr(generator.normal(size=(wide, wide)))
    singular = np.logspace(-2, -1, narrow)
    return _floats(
        a=rotated(wide),
        b=rotated(narrow),
        u=noise[:, :narrow] * singular @ left.T,
        v=noise @ right.T,
        p=generator.normal(size=(n, wide)),
        q=generator.normal(size=(n, narrow)),
    )


def mean_matrices(part: Rows) -> Rows:
    """Return the mean cost of quadratics: A, B, C = u v^T and the linear parts."""
    part = {key: np.float64(value) for key, value in part.items()}
    n = len(part["a"])
    return {
        "A": part["a"].T @ part["a"] / n,
        "B": part["b"].T @ part["b"] / n,
        "C": part["u"].T @ part["v"] / n,
        "p": part["p"].mean(axis=0),
        "q": part["q"].mean(axis=0),
    }


def _curvature(data: Split) -> float:
    """Return the smallest eigenvalue of the Hessian of the value function."""
    g, f = mean_matrices(data["lower"]), mean_matrices(data["upper"])
    slope = -np.linalg.solve(g["A"], g["C"].T)
    cross = f["C"] @ slope
    hessian = slope.T @ f["A"] @ slope + f["B"] + cross + cross.T
    return float(np.linalg.eigvalsh(hessian)[0])


def _split(
    inputs: np.ndarray,
    target: np.ndarray,
    lower: int,
    upper: int,
    shuffle: bool = True,
) -> Split:
    """Split rows in a random order, or as they are."""
    order = np.arange(len(target))
    if shuffle:
        order = np.random.default_rng(0).permutation(order)
    parts = {"lower": order[:lower], "upper": order[lower : lower + upper]}
    return {
        key: _floats(inputs=inputs[chosen], target=target[chosen])
        for key, chosen in parts.items()
    }


def _floats(**arrays: np.ndarray) -> Rows:
    return {key: np.float32(value) for key, value in arrays.items()}


def _standardized(inputs: np.ndarray, number: int) -> np.ndarray:
    """Shift and scale columns by the mean and the spread of the first rows."""
    spread = inputs[:number].std(axis=0)
    return (inputs - inputs[:number].mean(axis=0)) / np.where(spread > 0, spread, 1)


def _svmlight(file: str) -> tuple[np.ndarray, np.ndarray]:
    path = path_of(file)
    if path is None:
        raise FileNotFoundError(
            f"Found no {file} in the folder of the environment variable MLOX_DATA. "
            "Get it at www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary.html."
        )
    inputs, target = datasets.load_svmlight_file(str(path))
    return inputs.toarray(), target
