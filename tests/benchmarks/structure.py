"""Prints how the code is arranged: rooms, floors, arrows, circles and upward arrows of each package.

    .venv/bin/python -m tests.benchmarks.structure              # this checkout
    .venv/bin/python -m tests.benchmarks.structure OTHER_CHECKOUT --verbose

A room is a module or a folder as one sees it in the package's own folder. An arrow leads from a room to another one
that it imports; imports inside functions and for type checking count. Floors are the rooms on the longest chain of
arrows; rooms that import one another in a circle share a floor. Upward arrows are the fewest arrows whose removal
leaves no circle of rooms. Circles of modules are counted in the whole checkout.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import permutations
from pathlib import Path

PACKAGES = ("service", "model")
Graph = Mapping[str, set[str]]
"""The names of modules or rooms, and of those that each imports."""


def import_graph(checkout: Path) -> dict[str, set[str]]:
    """Each module of the packages, by its full name, and the modules of the packages that it imports."""
    files = {module_name(path, checkout): path for package in PACKAGES for path in (checkout / package).rglob("*.py")}
    return {module: set(imports_of(path, files)) - {module} for module, path in files.items()}


def module_name(path: Path, checkout: Path) -> str:
    """The full name of the module in a file."""
    parts = path.relative_to(checkout).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, modules: Collection[str]) -> Iterator[str]:
    """Those of `modules` that a file imports, anywhere in it; relative imports are not used here."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:  # a name is a module or stands in one
                yield from [name for name in (f"{node.module}.{alias.name}", node.module) if name in modules][:1]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)


def room_graph(modules: Graph, package: str) -> dict[str, set[str]]:
    """The rooms of `package` and the arrows between them."""

    def room_of(module: str) -> str | None:
        inside = module.removeprefix(f"{package}.")
        return None if inside == module else inside.partition(".")[0]

    rooms: dict[str, set[str]] = {room: set() for module in modules if (room := room_of(module))}
    for module, imported in modules.items():
        if room := room_of(module):
            rooms[room] |= {other for name in imported if (other := room_of(name))} - {room}
    return rooms


def components(graph: Graph) -> list[list[str]]:
    """The strongly connected components, those that others import first (Tarjan 1972)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    result: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = lowest[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], index[other])
        if lowest[node] == index[node]:
            start = stack.index(node)
            result.append(sorted(stack[start:]))
            del stack[start:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return result


def circles(graph: Graph) -> list[list[str]]:
    """The groups of nodes that import one another in a circle."""
    return [component for component in components(graph) if len(component) > 1]


def floors(graph: Graph) -> dict[str, int]:
    """The floor of each room: 1 for rooms that import no other."""
    result: dict[str, int] = {}
    for component in components(graph):
        below = {other for node in component for other in graph[node]} - set(component)
        floor = 1 + max((result[other] for other in below), default=0)
        result.update(dict.fromkeys(component, floor))
    return result


def upward_arrows(graph: Graph) -> list[tuple[str, str]]:
    """The fewest arrows whose removal leaves no circle, found by trying all orders of the rooms of each circle."""
    return [
        arrow
        for circle in circles(graph)
        for arrow in min((arrows_against(order, graph) for order in permutations(circle)), key=len)
    ]


def arrows_against(order: Iterable[str], graph: Graph) -> list[tuple[str, str]]:
    """The arrows that lead from a room to one that comes later in `order`, which goes upwards."""
    place = {room: number for number, room in enumerate(order)}
    return [
        (room, other) for room in place for other in sorted(graph[room] & place.keys()) if place[other] > place[room]
    ]


def packages_with_rooms(modules: Graph) -> list[str]:
    """The packages and their folders, the packages themselves first."""
    folders = {name.rpartition(".")[0] for name in modules} - {""}
    return sorted(folders, key=lambda name: (name.count("."), PACKAGES.index(name.split(".")[0]), name))


def main() -> None:
    """Prints a table of all packages, then the circles and the arrows that lead upwards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, nargs="?", default=Path(__file__).parents[2])
    parser.add_argument("--verbose", action="store_true", help="print each room with its floor and its imports")
    options = parser.parse_args()
    modules = import_graph(options.checkout)
    upward = [
        f"{module} -> {other}"
        for module in modules
        for other in sorted(modules[module])
        if module.startswith("model") and other.startswith("service")
    ]
    print(f"{'package':28}{'rooms':>7}{'floors':>8}{'arrows':>8}{'upward':>8}")
    for package in packages_with_rooms(modules):
        graph = room_graph(modules, package)
        levels, against = floors(graph), upward_arrows(graph)
        upward += [f"{package}: {room} -> {other}" for room, other in against]
        count = sum(map(len, graph.values()))
        print(f"{package:28}{len(graph):7}{max(levels.values()):8}{count:8}{len(against):8}")
        if options.verbose:
            for room in sorted(graph, key=lambda room: (levels[room], room)):
                print(f"{levels[room]:8}  {room}: {', '.join(sorted(graph[room])) or '-'}")
    print(f"circles of modules: {len(circles(modules))}")
    for circle in circles(modules):
        print(f"  {', '.join(circle)}")
    print(f"upward arrows: {len(upward)}")
    for arrow in upward:
        print(f"  {arrow}")


if __name__ == "__main__":
    main()
