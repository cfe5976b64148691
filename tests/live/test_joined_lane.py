"""The joined lane of a real server: it is made after the server is ready, and answers keep their bits."""

from pathlib import Path
from typing import Any

import httpx

from tests.live.conftest import Start

PHOTOGRAPH = Path(__file__).parents[1] / "data" / "chelsea.jpg"


def test_lone_images_keep_their_bits(start_server: Start, probe: Path, warm_cache: Path) -> None:
    server = start_server(weights=probe, joined_lane="on", lanes=2, max_batch=2)
    with httpx.Client(base_url=server.url) as client:

        def engine() -> dict[str, Any]:
            return dict(client.get("/info").json()["engine"])

        def answers() -> list[bytes]:
            routes = ("/embed", "/embed?keep=0.25&seed=1", "/reconstruct?seed=1")
            return [client.post(route, content=PHOTOGRAPH.read_bytes()).content for route in routes]

        before = answers()
        server.wait_for(lambda: bool(engine()["joined"]))
        assert engine()["joined_mb"] is not None  # 0 if the process has given back more meanwhile
        assert engine()["batch_curves"]["shapes"]["embed whole"]["joined"]["1"] > 0
        assert answers() == before
