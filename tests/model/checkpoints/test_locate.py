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

import numpy as np
import pytest
from safetensors.numpy import save_file

from model.checkpoints.errors import WeightsError
from model.checkpoints.locate import Source, locate
from model.checkpoints.native import read_metadata
from model.config import MAEConfig
from model.engines.check import check_settings
from model.engines.settings import EngineSettings

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = b"---\ntags:\n- vision\nlicense: cc-by-nc-4.0\n---\n# A bird\n"
FOLDER = {"config.json": b"{}", "model.safetensors": b"1", "README.md": CARD, "notes.txt": b"2"}
SNAPSHOT = {"config.json": b"{}", "preprocessor_config.json": b"{}", "model.safetensors": b"1", "README.md": CARD}


def folder_with(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


class TestPackaged:
    def test_the_default(self) -> None:
        source = locate(None, None)
        assert source.path.name == "mae_tiny.safetensors"
        assert source.name == "mae_tiny"
        assert source.license is not None
        assert "CC BY 4.0" in source.license
        assert source.digest == hashlib.sha256(source.path.read_bytes()).hexdigest()
        assert locate(None, "mae_tiny") == source

    def test_a_preset_without_packaged_weights_is_refused(self) -> None:
        message = "no weights of mae_base are packaged, only those of mae_tiny: pass mae_base's as WEIGHTS"
        with pytest.raises(WeightsError, match=message):
            locate(None, "mae_base")

    @pytest.mark.parametrize("model", ["mae_giant", "../weights/mae_tiny", ""])
    def test_an_unknown_preset_is_refused(self, model: str) -> None:
        with pytest.raises(WeightsError, match=f"there is no preset {model!r}: the presets are mae_tiny, "):
            locate(None, model)


HUB = "https://huggingface.co/bird/mae"


class TestFiles:
    @pytest.mark.parametrize(
        ("address", "name"),
        [
            (HUB, "hf:bird/mae"),
            (f"{HUB}/", "hf:bird/mae"),
            (f"{HUB}/tree/main", "hf:bird/mae"),
            (f"{HUB}/blob/main/run/best.pth", "hf:bird/mae/run/best.pth"),
            (f"{HUB}/resolve/v2/best.pth?download=true", "hf:bird/mae/best.pth@v2"),
            ("https://example.org/best.pth", "hf:ORG/NAME, or hf:ORG/NAME/FILE.pth for one file of it"),
        ],
    )
    def test_an_address_is_refused_with_the_name_to_give(self, address: str, name: str) -> None:
        with pytest.raises(WeightsError) as error:
            locate(address, None)
        assert str(error.value).startswith(f"{address} is an address: expected a path, or {name}")

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "bird.v2.pth").write_bytes(b"anything")
        source = locate(str(tmp_path / "bird.v2.pth"), None)
        digest = "ee0874170b7f6f32b8c2ac9573c428d35b575270a66b757c2c0185d2bd09718d"  # printf anything | sha256sum
        assert source == Source(tmp_path / "bird.v2.pth", "bird.v2", None)
        assert source.digest == digest

    def test_a_file_is_not_read_whole_before_its_digest_is_asked_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`mae serve` checks its settings before it loads the weights; large ones take seconds to hash."""
        (tmp_path / "bird.pth").write_bytes(b"anything")
        hashed = []
        real = hashlib.file_digest
        monkeypatch.setattr(hashlib, "file_digest", lambda *arguments: (hashed.append(1), real(*arguments))[1])
        check_settings(EngineSettings(weights=str(tmp_path / "bird.pth"), backend="torch"))
        assert hashed == []
        source = locate(str(tmp_path / "bird.pth"), None)
        assert source.digest == source.digest and hashed == [1]

    def test_a_digest_of_what_is_gone_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "bird.pth").write_bytes(b"anything")
        source = locate(str(tmp_path / "bird.pth"), None)
        (tmp_path / "bird.pth").unlink()
        with pytest.raises(WeightsError, match="does not exist"):
            _ = source.digest

    def test_a_file_of_ours_says_its_name_and_licence(self, tmp_path: Path) -> None:
        config = MAEConfig(name="bird", embed_dim=64, depth=1, num_heads=2)
        metadata = {"config": config.model_dump(), "preprocessing": {}, "license": "CC0"}
        save_file({"a": np.zeros(1)}, tmp_path / "x.safetensors", {"mae-serve": json.dumps(metadata)})
        source = locate(str(tmp_path / "x.safetensors"), None)
        assert (source.name, source.license) == ("bird", "CC0")

    def test_other_safetensors_have_no_metadata_of_ours(self, tmp_path: Path) -> None:
        save_file({"a": np.zeros(1)}, tmp_path / "x.safetensors", {"format": "pt"})
        assert read_metadata(tmp_path / "x.safetensors") is None

    def test_a_relative_path_and_one_from_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "bird.pth").write_bytes(b"anything")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert locate("bird.pth", None).path == locate("~/bird.pth", None).path == tmp_path / "bird.pth"

    @pytest.mark.parametrize("weights", ["nowhere.pth", "", "hf-org/name"])
    def test_what_is_missing_is_refused(self, tmp_path: Path, weights: str) -> None:
        with pytest.raises(WeightsError, match="does not exist: expected a file or a folder of weights"):
            locate(str(tmp_path / "folder" / weights), None)

    def test_damaged_safetensors_are_refused(self, tmp_path: Path) -> None:
        save_file({"a": np.zeros(9)}, tmp_path / "whole")
        (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:-1])
        with pytest.raises(WeightsError, match="cut is a damaged safetensors file"):
            locate(str(tmp_path / "cut"), None)

    def test_what_may_not_be_read_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "bird.pth").write_bytes(b"anything")

        def forbidden(path: Path, mode: str) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "open", forbidden)
        with pytest.raises(WeightsError, match=r"bird.pth cannot be read \(Permission denied\)"):
            locate(str(tmp_path / "bird.pth"), None)


class TestFolders:
    def test_a_folder(self, tmp_path: Path) -> None:
        source = locate(str(folder_with(tmp_path / "bird", FOLDER)), None)
        assert (source.path, source.name, source.license) == (tmp_path / "bird", "bird", "cc-by-nc-4.0")

    def test_the_digest_is_of_what_defines_the_model(self, tmp_path: Path) -> None:
        def digest(**changes: bytes | None) -> str:
            names = {"config": "config.json", "weights": "model.safetensors", "notes": "notes.txt"}
            names |= {"card": "README.md", "processor": "preprocessor_config.json"}
            files = FOLDER | {names[key]: content for key, content in changes.items()}
            folder = tmp_path / str(len(list(tmp_path.iterdir())))
            return locate(str(folder_with(folder, files)), None).digest

        original = digest()
        assert digest() == original, "wherever the folder lies"
        assert digest(notes=b"3") == digest(card=b"") == original
        changed = {digest(config=b"{ }"), digest(weights=b"2"), digest(processor=b"{}"), digest(processor=b"[]")}
        assert len(changed | {original}) == 5

    def test_the_digest_tells_files_of_the_same_content_apart(self, tmp_path: Path) -> None:
        first = folder_with(tmp_path / "a", {"config.json": b"{}", "model.safetensors": b"1"})
        second = folder_with(tmp_path / "b", {"config.json": b"{}", "pytorch_model.bin": b"1"})
        assert locate(str(first), None).digest != locate(str(second), None).digest

    def test_shards_count(self, tmp_path: Path) -> None:
        index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}
        files = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode()}
        shards = {"model-1.safetensors": b"1", "model-2.safetensors": b"2"}
        first = locate(str(folder_with(tmp_path / "a", files | shards)), None)
        shards["model-2.safetensors"] = b"3"
        assert locate(str(folder_with(tmp_path / "b", files | shards)), None).digest != first.digest

    def test_a_folder_without_weights_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"holds no model\.safetensors, .* or pytorch_model\.bin"):
            locate(str(folder_with(tmp_path / "bird", {"config.json": b"{}"})), None)

    @pytest.mark.parametrize("name", ["bird.pth", "best.pt", "last.ckpt", "a.safetensors", "w.bin", "bird.pth.tar"])
    def test_the_only_file_of_weights_stands_for_its_folder(self, tmp_path: Path, name: str) -> None:
        """As KServe's storage initializer leaves it in /mnt/models, beside files of other kinds."""
        folder = folder_with(tmp_path / "models", {name: b"1", "README.md": CARD, "args.json": b"{}"})
        source = locate(str(folder), None)
        assert source == locate(str(folder / name), None)
        assert (source.path, source.name) == (folder / name, Path(name).stem)

    def test_heads_beside_weights_are_no_weights(self, tmp_path: Path) -> None:
        """As in a folder of ONNX files."""
        folder = folder_with(tmp_path / "graphs", {"embed.onnx": b"1", "heads.safetensors": b"2"})
        with pytest.raises(WeightsError, match=r"holds no model\.safetensors, .* or pytorch_model\.bin$"):
            locate(str(folder), None)

    @pytest.mark.parametrize(
        "files", [{"a.pth": b"1", "b.pth": b"2"}, {"a.pth": b"1", "config.json": b"{}"}], ids=["two", "with a config"]
    )
    def test_where_a_folder_leaves_a_choice_the_file_must_be_named(
        self, tmp_path: Path, files: dict[str, bytes]
    ) -> None:
        with pytest.raises(WeightsError, match=r"name the file of weights itself, such as a\.pth in it"):
            locate(str(folder_with(tmp_path / "models", files)), None)

    @pytest.mark.parametrize(
        "card",
        [b"# A bird\nlicense: mit\n", b"---\ntags:\n- vision\n---\nlicense: mit\n", b"", b"---\nlicense:\n---\n"],
    )
    def test_a_card_that_names_no_licence(self, tmp_path: Path, card: bytes) -> None:
        assert locate(str(folder_with(tmp_path / "bird", FOLDER | {"README.md": card})), None).license is None


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
