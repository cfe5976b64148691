"""The joined lane of a real server: it is made after the server is ready, and gives the bits of the other lanes."""

import time
from pathlib import Path

import httpx

from tests.live.conftest import Start

PHOTOGRAPH = Path(__file__).parents[1] / "data" / "chelsea.jpg"


def test_lone_images_keep_their_bits(start_server: Start, probe: Path, warm_cache: Path) -> None:
    server = start_server(weights=probe, joined_lane="on", lanes=2, max_batch=2)
    with httpx.Client(base_url=server.url, timeout=60) as client:

        def answers() -> list[bytes]:
            routes = ("/embed", "/embed?keep=0.25&seed=1", "/reconstruct?seed=1")
            return [client.post(route, content=PHOTOGRAPH.read_bytes()).content for route in routes]

        before = answers()
        for _ in range(1200):
            if (engine := client.get("/info").json()["engine"])["joined"]:
                break
            time.sleep(0.05)
        assert engine["joined"]
        assert engine["joined_mb"] > 0 and engine["batch_curves"]["shapes"]["embed whole"]["joined"]["1"] > 0
        assert answers() == before
