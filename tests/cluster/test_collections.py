"""`mae embed` of a bucket and of a web server, and the result in DuckDB: the recipes of service/cli/README.md."""

import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import boto3
import duckdb
import numpy as np
import pyarrow.parquet
import pytest
from moto.server import ThreadedMotoServer

ROOT = Path(__file__).parents[2]
PHOTOGRAPH = ROOT / "tests" / "data" / "chelsea.jpg"
SECRET = "hunter2-is-a-secret"


def recipe(heading: str, language: str) -> str:
    """The lines under a heading of the README."""
    page = (ROOT / "service" / "cli" / "README.md").read_text()
    [lines] = re.findall(rf"^### {heading}\n\n```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return str(lines)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A server with S3's protocol, on 127.0.0.1."""
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Variables for a command that finds `mae`, and an engine that needs no conversion."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "mae"
    script.write_text(f"#!{sys.executable}\nfrom service.cli.main import main\nmain()\n")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAE_", "AWS_"))}
    ours = {"PATH": f"{script.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "MAE_BACKEND": "torch"}
    return {**kept, **ours, "MAE_PRECISION": "fp32", "MAE_LANES": "1"}


def run(command: str, environment: dict[str, str]) -> tuple[int, str]:
    """Runs a line of the documentation; returns the exit code, and what it wrote."""
    done = subprocess.run(["bash", "-ec", command], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def columns(folder: Path) -> dict[str, list[object]]:
    """The shards' columns; nothing in any of their bytes may be secret."""
    for path in folder.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()
    columns: dict[str, list[object]] = pyarrow.parquet.read_table(folder).to_pydict()
    return columns


def test_a_bucket_is_embedded_and_opened_in_duckdb(
    endpoint: str, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
    environment |= {**keys, "AWS_ENDPOINT_URL": endpoint}
    client = boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id="me", aws_secret_access_key=SECRET, region_name="us-east-1"
    )
    client.create_bucket(Bucket="photographs")
    data = PHOTOGRAPH.read_bytes()
    for name, body in {"2026/chelsea.jpg": data, "2026/b/cut.jpg": data[: len(data) // 3], "2025/x.jpg": b""}.items():
        client.put_object(Bucket="photographs", Key=name, Body=body)
    client.put_object(Bucket="photographs", Key="2026/b/failing.jpg", Body=data, StorageClass="GLACIER")
    client.put_object(Bucket="photographs", Key="2026/b/same.jpg", Body=data)
    client.put_object(Bucket="photographs", Key="2026/notes.txt", Body=b"")

    code, written = run(recipe("Embed a bucket", "bash"), environment)
    assert code == 1 and SECRET not in written
    assert "2 embedded, 0 already stored, 2 skipped" in written and "1 .txt" in written
    found = columns(tmp_path / "vectors")
    names = ["chelsea.jpg", "b/cut.jpg", "b/failing.jpg", "b/same.jpg"]
    assert found["path"] == found["file"] == [f"s3://photographs/2026/{name}" for name in names]
    assert found["size"] == [len(data), len(data) // 3, len(data), len(data)]
    assert None not in found["modified"]
    errors = dict(zip(names, found["error"], strict=True))
    assert errors["chelsea.jpg"] is None and errors["b/same.jpg"] is None
    assert str(errors["b/failing.jpg"]).startswith("s3://photographs/2026/b/failing.jpg: ")
    assert "cannot be decoded" in str(errors["b/cut.jpg"])

    client.copy_object(Bucket="photographs", CopySource="photographs/2026/chelsea.jpg", Key="2026/b/cut.jpg")
    client.delete_object(Bucket="photographs", Key="2026/b/failing.jpg")
    code, written = run(recipe("Embed a bucket", "bash").rstrip() + " --changed", environment)
    assert code == 0 and "1 embedded, 2 already stored, 0 skipped" in written
    assert "1 are gone, and keep their rows: s3://photographs/2026/b/failing.jpg" in written

    monkeypatch.chdir(tmp_path)
    results: dict[str, list[tuple[object, ...]]] = {}
    exec(recipe("Open the result in DuckDB", "python"), results)
    assert [path for path, _ in results["failed"]] == ["s3://photographs/2026/b/failing.jpg"]
    vectors = dict(zip(*(columns(tmp_path / "vectors")[name] for name in ("path", "vector")), strict=True))
    query = np.array(vectors["s3://photographs/2026/chelsea.jpg"], np.float32)
    assert len(results["nearest"]) == 3
    for path, similarity in results["nearest"]:
        assert similarity == pytest.approx(float(query @ np.array(vectors[path])), abs=1e-5)
    assert duckdb.sql("SELECT count(*) FROM 'vectors/*.parquet'").fetchall() == [(4,)]


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers /image.jpg with a photograph, and anything else with the status in its path."""

    def do_GET(self) -> None:
        body = PHOTOGRAPH.read_bytes() if self.path.startswith("/image.jpg") else b""
        self.send_response(200 if body else int(self.path.split("/")[1].split(".")[0]))
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        """Writes nothing."""


def test_a_web_server_is_read_without_keeping_what_signs_an_address(
    environment: dict[str, str], tmp_path: Path
) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_port}"
    urls = [f"http://{address}/{name}.jpg?X-Amz-Signature={SECRET}" for name in ("image", "403", "404", "500")]
    urls.append(f"http://{address}/image.jpg?id={SECRET}")
    try:
        code, written = run(f"mae embed {' '.join(repr(url) for url in urls)} -o vectors/", environment)
        refused = run(f"mae embed http://me:{SECRET}@{address}/folder/ -o other/", environment)
    finally:
        server.shutdown()
        server.server_close()
    assert code == 1 and SECRET not in written and "2 embedded, 0 already stored, 3 skipped" in written
    found = columns(tmp_path / "vectors")
    assert found["path"][:4] == [f"http://{address}/{name}.jpg" for name in ("image", "403", "404", "500")]
    assert found["vector"][0] == found["vector"][4] and found["size"][0] == PHOTOGRAPH.stat().st_size
    assert [str(error).rpartition(": ")[2] for error in found["error"][1:4]] == [
        "the server answered with status 403",
        "there is no such file or folder",
        "the server answered with status 500",
    ]
    assert refused[0] == 2 and SECRET not in refused[1] and "is a folder, which web servers cannot list" in refused[1]
    assert not Path("other").exists()
