"""The requests and answers of the Open Inference Protocol as OpenAPI describes them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from service.api.error_schemas import INFERENCE_ERRORS, error_responses
from service.api.open_inference.messages import HEADER_LENGTH, MAX_DIMS
from service.errors import ModelNotFound, NoDecoder, NoHead, NotAcceptable, ServiceError

DATATYPE = Field(description="BYTES, or UINT8, INT32, FP32 and so on")


class InputTensor(BaseModel):
    """An input in the JSON of a request."""

    name: str = Field(description="image (BYTES), pixels (UINT8), patches (UINT8) with positions (INT32), or mask")
    shape: list[Annotated[int, Field(ge=0)]] = Field(max_length=MAX_DIMS)
    datatype: str = DATATYPE
    parameters: dict[str, Any] = Field({}, description="binary_data_size: bytes of the input behind the JSON")
    data: list[Any] | None = Field(
        None,
        description="the values, row-major, flat or nested; base64 for BYTES; absent for values behind the JSON",
    )


class RequestedTensor(BaseModel):
    """An output that a request asks for."""

    name: str
    parameters: dict[str, Any] = Field({}, description="binary_data; classification (of the model classify)")


class OutputTensor(BaseModel):
    """An output in the JSON of a response."""

    name: str
    datatype: str = DATATYPE
    shape: list[int]
    data: list[Any] | None = Field(None, description="the values, row-major and flat; absent where they are behind")
    parameters: dict[str, int] | None = Field(None, description="binary_data_size: bytes of the output behind the JSON")


class InferenceResponseParameters(BaseModel):
    """What a response says beside the protocol."""

    model: str = Field(description="name@weights-hash")
    space: str | None = Field(None, description="the vector space in one word, where there are vectors")
    keep: float | None = Field(None, description="the share of the patches that was encoded, where there are vectors")
    seed: int | None = Field(None, description="the seed that chose patches, where one did")


class InferenceResponse(BaseModel):
    """The JSON of a response."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    id: str | None = Field(None, description="that of the request, if it has one")
    parameters: InferenceResponseParameters
    outputs: list[OutputTensor]


class ServerMetadata(BaseModel):
    """The response of GET /v2."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """An input or an output of a model."""

    name: str
    datatype: str
    shape: list[int] = Field(description="-1 for a size that varies, such as that of the batch")


class ModelMetadata(BaseModel):
    """The response of GET /v2/models/{name}."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class TensorConfiguration(BaseModel):
    """An input or an output in a ModelConfig."""

    name: str
    data_type: str
    dims: list[int] = Field(description="without the size of the batch; -1 for one that varies")


class InstanceGroup(BaseModel):
    """Where a model runs."""

    kind: str
    count: int = Field(description="the lanes")


class ModelConfiguration(BaseModel):
    """The response of GET /v2/models/{name}/config: a ModelConfig of Triton."""

    name: str
    platform: str
    max_batch_size: int = Field(description="the most images of one request")
    input: list[TensorConfiguration]
    output: list[TensorConfiguration]
    dynamic_batching: dict[str, Any]
    instance_group: list[InstanceGroup]


class ModelReady(BaseModel):
    """The response of GET /v2/models/{name}/ready."""

    name: str
    ready: bool


class Duration(BaseModel):
    """How often something was done, and for how long in all."""

    count: int
    ns: int


class InferenceStatistics(BaseModel):
    """The durations of a model's requests by this protocol."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStatistics(BaseModel):
    """The statistics of a model."""

    name: str
    version: str
    inference_count: int = Field(description="images by this protocol")
    execution_count: int = Field(description="batches of the engine, with images of all protocols")
    inference_stats: InferenceStatistics
    batch_stats: list[Any]


class Statistics(BaseModel):
    """The response of GET /v2/models/stats."""

    model_stats: list[ModelStatistics]


class ModelState(BaseModel):
    """An entry in the response of POST /v2/repository/index."""

    name: str
    version: str
    state: str
    reason: str


def errors(*kinds: type[ServiceError]) -> dict[int | str, dict[str, Any]]:
    """The responses to errors, in the protocol's format."""
    return error_responses(*kinds, error_format="open-inference")


def inference_errors() -> dict[int | str, dict[str, Any]]:
    """The responses to the errors of an inference; Accept does not matter here."""
    kinds = [kind for kind in INFERENCE_ERRORS if kind is not NotAcceptable]
    return errors(*kinds, NoHead, NoDecoder, ModelNotFound)


def inference_request() -> dict[str, Any]:
    """The body of a request for an inference, and the header that says how much of it is JSON."""
    properties = {
        "id": {"type": "string", "description": "comes back with the answer"},
        "inputs": {"type": "array", "items": InputTensor.model_json_schema()},
        "outputs": {
            "type": "array",
            "items": RequestedTensor.model_json_schema(),
            "description": "all outputs of the model if there are none",
        },
        "parameters": {
            "type": "object",
            "description": "those of the model; timeout in microseconds; binary_data_output for all outputs",
        },
    }
    schema = {"type": "object", "properties": properties, "required": ["inputs"]}
    binary = {"type": "string", "format": "binary", "description": "JSON and the bytes behind it, or one image"}
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema}, "application/octet-stream": {"schema": binary}},
        },
        "parameters": [
            {
                "in": "header",
                "name": HEADER_LENGTH.title(),
                "description": "length of the JSON, where bytes are behind it; 0: the body is one image",
                "schema": {"type": "integer", "minimum": 0},
            }
        ],
    }
