"""kill -9 of every process that the product starts, in every phase.

.venv/bin/python -m tests.attacks.kills [--only servers|conversion|embed|index|pretrain] [--seed 0]    # 5 minutes

After each kill: no process and no temporary file of it is left, its port is free, nobody got another one's answer, and
the next start serves or goes on, with the same rows or weights.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

from model.engines.settings import EngineSettings
from tests.attacks.kills import commands, servers
from tests.attacks.kills.scene import Scene
from tests.attacks.server import report
from tests.attacks.time_limit import end_after

NAMES = ("servers", "conversion", "embed", "index", "pretrain")
EXPECTED = {
    "kills",
    "restarts",
    "right answers",
    "requests lost with their process",
    "refused",
    "503 draining",
    "rows compared",
    "tensors compared",
    "ended before the kill",
    "shards not tried, for want of PyArrow",
    "mae index not tried, for want of LanceDB",
}


def main() -> int:
    """Attacks; returns the exit code of `report`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=NAMES)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    end_after(minutes=30)
    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="mae-kills-") as name:
        scene = Scene(Path(name), seen, random.Random(options.seed))
        converts = options.only in (None, "conversion")
        cache = scene.folder / "cache" if converts else EngineSettings().engine_cache
        images = commands.make_images(scene.folder / "images", commands.IMAGES)

        def attack_conversion() -> None:
            servers.attack_conversion(scene, cache, moments=3)
            servers.attack_load(scene, cache)

        def attack_servers() -> None:
            for workers in (0, servers.WORKERS):
                servers.attack_server(scene, workers)
            servers.attack_workers(scene)

        attacks = {
            "servers": attack_servers,
            "conversion": attack_conversion,
            "embed": lambda: commands.attack_embed(scene, cache, images),
            "index": lambda: commands.attack_index(scene, cache, images),
            "pretrain": lambda: commands.attack_pretrain(scene, cache, images),
        }
        for attack in [attacks[options.only]] if options.only else attacks.values():
            attack()
    return report("kills", seen, EXPECTED)


if __name__ == "__main__":
    sys.exit(main())
