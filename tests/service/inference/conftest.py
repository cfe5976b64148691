"""A photograph for the tests of decoding, and lanes in virtual time."""

from collections.abc import Iterator, Mapping

import pytest
from PIL import Image

from tests.support.virtual_lanes import VirtualLanes


@pytest.fixture(scope="session")
def chelsea(photographs: Mapping[str, Image.Image]) -> Image.Image:
    """451 x 300."""
    return photographs["chelsea"]


@pytest.fixture
def lanes() -> Iterator[VirtualLanes]:
    """Lanes whose clock and threads the service uses."""
    lanes = VirtualLanes()
    with lanes.patch_modules():
        yield lanes
