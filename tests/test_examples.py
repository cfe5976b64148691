"""Property tests have the same examples in every run, whatever their process has loaded before."""

import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def draw_examples() -> list[tuple[int, str]]:
    drawn: list[tuple[int, str]] = []

    @settings(derandomize=True, max_examples=200)
    @given(st.integers(), st.text())
    def draw(number: int, text: str) -> None:
        drawn.append((number, text))

    draw()
    return drawn


def test_examples_do_not_depend_on_the_modules_that_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = draw_examples()
    path = tmp_path / "constants.py"
    path.write_text("".join(f"VALUE_{n} = {10**9 + 7 * n}, 'text {n}'\n" for n in range(50)))
    spec = importlib.util.spec_from_file_location("constants_of_a_test", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "constants_of_a_test", module)
    spec.loader.exec_module(module)
    assert draw_examples() == before
