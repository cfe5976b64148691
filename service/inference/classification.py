"""Classifications, as routes and commands give them."""

from __future__ import annotations

from typing import Any

import numpy as np

from model.arrays import Floats


def most_probable(probabilities: Floats, labels: tuple[str, ...], top_k: int) -> list[dict[str, Any]]:
    """The `top_k` classes with the largest of `probabilities`, float32 [C], in descending order; ties by index."""
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return [{"label": labels[index], "probability": probabilities[index]} for index in order]
