"""Calls of PyTriton's client, in an environment that has it: prints what came back as JSON.

Arguments: the server's address, that of one that is too slow for its own limit, their key, and a file with an image.
"""

import json
import sys
from pathlib import Path

import numpy as np
from pytriton.client import ModelClient
from pytriton.client.exceptions import PyTritonClientInferenceServerError, PyTritonClientTimeoutError


def main(url: str, slow_url: str, key: str, file: str) -> None:
    image = Path(file).read_bytes()
    found = {}
    with ModelClient(url, "embed", access_token=key, init_timeout_s=30) as client:
        found["max_batch_size"] = client.model_config.max_batch_size
        batch = client.infer_batch(np.array([[image], [image]], object), parameters={"normalize": True})
        found["batch"] = batch["embedding"].tolist()
        found["sample"] = client.infer_sample(np.array([image], object))["embedding"].tolist()
        found["pixels"] = client.infer_batch(pixels=np.zeros((3, 224, 224, 3), np.uint8))["embedding"].shape
        try:
            client.infer_sample(np.array([image], object), parameters={"pool": "max"})
        except PyTritonClientInferenceServerError as error:
            found["refused"] = str(error)
    with ModelClient(slow_url, "embed", access_token=key) as client:
        try:
            client.infer_sample(np.array([image], object))
        except PyTritonClientTimeoutError as error:
            found["late"] = str(error)
    with ModelClient(url, "reconstruct", access_token=key) as client:
        found["outputs"] = {name: array.shape for name, array in client.infer_sample(np.array([image], object)).items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
