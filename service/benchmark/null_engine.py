"""An engine that answers at once, behind the real server: only web, decoding and batching take time.

`mae bench` and tests/benchmarks run this file as a program (`python null_engine.py INFO.json`). No setting of
`mae serve` selects this engine.
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
    """Imitates the shapes and lanes of another engine, and returns numbers that were made beforehand.

    The vectors are noise: zeros would make the JSON shorter than real ones. The pixels are those of the image itself,
    so that a PNG takes as long to write as usual.
    """

    def __init__(self, info: EngineInfo) -> None:
        """Imitates the engine that `info` describes."""
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
    """Serves until a signal ends the process; returns the exit code."""
    from service.logs import configure_logging
    from service.serving import run
    from service.settings import load_settings

    info = EngineInfo.model_validate_json(Path(sys.argv[1]).read_text())

    def build(settings: Any, progress: Callable[[str], None]) -> ServedModel:
        return ServedModel(NullEngine(info))

    settings = load_settings()
    configure_logging(settings.log_format)
    return int(run(settings, build))


if __name__ == "__main__":
    sys.exit(main())
