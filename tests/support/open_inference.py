"""Requests of the Open Inference Protocol to the app, and an engine with a head that records what it gets."""

import io
import json
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
from fastapi.testclient import TestClient
from PIL import Image

from model.arrays import Bytes, Floats, Indices
from model.checkpoints.heads import Head, Heads
from model.checkpoints.native import HeadConfig
from tests.support.engines import FakeEngine

CLASSES = ("night", "day", "dusk")


class Bright(FakeEngine):
    """A head gives the class `day` more the brighter the image is; batches record all bytes that they got."""

    def __init__(self, **behaviour: Any) -> None:
        super().__init__(**behaviour)
        weight = np.zeros((3, 8), np.float32)
        weight[:, 0] = (-0.01, 0.01, 0)
        self.heads = Heads(Head(HeadConfig(pool="mean", classes=CLASSES), weight, np.zeros(3, np.float32)))
        self.info = self.info.model_copy(update={"head": self.heads.head.config if self.heads.head else None})
        self.received: list[tuple[Bytes, Indices]] = []

    def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        self.received.append((patches.copy(), visible_indices.copy()))
        return super().embed(lane, patches, visible_indices)

    def tokens(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        self.received.append((patches.copy(), visible_indices.copy()))
        return super().tokens(lane, patches, visible_indices)


def picture(grey: int, side: int = 32) -> bytes:
    out = io.BytesIO()
    Image.new("L", (side, side), grey).save(out, "PNG")
    return out.getvalue()


def bytes_input(images: Sequence[bytes], shape: list[int] | None = None) -> tuple[dict[str, Any], bytes]:
    data = b"".join(len(image).to_bytes(4, "little") + image for image in images)
    described = {"name": "image", "datatype": "BYTES", "shape": shape or [len(images), 1]}
    return {**described, "parameters": {"binary_data_size": len(data)}}, data


def array_input(name: str, array: np.ndarray) -> tuple[dict[str, Any], bytes]:
    kind = {"uint8": "UINT8", "int32": "INT32", "bool": "BOOL", "float32": "FP32"}[array.dtype.name]
    described = {"name": name, "datatype": kind, "shape": list(array.shape)}
    return {**described, "parameters": {"binary_data_size": array.nbytes}}, array.tobytes()


def infer(
    client: TestClient, model: str, *inputs: tuple[dict[str, Any], bytes], outputs: Any = (), **parameters: Any
) -> httpx.Response:
    content: dict[str, Any] = {"inputs": [described for described, _ in inputs], "parameters": parameters}
    if outputs:
        content["outputs"] = outputs
    head = json.dumps(content).encode()
    return client.post(
        f"/v2/models/{model}/infer",
        content=b"".join([head, *(data for _, data in inputs)]),
        headers={"Inference-Header-Content-Length": str(len(head))},
    )


def arrays(response: httpx.Response) -> dict[str, np.ndarray]:
    """The outputs of an answer in JSON."""
    assert response.status_code == 200, response.text
    kinds = {"FP32": np.float32, "UINT8": np.uint8, "INT32": np.int32, "BYTES": object}
    return {
        output["name"]: np.array(output["data"], kinds[output["datatype"]]).reshape(output["shape"])
        for output in response.json()["outputs"]
    }
