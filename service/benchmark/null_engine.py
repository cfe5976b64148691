"""An engine that answers at once, and the real server around it: what is left is web, decoding and batching.

Run as a program by the benchmark alone (`python null_engine.py INFO.json`): `mae serve` has no way to it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from model.arrays import Bytes, Floats, Indices
from model.engines.base import EngineInfo, ServedModel


class NullEngine:
    """Shapes and lanes of another engine, and numbers made beforehand.

    They are noise and not zeros, whose JSON would be shorter; pixels are the image's own, so that a PNG costs as usual.
    """

    def __init__(self, info: EngineInfo) -> None:
        """In the form of the engine that `info` is of."""
        self.info = info
        config, noise = info.config, np.random.default_rng(0)
        self._vectors = noise.standard_normal((info.preferred_batch, 2, config.embed_dim), dtype=np.float32)
        self._tokens = noise.standard_normal((config.num_patches, config.embed_dim), dtype=np.float32)

    def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        """See `Engine.embed`."""
        return self._vectors[: len(patches)]

    def tokens(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        """See `Engine.tokens`."""
        return np.broadcast_to(
            self._tokens[: visible_indices.shape[1]], (*visible_indices.shape, self._tokens.shape[1])
        )

    def reconstruct(self, lane: int, patches: Bytes, visible_indices: Indices) -> tuple[Bytes, Floats]:
        """See `Engine.reconstruct`."""
        return patches, np.ones(patches.shape[:2], np.float32)


def main() -> int:
    """Serves until it is ended."""
    from service.logs import configure_logging
    from service.settings import load_settings

    info = EngineInfo.model_validate_json(Path(sys.argv[1]).read_text())

    def build(settings: Any, progress: Callable[[str], None]) -> ServedModel:
        return ServedModel(NullEngine(info))

    settings = load_settings()
    configure_logging(settings.log_format)
    try:
        from service.serving import run
    except ModuleNotFoundError:  # an older revision that is measured with this
        from service.server import run  # type: ignore[attr-defined,no-redef]
    return int(run(settings, build))


if __name__ == "__main__":
    sys.exit(main())
