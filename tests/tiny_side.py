"""A side of a comparison that counts, and may be told to fail; needs NumPy alone."""

import os
import time

import numpy as np


def build(given, settings):
    from _side import Side

    if settings.get("fails") == "built":
        raise ValueError("cannot be built")
    made, rate = [given["start"]], settings.get("rate", 1.0)

    def advance(steps):
        if settings.get("fails") == "hangs":
            time.sleep(60)
        if settings.get("fails") == "dies":
            print("out of luck", flush=True)  # which goes to stderr
            os.abort()
        for _ in range(steps):
            made[0] = made[0] + rate

    about = {"numpy": np.__version__}
    if name := settings.get("read"):
        about[name] = str(os.environ.get(name))
    return Side(advance, lambda: {"total": made[0]}, about, {"flops": 3.0})
