"""The fuzzing target `decode`: bytes as an image, and as the mask of an image."""

from __future__ import annotations

import zlib
from pathlib import Path

import atheris

from model.config import PRESETS, Preprocessing
from service.errors import ServiceError
from service.inference.decode_memory import DecodeMemory
from service.inference.image_decoder import DecodedImage, ImageDecoder
from service.inference.limits import LocalBudget
from tests.support.image_files import SIGNATURE
from tests.support.image_seeds import image_seeds

MAX_PIXELS = 2_000_000
MAX_DECODE_BYTES = 100_000_000


class Decode:
    """The decoder of /embed and /reconstruct, with less memory and fewer pixels than by default."""

    memory_mb = 150
    max_length = 8192

    def __init__(self) -> None:
        memory = DecodeMemory(LocalBudget(MAX_DECODE_BYTES))
        self._decoder = ImageDecoder(PRESETS["mae_tiny"], Preprocessing(), MAX_PIXELS, memory)
        self._other = DecodedImage.of_patches(
            self._decoder.decode(image_seeds()["rgb.png"], 0).patches, PRESETS["mae_tiny"], 0
        )

    def seeds(self) -> dict[str, bytes]:
        return image_seeds()

    def read(self, data: bytes) -> bool:
        try:
            decoded = self._decoder.decode(data, 0)
        except ServiceError as error:
            if not self.is_expected(error):
                raise
            self._decoder.read_mask(data, self._other)
            return False
        self._decoder.read_mask(data, decoded)
        return True

    def is_expected(self, error: BaseException) -> bool:
        return isinstance(error, ServiceError) and error.status < 500

    def mutate(self, data: bytes, max_size: int, seed: int) -> bytes:
        """A mutation; in most PNGs, with checksums that are right again."""
        changed = bytes(atheris.Mutate(data, max_size))
        return right_checksums(changed)[:max_size] if seed % 8 and changed.startswith(SIGNATURE) else changed


def right_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have right checksums, as far as it consists of chunks."""
    out, position = data[:8], 8
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4])
        if end + 4 > len(data):
            break
        out += data[position:end] + zlib.crc32(data[position + 4 : end]).to_bytes(4)
        position = end + 4
    return out + data[position:]


def make_target(folder: Path) -> Decode:
    return Decode()
