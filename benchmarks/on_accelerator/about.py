"""What the device is."""

from __future__ import annotations

from on_accelerator import device
from on_accelerator.parts import Place, Rows


def rows(place: Place) -> Rows:
    """Return one row."""
    del place
    return {"device": device.about}
