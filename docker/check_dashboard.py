"""Checks that Grafana's own models understand the dashboard: they read it and write it, and both are compared.

Needs grafana-foundation-sdk, which docker/check_manifests.sh installs. The models drop options that they do not know,
so a misspelt option is found.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

# Options of the data source for Prometheus, which the models of annotations lack.
UNMODELLED_OPTIONS = {"titleFormat", "textFormat"}


def differences(ours: object, theirs: object, path: str = "") -> Iterator[str]:
    """A sentence for each value of `ours` that is missing or different in `theirs`."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in ours.keys() - UNMODELLED_OPTIONS:
            if key in theirs:
                yield from differences(ours[key], theirs[key], f"{path}.{key}")
            else:
                yield f"{path}.{key} is unknown"
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(mine, other, f"{path}[{index}]")
    elif ours != theirs:
        yield f"{path} is {ours!r}, and {theirs!r} after Grafana's models have read and written it"


def main() -> None:
    """Prints the differences and exits with 1 if there are any."""
    register_default_plugins()
    path = Path(__file__).parent / "grafana" / "dashboards" / "mae-serve.json"
    ours = json.loads(path.read_text())
    theirs = json.loads(JSONEncoder().encode(Dashboard.from_json(ours)))
    if problems := sorted(differences(ours, theirs)):
        sys.exit("\n".join(problems))
    print(f"{path.name}: Grafana's models understand all of it")


if __name__ == "__main__":
    main()
