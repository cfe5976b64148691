"""The import graph of our packages, read from the source: no module is imported for it."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("model", "service")
Graph = dict[str, set[str]]
"""Names of modules, each with the names of those that it imports."""


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of both packages by its name; a folder's `__init__` has the folder's name."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    }


def import_graph(files: Mapping[str, Path]) -> Graph:
    """The modules that each module imports, wherever the import stands: in functions and for types, too."""
    return {name: set(_imported(name, path, files)) - {name} for name, path in files.items()}


def _imported(name: str, path: Path, files: Mapping[str, Path]) -> Iterator[str]:
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{source}.{alias.name}"
                if submodule in files:
                    yield submodule
                elif source in files:
                    yield source


def top_level_graph(graph: Graph, package: str) -> Graph:
    """The graph of a package's own files and folders; a module that lies deeper counts for its folder."""

    def top_level(module: str) -> str | None:
        inner = module.removeprefix(f"{package}.")
        return inner.split(".")[0] if inner != module else None

    result: Graph = {}
    for module, targets in graph.items():
        if (source := top_level(module)) is not None:
            imported = {name for target in targets if (name := top_level(target)) is not None}
            result.setdefault(source, set()).update(imported - {source})
    return result
