"""No variable OTEL_… of the machine that runs the tests changes what they see."""

import os

import pytest


@pytest.fixture(autouse=True)
def without_otel_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
