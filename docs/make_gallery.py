"""Run the programs of the gallery, and keep their pictures and what they print.

python docs/make_gallery.py            # all of them, one after the other
python docs/make_gallery.py gan maml   # these two
python docs/make_gallery.py --list     # their names

Writes docs/gallery/NAME.png and docs/gallery/NAME.txt, which the pages include, and
prints the time and the CPU time of each program. Fails if a program fails, draws
nothing or a picture of more than 80 KB, or prints no row of its baseline.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import resource
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "gallery"
LARGEST = 80_000  # bytes of a picture

# Each program, and how the row of its baseline begins.
BASELINES = {
    "architecture_search": "best of random",
    "data_attribution": "influence functions",
    "dataset_distillation": "k-means, tuned",
    "kernel_hyperparameters": "one length, grid",
    "domain_adaptation": "equal weights",
    "learned_reward": "mean baseline",
    "data_cleaning": "noisy",
    "data_rater": "loss filter",
    "flax_training_loop": "as before",
    "gan": "simultaneous",
    "learned_schedule": "best of the grid",
    "logistic_regression": "one L2",
    "long_tailed": "size^-p",
    "maml": "joint training",
    "mean_teacher": "labels alone",
    "noisy_reviews": "noisy",
    "population": "equal weights",
    "three_levels": "A, equal weights",
    "three_players": "price takers",
}


def has_row(text: str, name: str) -> bool:
    """Find the row `name   0.123 ± 0.004`."""
    return bool(re.search(rf"^ *{re.escape(name)}[ ,].*\d ± \d", text, re.MULTILINE))


def run(name: str) -> str:
    """Run a program, and return what is wrong with it, or nothing."""
    picture = FOLDER / f"{name}.png"
    picture.unlink(missing_ok=True)
    program = ROOT / "examples" / f"{name}.py"
    command = [sys.executable, str(program), "--out", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return f"it failed:\n{done.stderr}"
    lines = [line.rstrip() for line in done.stdout.strip("\n").splitlines()]
    text = "\n".join(lines) + "\n"
    (FOLDER / f"{name}.txt").write_text(text)
    if not picture.is_file():
        return "it drew no picture."
    if (size := picture.stat().st_size) > LARGEST:
        return f"its picture has {size} bytes; expected at most {LARGEST}."
    if not has_row(text, BASELINES[name]):
        return f"it printed no row of its baseline, {BASELINES[name]!r}:\n{text}"
    return ""


def cpu_time() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the programs of the gallery.")
    parser.add_argument("names", nargs="*", help="of programs; default: all")
    parser.add_argument("--list", action="store_true", help="print the names")
    args = parser.parse_args()
    if unknown := set(args.names) - set(BASELINES):
        parser.error(f"unknown: {sorted(unknown)}; expected some of {list(BASELINES)}")
    names = args.names or list(BASELINES)
    if args.list:
        print("\n".join(names))
        return
    FOLDER.mkdir(exist_ok=True)
    failed = False
    for name in names:
        begin, used = time.perf_counter(), cpu_time()
        wrong = run(name)
        failed |= bool(wrong)
        spent = f"{time.perf_counter() - begin:4.0f} s {cpu_time() - used:4.0f} s CPU"
        print(f"{name:22} {spent}   {wrong or 'done'}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
