"""Schemathesis against a server with all that may be set: head, index, keys, routes of platforms.

.venv-clients/bin/python -m tests.attacks.schema [--cases 300] [--seed 1]    # 5 minutes

`make test-clients` makes this environment. Schemathesis sends whatever the API's description allows, and much that it
does not, to every operation of /openapi.json, with all checks but one (`tests/clients/test_schemathesis.py` says which,
and why).
"""

from __future__ import annotations

import argparse
import base64
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson

from model.config import PRESETS
from tests.attacks.server import report, serve
from tests.attacks.time_limit import end_after
from tests.support.engines import fake_info
from tests.support.image_files import png_file
from tests.support.indexes import write_index

KEY = "a-key"
IMAGE = base64.b64encode(png_file(np.zeros((2, 2), np.uint8))).decode()
URI = f"data:image/png;base64,{IMAGE}"
EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": [URI], "model": "fake"},
    "/v2/embed": {"model": "fake", "images": [URI], "input_type": "image", "embedding_types": ["float"]},
    "/v2/models/{name}/infer": {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [IMAGE]}]},
    "/v2/repository/index": {},
    "/predict": {"instances": [{"b64": IMAGE}]},
}
"""Bodies of the routes that do not take {"images": …}."""
CODES = (200, 400, 401, 404, 406, 413, 415, 422, 429, 500, 503, 504)
EXPECTED = ("cases", "operations")


def complete_server(folder: Path) -> dict[str, Any]:
    """The settings of a fake server that answers on every route; its index lies in `folder`."""
    vectors = {f"{n}.jpg": np.full(192, n + 1, np.float32) for n in range(3)}
    path = folder / "photos.lance"
    write_index(path, vectors, fake_info(PRESETS["mae_tiny"]))
    routes = {"predict_route": "/predict", "health_route": "/health"}
    fake = {"FAKE_S": "0", "FAKE_HEAD": "newt,owl"}
    return {"fake": fake, "max_images": 500, "index": path, "api_keys": KEY, **routes}


def write_description(url: str, folder: Path) -> Path:
    """The API's description with an example of an image for each operation that takes some; the path of the file.

    Bytes that are drawn are no image, and `ignored_auth` looks only at operations that have answered 200.
    """
    description = httpx.get(f"{url}/openapi.json", timeout=30).json()
    for path, operations in description["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    parameter["example"] = "embed"
            body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if body is not None:
                body["example"] = EXAMPLES.get(path, {"images": [URI]})
    (file := folder / "openapi.json").write_bytes(orjson.dumps(description))
    return file


def schemathesis_command(url: str, folder: Path, cases: int, seed: int = 1, with_key: bool = True) -> list[str]:
    """A run of the program `schemathesis` against a server, with `cases` drawn requests for each operation.

    Both headers that may hold a key are sent: without them `ignored_auth` has nothing to take away, and a wrong one
    beside a right one is no error.
    """
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        str(write_description(url, folder)),
        "--url",
        url,
    ]
    command += ["--checks", "all", "--exclude-checks", "positive_data_acceptance", "--continue-on-failure"]
    command += ["--phases", "examples,coverage,fuzzing", "--max-examples", str(cases), "--seed", str(seed)]
    command += ["--warnings", "off", "--generation-database", "none"]
    if with_key:
        command += ["-H", f"Authorization: Bearer {KEY}", "-H", f"X-API-Key: {KEY}"]
    return command


def main() -> int:
    """Attacks; returns the exit code of `report`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=300, help="drawn requests for each operation")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    end_after(minutes=10 + arguments.cases / 10)
    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="mae-schema-") as folder, serve(**complete_server(Path(folder))) as server:
        command = schemathesis_command(server.url, Path(folder), arguments.cases, arguments.seed)
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        print(done.stdout, file=sys.stderr)
        seen["tracebacks in the log"] += server.log.count("Traceback")
        seen["server ended"] += server.process.poll() is not None
        codes = {code: server.metric(rf'mae_requests_total{{.*code="{code}"') for code in CODES}
        print("requests to the model by status:", {code: round(codes[code]) for code in CODES}, file=sys.stderr)
    if found := re.search(r"Selected: (\d+)/\d+", done.stdout):
        seen["operations"] += int(found[1])
    if found := re.search(r"(\d+) generated", done.stdout):
        seen["cases"] += int(found[1])
    seen["failures"] += done.returncode != 0 or "No issues found" not in done.stdout
    return report("schema", seen, EXPECTED)


if __name__ == "__main__":
    sys.exit(main())
