"""KServe's manifests against KServe's own models, and its client against real servers."""

import asyncio
import base64
import re
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import kserve
import kubernetes.client
import numpy as np
import pytest
import yaml
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

from tests.clients.open_inference import CAT, NEAR, files, key, post
from tests.live.conftest import LiveServer, Start

ROOT = Path(__file__).parents[2]
T = TypeVar("T")
MANIFESTS = ROOT / "docker" / "kserve"
KINDS = {"ClusterServingRuntime": "V1alpha1ClusterServingRuntime", "InferenceService": "V1beta1InferenceService"}
PLAIN = {"str": str, "int": int, "bool": bool, "object": object}
QUANTITIES = ("ResourceQuantity", "V1beta1MetricQuantity")
"""Numbers with a unit, which are no classes."""


def read(name: str) -> Any:
    return yaml.safe_load((MANIFESTS / name).read_text())


def require_fit(value: Any, kind: str, path: str = "") -> None:
    """Compares keys and types with the generated classes of the packages kserve and kubernetes."""
    kind = re.sub("^K8sIoApi(Apps|Autoscaling|Core)", "", kind)
    if inner := re.fullmatch(r"[Ll]ist\[(.+)\]", kind):
        assert isinstance(value, list), path
        for index, one in enumerate(value):
            require_fit(one, inner[1], f"{path}[{index}]")
    elif inner := re.fullmatch(r"[Dd]ict[\[(]str, (.+)[\])]", kind):
        assert isinstance(value, dict), path
        for name, one in value.items():
            require_fit(one, inner[1], f"{path}.{name}")
    elif kind in PLAIN or kind in QUANTITIES:
        assert isinstance(value, PLAIN.get(kind, str)), f"{path} is {value!r}: expected {kind}"
    else:
        model = getattr(kserve.models, kind, None) or getattr(kubernetes.client, kind)
        names = {json: attribute for attribute, json in model.attribute_map.items()}
        assert isinstance(value, dict), path
        for name, one in value.items():
            assert name in names, f"{path} holds {name}, which {kind} does not know"
            require_fit(one, model.openapi_types[names[name]], f"{path}.{name}")


@pytest.mark.parametrize("name", ["runtime.yaml", "inference-service.yaml"])
def test_a_manifest_fits_kserves_models(name: str) -> None:
    resource = read(name)
    require_fit(resource, KINDS[resource["kind"]])
    group, _, version = resource["apiVersion"].partition("/")
    assert group == "serving.kserve.io"
    assert KINDS[resource["kind"]].lower().startswith(version)


def test_a_misspelt_manifest_does_not_fit() -> None:
    for path, misspelt in ((["spec", "predictor"], "minReplica"), (["spec", "predictor", "model"], "storageURI")):
        resource = read("inference-service.yaml")
        node = resource
        for name in path:
            node = node[name]
        node[misspelt] = "1"
        with pytest.raises(AssertionError, match=misspelt):
            require_fit(resource, KINDS["InferenceService"])
    resource = read("runtime.yaml")
    resource["spec"]["containers"][0]["readinessProbe"]["periodSeconds"] = "5"
    with pytest.raises(AssertionError, match="periodSeconds is '5': expected int"):
        require_fit(resource, KINDS["ClusterServingRuntime"])


@pytest.fixture(scope="module")
def shelf(start_server: Start, probe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[LiveServer, Path]:
    """The runtime's command for an InferenceService `shelf`, with one file of any name where /mnt/models would be."""
    models = tmp_path_factory.mktemp("mnt") / "models"
    models.mkdir()
    shutil.copy(probe, models / "epoch-799.safetensors")
    models.chmod(0o555)
    [program, command, *flags] = read("runtime.yaml")["spec"]["containers"][0]["args"]
    assert (program, command) == ("mae", "serve")
    given = [flag.replace("{{.Name}}", "shelf").replace("/mnt/models", str(models)) for flag in flags]
    settings = {name: value for name, _, value in (flag.removeprefix("--").partition("=") for flag in given)}
    return start_server(**{name.replace("-", "_"): value for name, value in settings.items()}, max_batch=4), models


def test_kserves_client_finds_the_model_by_its_service(shelf: tuple[LiveServer, Path], golden: Any) -> None:
    server, models = shelf
    pixels = golden["images"][:2]
    image = InferInput("pixels", list(pixels.shape), "UINT8")
    image.set_data_from_numpy(pixels)

    async def ask() -> tuple[list[bool], Any]:
        client = InferenceRESTClient(RESTConfig(protocol="v2"))
        try:
            known = [
                await client.is_server_ready(server.url),
                await client.is_model_ready(server.url, "shelf"),
                await client.is_model_ready(server.url, "epoch-799"),
            ]
            return known, await client.infer(server.url, InferRequest("shelf", [image]), model_name="shelf")
        finally:
            await client.close()

    known, answer = asyncio.run(ask())
    assert known == [True, True, False]
    # the golden numbers are another implementation's
    np.testing.assert_allclose(answer.outputs[0].as_numpy(), golden["embed_mean"][:2], atol=1e-3)
    assert [path.name for path in models.iterdir()] == ["epoch-799.safetensors"]


def ask_kserve(call: Callable[[InferenceRESTClient], Awaitable[T]]) -> T:
    async def ask() -> T:
        client = InferenceRESTClient(RESTConfig(protocol="v2"))
        try:
            return await call(client)
        finally:
            await client.close()

    return asyncio.run(ask())


def kserve_request(binary: bool, **parameters: Any) -> InferRequest:
    image = CAT.read_bytes() if binary else base64.b64encode(CAT.read_bytes())
    described = InferInput("image", [1, 1], "BYTES")
    described.set_data_from_numpy(files(image), binary_data=binary)
    return InferRequest("embed", [described], parameters=parameters)


def test_kserve_knows_that_the_server_is_ready(server: LiveServer) -> None:
    async def ask(client: InferenceRESTClient) -> list[bool]:
        return [
            await client.is_server_ready(server.url),
            await client.is_server_live(server.url),
            await client.is_model_ready(server.url, "embed"),
        ]

    assert ask_kserve(ask) == [True, True, True]


@pytest.mark.parametrize("binary", [True, False])
def test_kserve_gets_the_vector_of_embed(server: LiveServer, binary: bool) -> None:
    request = kserve_request(binary, normalize=True)
    answer = ask_kserve(lambda client: client.infer(server.url, request, model_name="embed", headers=key()))
    expected = post(server, "/embed?normalize=true", CAT.read_bytes())["embeddings"]
    np.testing.assert_allclose(answer.outputs[0].as_numpy(), expected, **NEAR)


def test_kserve_raises_our_sentence(server: LiveServer) -> None:
    request = kserve_request(True)
    with pytest.raises(httpx.HTTPStatusError, match="there is no model nobody: there are embed, tokens"):
        ask_kserve(lambda client: client.infer(server.url, request, model_name="nobody", headers=key()))
