"""A fake engine for tests of the code around an engine, and small models for tests of real engines."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from model.arrays import Bytes, Floats, Indices
from model.config import PRESETS, MAEConfig, Preprocessing
from model.engines.base import EngineInfo
from model.engines.settings import EngineSettings

SMALL = MAEConfig(
    name="fake",
    image_size=32,
    patch_size=16,
    embed_dim=8,
    depth=1,
    num_heads=2,
    decoder_embed_dim=8,
    decoder_depth=1,
    decoder_num_heads=2,
)
"""Four patches of 16 x 16."""

NARROW = MAEConfig(
    name="narrow",
    image_size=32,
    patch_size=8,
    embed_dim=32,
    depth=2,
    num_heads=2,
    decoder_embed_dim=16,
    decoder_depth=1,
    decoder_num_heads=2,
)
"""16 patches of 8 x 8. The model is small, and still has several heads and blocks, in which errors would show."""


def write_narrow(folder: Path, **changes: Any) -> Path:
    """Writes weights of NARROW with `changes`, all of them random, biases too."""
    import torch  # imported here, since other tests do without torch

    from model.checkpoints.checkpoint import Checkpoint, save
    from model.nn import build_model

    torch.manual_seed(0)
    config = NARROW.model_copy(update=changes)
    tensors = dict(build_model(config).state_dict())
    tensors |= {name: 0.1 * torch.randn(tensor.shape) for name, tensor in tensors.items() if name.endswith(".bias")}
    path = folder / "narrow.safetensors"
    save(path, Checkpoint(config, Preprocessing(), "mae-serve", tensors))
    return path


def write_fresh(path: Path, seed: int = 0, **changes: Any) -> Path:
    """Writes weights of NARROW with `changes`, as training begins with them: its biases are zero."""
    import torch

    from model.checkpoints.checkpoint import Checkpoint, save
    from model.nn.vit import MaskedAutoencoder

    torch.manual_seed(seed)
    config = NARROW.model_copy(update=changes)
    save(path, Checkpoint(config, Preprocessing(), "mae-serve", dict(MaskedAutoencoder(config).state_dict())))
    return path


def write_resnet(folder: Path) -> Path:
    """Writes a fresh resnet_tiny: the same bytes each time, so that an engine cache needs one entry for it."""
    import torch

    from model.checkpoints.checkpoint import Checkpoint, save
    from model.nn import build_model

    torch.manual_seed(0)
    model = build_model(PRESETS["resnet_tiny"])
    path = folder / "resnet.safetensors"
    save(path, Checkpoint(model.config, Preprocessing(), "mae-serve", dict(model.state_dict())))
    return path


def fake_info(config: MAEConfig = SMALL, lanes: int = 1, preferred_batch: int = 32) -> EngineInfo:
    return EngineInfo(
        backend="torch",
        precision="fp32",
        computes="fp32",
        device="cpu",
        model="fake",
        weights="0" * 64,
        layout="none",
        license=None,
        config=config,
        preprocessing=Preprocessing(),
        lanes=lanes,
        threads_per_lane=1,
        preferred_batch=preferred_batch,
        versions={},
    )


def with_changes(settings: EngineSettings, **changes: Any) -> EngineSettings:
    """The same settings but for `changes`, validated."""
    return EngineSettings(**{**settings.model_dump(), **changes})


class FakeEngine:
    """An `Engine` whose outputs repeat the first byte of each image, and which records its batches.

    Vectors, tokens and errors repeat that byte, and pixels are the image's own.

    Args:
        preferred_batch: for the info.
        lanes: for the info.
        before: called with the first bytes of a batch before it runs; it may sleep, raise, or wait for a `Gate`.
        not_a_number: the first byte of images whose outputs are NaN.
        config: for the info.
    """

    def __init__(
        self,
        preferred_batch: int = 32,
        lanes: int = 1,
        before: Callable[[list[int]], None] = lambda images: None,
        not_a_number: int | None = None,
        config: MAEConfig = SMALL,
    ) -> None:
        self.info = fake_info(config, lanes=lanes, preferred_batch=preferred_batch)
        self.batches: list[tuple[str, int, list[int]]] = []
        """The operation, K and the images' first bytes of each batch."""
        self.running = self.max_running = 0
        self._before = before
        self._not_a_number = not_a_number
        self._lock = threading.Lock()

    def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        return self._answer("embed", patches, visible_indices, (2, 8))

    def tokens(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        return self._answer("tokens", patches, visible_indices, (visible_indices.shape[1], 8))

    def reconstruct(self, lane: int, patches: Bytes, visible_indices: Indices) -> tuple[Bytes, Floats]:
        return patches, self._answer("reconstruct", patches, visible_indices, (patches.shape[1],))

    def _answer(self, operation: str, patches: Bytes, visible_indices: Indices, shape: tuple[int, ...]) -> Floats:
        images = patches[:, 0, 0].tolist()
        with self._lock:
            self.batches.append((operation, visible_indices.shape[1], images))
            self.running += 1
            self.max_running = max(self.max_running, self.running)
        try:
            self._before(images)
        finally:
            with self._lock:
                self.running -= 1
        first = patches[:, 0, 0].astype(np.float32)
        if self._not_a_number is not None:
            first[first == self._not_a_number] = np.nan
        return np.broadcast_to(first.reshape(-1, *(1 for _ in shape)), (len(first), *shape)).copy()


def sleep_per_batch(call_s: float, image_s: float = 0.0) -> Callable[[list[int]], None]:
    """Makes a `before` that sleeps `call_s` for each batch, and `image_s` more for each image."""
    return lambda images: time.sleep(call_s + image_s * len(images))
