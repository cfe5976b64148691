"""OpenAI's own client."""

import httpx
import openai

from tests.clients.conftest import API_KEY
from tests.live.conftest import LiveServer


def test_x(server: LiveServer) -> None:
    assert openai.__version__
    assert httpx.get(server.url + "/info", headers={"x-api-key": API_KEY}).status_code == 200
