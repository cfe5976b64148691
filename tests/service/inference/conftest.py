"""A photograph for the tests of decoding."""

from collections.abc import Mapping

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def chelsea(photographs: Mapping[str, Image.Image]) -> Image.Image:
    """451 x 300."""
    return photographs["chelsea"]
