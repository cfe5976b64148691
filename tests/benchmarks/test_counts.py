"""The scripts that count: rooms and floors of a small checkout, and the files that a call passes."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.path_of_a_request import FunctionRecorder
from tests.benchmarks.structure import circles, floors, import_graph, room_graph, upward_arrows

FILES = {
    "model/ground.py": "import os",
    "model/middle/__init__.py": "",
    "model/middle/first.py": "from model import ground\nfrom model.middle import second",
    "model/middle/second.py": "import model.ground",
    "service/top.py": "from model.middle.first import anything\ndef late():\n    from service import beside",
    "service/beside.py": "from service.top import late",
    "service/alone.py": "",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_imports_are_found_wherever_they_stand(checkout: Path) -> None:
    graph = import_graph(checkout)
    assert graph["model.middle.first"] == {"model.ground", "model.middle.second"}
    assert graph["service.top"] == {"model.middle.first", "service.beside"}
    assert circles(graph) == [["service.beside", "service.top"]]


def test_a_folder_is_one_room_and_a_circle_one_floor(checkout: Path) -> None:
    graph = import_graph(checkout)
    assert room_graph(graph, "model") == {"ground": set(), "middle": {"ground"}}
    assert floors(room_graph(graph, "model")) == {"ground": 1, "middle": 2}
    service = room_graph(graph, "service")
    assert floors(service) == {"alone": 1, "top": 1, "beside": 1}
    assert len(upward_arrows(service)) == 1


def test_the_fewest_arrows_go_upwards() -> None:
    """Three rooms import `low`, which imports one of them: that arrow alone goes upwards."""
    graph = {"low": {"a"}, "a": {"low", "b"}, "b": {"low"}, "c": {"low"}}
    assert upward_arrows(graph) == [("low", "a")]
    assert floors(graph)["c"] == 2


def load(root: Path, name: str, code: str) -> dict[str, Any]:
    """The names that a module below `root` defines."""
    names: dict[str, Any] = {"__name__": name}
    exec(compile(code, str(root / name), "exec"), names)
    return names


def test_files_are_counted_when_a_function_starts_and_not_when_it_resumes(tmp_path: Path) -> None:
    code = "async def wait(other):\n    await sleep(0)\n    inner()\n    other()\n    await sleep(0)\ndef inner(): pass"
    caller = load(tmp_path, "service/caller.py", code)
    caller["sleep"] = asyncio.sleep
    called = load(tmp_path, "model/called.py", "def work(): return [n for n in range(3)]")
    elsewhere = load(tmp_path, "docker/elsewhere.py", "def work(): pass")
    recorder = FunctionRecorder(tmp_path)
    recorder.install()
    try:
        called["work"]()  # before recording
        with recorder.record():
            elsewhere["work"]()
            asyncio.run(caller["wait"](called["work"]))
        called["work"]()  # after it
    finally:
        recorder.uninstall()
    assert recorder.starts == [
        ("service/caller.py", "wait"),
        ("service/caller.py", "inner"),
        ("model/called.py", "work"),
    ]
