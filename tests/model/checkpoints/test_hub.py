"""Weights in a repository of the Hugging Face hub, against a stand-in for it; other weights need no client of it."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from model.checkpoints.errors import WeightsError
from model.checkpoints.locate import locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = b"---\ntags:\n- vision\nlicense: cc-by-nc-4.0\n---\n# A bird\n"
SNAPSHOT = {"config.json": b"{}", "preprocessor_config.json": b"{}", "model.safetensors": b"1", "README.md": CARD}


@dataclass
class Hub:
    """What a stand-in for the hub holds (files by repository), and what it was asked for."""

    endpoint: str
    repositories: dict[str, dict[str, bytes]]
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A server of the three things that the hub's client asks: a revision's commit, its files, a file."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0].removeprefix("/")
            api = path.startswith("api/models/")
            owner, name, *rest = path.removeprefix("api/models/").split("/")
            files = hub.repositories.get(f"{owner}/{name}")
            if files is None:
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif api and rest[:1] == ["tree"]:
                tree = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()
                ]
                self.answer(200, json.dumps(tree).encode())
            elif api and rest in ([], ["revision", "main"], ["revision", "v2"]):
                self.answer(200, json.dumps({"id": f"{owner}/{name}", "sha": COMMIT}).encode())
            elif not api and rest[:1] == ["resolve"] and (file := "/".join(rest[2:])) in files:
                hub.asked.append(file)
                etag = hashlib.sha1(files[file]).hexdigest()
                self.answer(200, files[file], {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})
            else:
                self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})

        do_HEAD = do_GET

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Silence."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}", {})
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter, since the hub's client reads its endpoint at import, and imports stick."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.live
class TestHub:
    CODE = """
import json, logging, sys
from model.checkpoints.errors import WeightsError
from model.checkpoints.locate import locate
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
try:
    source = locate(sys.argv[1], None)
except WeightsError as error:
    sys.exit(f"WeightsError: {error}")
