"""Who may import whom: a layer imports only from layers below it, and nothing imports in a circle."""

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.imports import PACKAGES, Graph, import_graph, modules, top_level_graph

# From the bottom to the top. A file or folder imports only from lines that stand above its own, or from itself. A new
# one gets its place here, as low as its imports allow.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("model.arrays", "model.atomic_write", "model.config"),  # types of arrays; whole files; sizes and presets
    ("model.masking", "model.nn"),  # which patches stay visible; the networks as the papers have them
    ("model.images", "model.checkpoints"),  # files <-> pixels <-> patches; files <-> weights
    ("model.engines",),  # weights -> something that computes
    ("model.evaluation", "model.anomaly", "model.benchmark"),  # what is done with engines
    ("model.export",),  # weights -> files of other programs
    ("model.training",),  # networks that learn; a frozen one gets the evaluation's linear probe
    ("service.paths", "service.api_keys", "service.freed_memory"),  # forms of paths and keys; glibc's memory
    ("service.errors", "service.settings", "service.logs", "service.gpu_metrics"),
    ("service.parameters", "service.error_formats"),  # parameters of routes, and flags of commands; errors as JSON
    ("service.metrics", "service.tracing"),  # what operators see of requests
    ("service.connection_limit", "service.send_timeout"),  # how many connections, and how long a client may not read
    ("service.listener", "service.http_protocol"),  # where and how connections are taken
    ("service.inference",),  # decode, queue, batch, post-process
    ("service.index",),  # stored vectors: nearest neighbours and near-duplicates
    ("service.lifecycle",),  # loading, ready, draining, lost
    ("service.service",),  # what the routes see of all that
    ("service.server", "service.api"),  # uvicorn with our signals; HTTP
    ("service.workers",),  # HTTP processes in front of the process that has the engine
    ("service.serving",),  # one process or several
    ("service.benchmark", "service.cluster"),  # measurements of the service; the service and its engines on Ray
    ("service.cli",),  # the command `mae`
)
FILES = modules()
GRAPH = import_graph(FILES)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def layer(module: str) -> str | None:
    """The entry of LAYERS that a module belongs to; None for a package itself."""
    return next((name for name in LEVEL if module == name or module.startswith(f"{name}.")), None)


def circle(graph: Graph) -> list[str]:
    """The names along one circle of imports, or an empty list."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def upward(graph: Graph) -> list[str]:
    """Every import that does not lead down."""
    return [
        f"{module} imports {target}"
        for module, targets in sorted(graph.items())
        for target in sorted(targets)
        if (here := layer(module)) is not None
        and (there := layer(target)) is not None
        and here != there
        and LEVEL[there] >= LEVEL[here]
    ]


def test_every_module_has_a_layer() -> None:
    homeless = [module for module in FILES if layer(module) is None and module not in PACKAGES]
    assert not homeless, f"these have no place in LAYERS: {', '.join(homeless)}"
    unknown = [name for name in LEVEL if not any(layer(module) == name for module in FILES)]
    assert not unknown, f"LAYERS names what does not exist: {', '.join(unknown)}"


def test_no_import_leads_upwards() -> None:
    assert upward(GRAPH) == []


def test_no_module_imports_itself_through_others() -> None:
    assert circle(GRAPH) == []


FOLDERS = sorted({name.rpartition(".")[0] for name in FILES if "." in name})


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_two_files_or_folders_of_a_folder_import_each_other(folder: str) -> None:
    assert circle(top_level_graph(GRAPH, folder)) == []


def test_the_model_never_imports_the_service() -> None:
    assert [
        name
        for name, targets in GRAPH.items()
        if name.startswith("model") and any(target.startswith("service") for target in targets)
    ] == []


# --- the graph itself


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small package with every kind of import."""
    (tmp_path / "model" / "nn").mkdir(parents=True)
    files = {
        "__init__": "",
        "config": "import os\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from model.images import A\n",
        "images": "from . import masking\n",
        "masking": "def late():\n    import model.config\n",
        "nn/__init__": "from model.nn.vit import ViT\nfrom ..config import Config\n",
        "nn/vit": "from model import config\n",
    }
    for name, text in files.items():
        (tmp_path / "model" / f"{name}.py").write_text(text)
    return tmp_path


def test_every_kind_of_import_is_seen(package: Path) -> None:
    graph = import_graph(modules(package))
    assert graph == {
        "model": set(),
        "model.config": {"model.images"},
        "model.images": {"model.masking"},
        "model.masking": {"model.config"},
        "model.nn": {"model.nn.vit", "model.config"},
        "model.nn.vit": {"model.config"},
    }
    assert sorted(set(circle(graph))) == ["model.config", "model.images", "model.masking"]
    assert upward(graph) == ["model.config imports model.images"]
    assert top_level_graph(graph, "model")["nn"] == {"config"}
