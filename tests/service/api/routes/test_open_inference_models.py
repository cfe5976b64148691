"""What the Open Inference Protocol says of the server, its models and what they have done."""

from fastapi.testclient import TestClient

from model.config import MAEConfig
from tests.service.api.routes.conftest import Start
from tests.support.engines import SMALL, FakeEngine
from tests.support.metrics import sample
from tests.support.open_inference import arrays, bytes_input, infer, picture


def test_server_and_models_are_described(client: TestClient) -> None:
    server = client.get("/v2").json()
    assert server["name"] == "mae-serve"
    assert server["extensions"] == ["binary_tensor_data", "model_configuration", "statistics"]
    assert client.get("/v2/models/embed").json() == {
        "name": "embed",
        "versions": ["1"],
        "platform": "mae-serve",
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}],
        "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [-1, 8]}],
    }
    outputs = {
        name: [(output["name"], output["shape"]) for output in client.get(f"/v2/models/{name}").json()["outputs"]]
        for name in ("tokens", "classify", "reconstruct", "fake")
    }
    assert outputs == {
        "tokens": [("tokens", [-1, -1, 8]), ("positions", [-1, -1])],
        "classify": [("probabilities", [-1, 3])],
        "reconstruct": [("pixels", [-1, 32, 32, 3]), ("error", [-1, 4]), ("mask", [-1, 4])],
        "fake": [("embedding", [-1, 8])],
    }
    assert client.get("/v2/models/reconstruct/config").json() == {
        "name": "reconstruct",
        "platform": "mae-serve",
        "max_batch_size": 64,
        "input": [{"name": "image", "data_type": "TYPE_STRING", "dims": [1]}],
        "output": [
            {"name": "pixels", "data_type": "TYPE_UINT8", "dims": [32, 32, 3]},
            {"name": "error", "data_type": "TYPE_FP32", "dims": [4]},
            {"name": "mask", "data_type": "TYPE_UINT8", "dims": [4]},
        ],
        "dynamic_batching": {},
        "instance_group": [{"kind": "KIND_CPU", "count": 1}],
    }
    assert client.get("/v2/models/embed/versions/1/ready").json() == {"name": "embed", "ready": True}
    index = client.post("/v2/repository/index").json()
    assert [entry["name"] for entry in index] == ["embed", "tokens", "classify", "reconstruct", "fake"]
    assert {(entry["version"], entry["state"]) for entry in index} == {("1", "READY")}


def test_the_name_of_a_served_model_may_have_slashes(start: Start) -> None:
    engine = FakeEngine()
    engine.info = engine.info.model_copy(update={"model": "facebook/vit@base"})
    client = start(engine)
    for path in ("facebook/vit@base", "facebook/vit%40base"):  # as clients quote it
        assert client.get(f"/v2/models/{path}").json()["name"] == "facebook/vit@base"
        assert client.get(f"/v2/models/{path}/versions/1/ready").status_code == 200
        answer = infer(client, path, bytes_input([picture(3)]))
        assert answer.json()["model_name"] == "facebook/vit@base"
        assert arrays(answer)["embedding"][0, 0] == 3


def test_the_served_name_is_a_model_and_so_are_the_names_that_answers_have(start: Start) -> None:
    client = start(FakeEngine(), served_name="cats/v1")
    index = [entry["name"] for entry in client.post("/v2/repository/index").json()]
    assert index == ["embed", "tokens", "reconstruct", "cats/v1"]
    described = client.post("/embed", content=picture(3)).json()["model"]
    assert described == "cats/v1@000000000000"
    for name in ("cats/v1", described, "fake"):
        assert client.get(f"/v2/models/{name}/ready").json() == {"name": name, "ready": True}
        answer = infer(client, name, bytes_input([picture(3)]))
        assert answer.json()["model_name"] == name and arrays(answer)["embedding"][0, 0] == 3
    refused = client.get("/v2/models/cats")
    assert refused.status_code == 404 and "embed, tokens, reconstruct, cats/v1" in refused.json()["error"]


def test_a_model_without_head_and_decoder(start: Start) -> None:
    encoder: MAEConfig = SMALL.model_copy(update={"decoder_depth": 0})
    client = start(FakeEngine(config=encoder))
    assert [entry["name"] for entry in client.post("/v2/repository/index").json()] == ["embed", "tokens", "fake"]
    for name, words in (("classify", "classification head"), ("reconstruct", "no decoder")):
        for answer in (client.get(f"/v2/models/{name}"), infer(client, name, bytes_input([picture(1)]))):
            assert answer.status_code == 404 and words in answer.json()["error"]


def test_statistics_count_requests_images_and_batches(client: TestClient) -> None:
    before = client.get("/v2/models/embed/stats").json()["model_stats"]
    infer(client, "embed", bytes_input([picture(1), picture(2)]))
    infer(client, "embed", bytes_input([b"no image"]))
    infer(client, "tokens", bytes_input([picture(1)]))
    (after,) = client.get("/v2/models/embed/stats").json()["model_stats"]
    assert before[0]["inference_count"] == before[0]["inference_stats"]["success"]["count"] == 0
    assert after["inference_count"] == 2 and 1 <= after["execution_count"] <= 2
    times = after["inference_stats"]
    assert {name: times[name]["count"] for name in times} == {
        "success": 1,
        "fail": 1,
        "queue": 1,
        "compute_input": 1,
        "compute_infer": 1,
        "compute_output": 1,
    }
    for name in ("queue", "compute_input", "compute_infer"):  # of the slowest image each
        assert 0 < times[name]["ns"] <= times["success"]["ns"]
    assert times["compute_output"]["ns"] <= times["success"]["ns"] and times["fail"]["ns"] > 0
    names = [model["name"] for model in client.get("/v2/models/stats").json()["model_stats"]]
    assert names == ["embed", "tokens", "classify", "reconstruct"]


def test_requests_are_counted_by_the_template_of_their_path(client: TestClient) -> None:
    infer(client, "fake", bytes_input([picture(1), picture(2)]))
    infer(client, "nobody", bytes_input([picture(1)]))
    text = client.get("/metrics").text
    endpoint = "/v2/models/{name}/infer"
    assert sample(text, "mae_images_total", endpoint=endpoint) == 2
    assert sample(text, "mae_requests_total", endpoint=endpoint, code="404") == 1
    assert "nobody" not in text


def test_health_says_ready_and_live_also_when_it_is_not(client: TestClient) -> None:
    assert client.get("/v2/health/ready").json() == {"state": "ready", "reason": "", "ready": True}
    assert client.get("/v2/health/live").json() == {"state": "ready", "reason": "", "live": True}
    service = client.app.state.service  # type: ignore[attr-defined]
    service._state.change("lost", "the engine is gone")
    for path, key in (("/v2/health/ready", "ready"), ("/v2/health/live", "live")):
        answer = client.get(path)
        assert answer.status_code == 503
        assert answer.json() == {"state": "lost", "reason": "the engine is gone", key: False}
    answer = client.get("/v2/models/embed/ready")
    assert answer.status_code == 503 and "the engine is gone" in answer.json()["error"]
