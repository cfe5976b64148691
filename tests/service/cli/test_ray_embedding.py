"""`mae embed --ray` where Ray is not installed; tests/cluster has what it does with Ray."""

import sys

import pytest

from service.cli.errors import CommandError
from service.cli.ray_embedding import open_engines
from service.settings import Settings


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "ray" or name.startswith("service.cluster")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CommandError, match="pip install"), open_engines(Settings(), None, None, None):
        pass
