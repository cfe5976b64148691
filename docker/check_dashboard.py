"""Whether Grafana's own models understand the dashboard: read, written again, and compared.

Needs grafana-foundation-sdk, which docker/check_manifests.sh installs. What the models do not know is lost on the way,
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

# Of the data source for Prometheus, which the models of annotations leave out.
UNMODELLED = {"titleFormat", "textFormat"}


def lost(ours: object, theirs: object, path: str = "") -> Iterator[str]:
    """What is in `ours` and not, or different, in `theirs`."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in ours.keys() - UNMODELLED:
            if key in theirs:
                yield from lost(ours[key], theirs[key], f"{path}.{key}")
            else:
                yield f"{path}.{key} is unknown"
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from lost(mine, other, f"{path}[{index}]")
    elif ours != theirs:
        yield f"{path} is {ours!r}, and {theirs!r} when read and written"


def main() -> None:
    """Ends with 1 and sentences if anything is wrong."""
    register_default_plugins()
    path = Path(__file__).parent / "grafana" / "dashboards" / "mae-serve.json"
    ours = json.loads(path.read_text())
    theirs = json.loads(JSONEncoder().encode(Dashboard.from_json(ours)))
    if wrong := sorted(lost(ours, theirs)):
        sys.exit("\n".join(wrong))
    print(f"{path.name}: Grafana's models read and write all of it")


if __name__ == "__main__":
    main()