print(json.dumps([str(source.path), source.name, source.license]))
"""

    def locate(self, hub: Hub, cache: Path, weights: str, **environment: str) -> subprocess.CompletedProcess[str]:
        settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
        return python(self.CODE, weights, **settings | environment)

    def test_a_repository(self, hub: Hub, tmp_path: Path) -> None:
        hub.repositories["aviary/bird-mae"] = SNAPSHOT | {"tf_model.h5": b"large", "pytorch_model.bin": b"large"}
        run = self.locate(hub, tmp_path, "hf:aviary/bird-mae")
        assert run.returncode == 0, run.stderr
        path, name, licence = json.loads(run.stdout)
        assert (name, licence) == ("aviary/bird-mae", "cc-by-nc-4.0")
        assert {file.name: file.read_bytes() for file in Path(path).iterdir()} == SNAPSHOT
        assert set(hub.asked) == SNAPSHOT.keys(), "nothing else is downloaded"
        assert "aviary/bird-mae is under the licence cc-by-nc-4.0" in run.stderr

    def test_a_revision(self, hub: Hub, tmp_path: Path) -> None:
        hub.repositories["aviary/bird"] = SNAPSHOT
        assert self.locate(hub, tmp_path, "hf:aviary/bird@v2").returncode == 0
        refused = self.locate(hub, tmp_path / "other", "hf:aviary/bird@v9")
        assert "WeightsError: hf:aviary/bird@v9 cannot be downloaded: " in refused.stderr

    def test_shards(self, hub: Hub, tmp_path: Path) -> None:
        index = json.dumps({"weight_map": {"a": "model-1.safetensors"}}).encode()
        files = {"config.json": b"{}", "model.safetensors.index.json": index, "model-1.safetensors": b"weights"}
        hub.repositories["aviary/bird"] = files
        run = self.locate(hub, tmp_path, "hf:aviary/bird")
        assert run.returncode == 0, run.stderr
        assert set(hub.asked) == files.keys()
        assert "under the licence that its model card does not name" in run.stderr

    def test_a_repository_of_the_days_before_safetensors(self, hub: Hub, tmp_path: Path) -> None:
        hub.repositories["aviary/bird"] = {"config.json": b"{}", "pytorch_model.bin": b"weights", "tf_model.h5": b"no"}
        run = self.locate(hub, tmp_path, "hf:aviary/bird")
        assert run.returncode == 0, run.stderr
        assert set(hub.asked) == {"config.json", "pytorch_model.bin"}

    @pytest.mark.parametrize("name", ["bird_mae.pth", "weights/bird_mae.pt"])
    def test_one_file_of_a_repository(self, hub: Hub, tmp_path: Path, name: str) -> None:
        hub.repositories["aviary/bird"] = {name: b"weights", "other.pth": b"large", "README.md": CARD}
        run = self.locate(hub, tmp_path, f"hf:aviary/bird/{name}@v2")
        assert run.returncode == 0, run.stderr
        path, model, licence = json.loads(run.stdout)
        assert (Path(path).read_bytes(), model, licence) == (b"weights", "bird_mae", "cc-by-nc-4.0")
        assert set(hub.asked) == {name, "README.md"}, "nothing else is downloaded"
        missing = self.locate(hub, tmp_path, "hf:aviary/bird/mine.pth")
        assert "WeightsError: hf:aviary/bird/mine.pth: the repository holds no mine.pth" in missing.stderr
        whole = self.locate(hub, tmp_path, "hf:aviary/bird")
        assert "if it holds another file of weights, name that as hf:aviary/bird/FILE.pth" in whole.stderr

    def test_converted_weights_are_also_under_the_licence_of_their_origin(self, hub: Hub, tmp_path: Path) -> None:
        hub.repositories["facebook/vit-mae-base"] = SNAPSHOT | {"README.md": b"---\nlicense: apache-2.0\n---\n"}
        run = self.locate(hub, tmp_path, "hf:facebook/vit-mae-base")
        assert json.loads(run.stdout)[2] == (
            "apache-2.0 by its card; converted from files that facebookresearch/mae has under CC-BY-NC 4.0"
        )

    def test_the_cache_serves_without_the_hub(self, hub: Hub, tmp_path: Path) -> None:
        hub.repositories["aviary/bird"] = SNAPSHOT
        online = self.locate(hub, tmp_path, "hf:aviary/bird")
        offline = self.locate(hub, tmp_path, "hf:aviary/bird", HF_HUB_OFFLINE="1")
        assert offline.returncode == 0, offline.stderr
        assert offline.stdout == online.stdout

    def test_what_the_hub_does_not_have_is_refused(self, hub: Hub, tmp_path: Path) -> None:
        hub.repositories["aviary/empty"] = {"config.json": b"{}"}
        unknown = self.locate(hub, tmp_path, "hf:aviary/bird")
        assert "WeightsError: hf:aviary/bird cannot be downloaded: " in unknown.stderr
        empty = self.locate(hub, tmp_path, "hf:aviary/empty")
        assert "WeightsError: hf:aviary/empty holds neither safetensors nor pytorch_model.bin" in empty.stderr

    @pytest.mark.parametrize(
        "weights",
        ["hf:bird", "hf:", "hf:a/b/c", "hf:a/b@", "hf:https://example.org/a/b", "hf:a/b/../c.pth", "hf:a/b//c.pth"],
    )
    def test_what_names_no_repository_is_refused(self, weights: str) -> None:
        with pytest.raises(WeightsError, match="names no repository of the hub: expected hf:ORG/NAME"):
            locate(weights, None)

    def test_without_the_client_the_message_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(WeightsError, match=r"hf:a/b needs the hub's client: pip install huggingface_hub"):
            locate("hf:a/b", None)


@pytest.mark.live
def test_neither_torch_nor_the_hubs_client_is_imported() -> None:
    code = """
import sys
from model.checkpoints.locate import locate
locate(None, None)
sys.exit(", ".join({"torch", "transformers", "huggingface_hub"} & sys.modules.keys()) or None)
"""
    run = python(code)
    assert run.returncode == 0, run.stderr
