"""/v2/…: the Open Inference Protocol, version 2, with its extensions for binary tensors and statistics.

An inference needs a key if the service has any. What describes models needs none: PyTriton's client, for one, sends its
key with inferences alone. It tells names and shapes, and counts that /metrics has too.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import time
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request, Response
from pydantic import BaseModel, ConfigDict

from service.api.error_schemas import NOT_SERVING
from service.api.fast_path import InferenceRoute
from service.api.middleware import record_of
from service.api.open_inference import models, schemas
from service.api.open_inference.images import IMAGE
from service.api.open_inference.messages import HEADER_LENGTH, InferenceRequest, parse_request, write_response
from service.api.open_inference.operations import Answer, Run, prepare, require_outputs, select_outputs, timeout_s
from service.api.open_inference.statistics import count_failure, count_success, statistics
from service.api.request import RequestContext, service_of
from service.api.responses import JSON, header_value, json_response
from service.errors import ModelNotFound, NoDecoder, NoHead, NotServed, ServiceError

BINARY = "application/octet-stream"
LARGE_BODY = 1_000_000
"""A body of more bytes is parsed in a thread, because it would block the event loop for too long."""
LARGE_JSON = 50_000
"""So is a body of JSON alone, whose numbers and base64 take longer."""
LARGE_ANSWER = 50_000
"""A response of more values is written in the pool."""
MODEL_ERRORS: tuple[type[ServiceError], ...] = (ModelNotFound, NoHead, NoDecoder, *NOT_SERVING)
MODEL, MODEL_VERSION = "/v2/models/{name:path}", "/v2/models/{name:path}/versions/{version}"

inference_router = APIRouter(tags=["open inference protocol"], route_class=InferenceRoute)
router = APIRouter(tags=["open inference protocol"])


class NoParameters(BaseModel):
    """The query of a route that takes none: the protocol has its parameters in the body."""

    model_config = ConfigDict(extra="forbid")


@inference_router.post(f"{MODEL_VERSION}/infer", include_in_schema=False)
async def infer_version(
    request: Request, parameters: Annotated[NoParameters, Query()], name: str, version: str
) -> Response:
    """As `infer`, of a version of the model."""
    return await _infer(request, name, version)


@inference_router.post(
    f"{MODEL}/infer",
    summary="Run a model by the Open Inference Protocol",
    response_description="The outputs, in the JSON or behind it.",
    response_model=schemas.InferenceResponse,
    responses={
        200: {"content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}},
        **schemas.inference_errors(),
    },
    openapi_extra=schemas.inference_request(),
)
async def infer(request: Request, parameters: Annotated[NoParameters, Query()], name: str) -> Response:
    """Runs one of the models embed, tokens, classify and reconstruct on tensors in JSON or behind it."""
    return await _infer(request, name, models.VERSION)


async def _infer(request: Request, name: str, version: str) -> Response:
    service, context = service_of(request), RequestContext(request)
    pipeline, record, timings = context.pipeline, context.record, context.record.timings
    model = models.find_model(name, version, pipeline)
    header_length = request.headers.get(HEADER_LENGTH)

    def read(body: bytes) -> tuple[InferenceRequest, Run]:
        parsed = parse_request(body, header_length, IMAGE)
        require_outputs(model, parsed)
        return parsed, prepare(model.name, parsed, pipeline, service.settings.max_images)

    try:
        body = await context.read_bytes()
        is_large = len(body) > (LARGE_JSON if header_length is None else LARGE_BODY)
        parsed, run = await asyncio.to_thread(read, body) if is_large else read(body)
        del body
        if (seconds := timeout_s(parsed)) is not None:
            context.end_after(seconds)

        async def work() -> tuple[Answer, bytes, int | None]:
            answer = await run(context)
            record.images = answer.count

            def write() -> tuple[bytes, int | None]:
                outputs = select_outputs(answer.write(), parsed)
                return write_response(_content(name, parsed, answer, pipeline.info.model_id), outputs, parsed)

            large = answer.size > LARGE_ANSWER
            return answer, *(await pipeline.render(write, timings) if large else write())

        answer, content, json_length = await context.run_while_client_waits(work())
    except ServiceError:
        count_failure(service.metrics, model.name, time.monotonic() - record.started)
        raise
    count_success(service.metrics, model.name, answer.count, timings, time.monotonic() - record.started)
    headers = {"x-mae-model": header_value(pipeline.info.model_id)}
    if answer.space is not None:
        headers["x-mae-space"] = answer.space
    if answer.keep is not None:
        headers["x-mae-keep"] = f"{answer.keep:.6g}"
    if answer.seed is not None:
        headers["x-mae-seed"] = str(answer.seed)
    if json_length is not None:
        headers[HEADER_LENGTH] = str(json_length)
    return Response(content, headers=headers, media_type=JSON if json_length is None else BINARY)


def _content(name: str, request: InferenceRequest, answer: Answer, model_id: str) -> dict[str, Any]:
    """The JSON of a response beside its outputs."""
    content: dict[str, Any] = {"model_name": name, "model_version": models.VERSION}
    if request.id is not None:
        content["id"] = request.id
    described = {"model": model_id, "space": answer.space, "keep": answer.keep, "seed": answer.seed}
    content["parameters"] = {key: value for key, value in described.items() if value is not None}
    return content


@router.get(
    "/v2",
    summary="Describe the server by the Open Inference Protocol",
    response_description="Name, version, and the extensions that are served.",
    response_model=schemas.ServerMetadata,
)
async def describe_server() -> Response:
    """Name, version, and the extensions of the protocol that are served."""
    return json_response(
        {
            "name": models.PLATFORM,
            "version": importlib.metadata.version("mae-serve"),
            "extensions": models.EXTENSIONS,
        }
    )


@router.get(
    "/v2/models/stats",
    summary="Count the requests to all models",
    response_description="The statistics of all models since the start.",
    response_model=schemas.Statistics,
    responses=schemas.errors(*NOT_SERVING),
)
def all_statistics(request: Request) -> Response:
    """The statistics of all models since the start."""
    service = service_of(request)  # FastAPI runs a function that is not async in a thread
    names = models.describe_models(service.pipeline.info)
    return json_response(statistics(service.exposition(), [(name, name) for name in names]))


@router.post("/v2/repository/models/{name:path}/load", include_in_schema=False)
@router.post("/v2/repository/models/{name:path}/unload", include_in_schema=False)
async def load(name: str) -> Response:
    """Refused: the model is chosen at the start.

    Raises:
        NotServed: always.
    """
    raise NotServed("a running server loads and unloads no models: WEIGHTS and MODEL choose them at the start")


@router.api_route("/v2/trace/setting", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/v2/models/{name:path}/trace/setting", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/v2/logging", methods=["GET", "POST"], include_in_schema=False)
async def trace() -> Response:
    """Refused: traces and logs are not changed by requests.

    Raises:
        NotServed: always.
    """
    raise NotServed("traces and the log are set at the start, and no request changes them")


@router.api_route("/v2/systemsharedmemory/{rest:path}", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/v2/cudasharedmemory/{rest:path}", methods=["GET", "POST"], include_in_schema=False)
async def shared_memory(rest: str) -> Response:
    """Refused: tensors come in the body.

    Raises:
        NotServed: always.
    """
    raise NotServed("shared memory is not served: send tensors in the body")


@router.get(
    f"{MODEL}/stats",
    summary="Count the requests to a model",
    response_description="The statistics of the model since the start.",
    response_model=schemas.Statistics,
    responses=schemas.errors(*MODEL_ERRORS),
)
@router.get(f"{MODEL_VERSION}/stats", include_in_schema=False)
def model_statistics(request: Request, name: str) -> Response:
    """The statistics of a model since the start: requests by this protocol, and the time of their stages."""
    service, model = service_of(request), _model_of(request)
    return json_response(statistics(service.exposition(), [(name, model.name)]))


@router.get(
    f"{MODEL}/config",
    summary="Describe a model as Triton does",
    response_description="A ModelConfig of Triton.",
    response_model=schemas.ModelConfiguration,
    responses=schemas.errors(*MODEL_ERRORS),
)
@router.get(f"{MODEL_VERSION}/config", include_in_schema=False)
async def model_configuration(request: Request, name: str) -> Response:
    """The configuration of a model, a ModelConfig of Triton."""
    service, model = service_of(request), _model_of(request)
    return json_response(models.configuration(name, model, service.pipeline.info, service.settings.max_images))


@router.get(
    f"{MODEL}/ready",
    summary="Tell whether a model takes requests",
    response_description="The model is there, and requests are accepted.",
    response_model=schemas.ModelReady,
    responses=schemas.errors(*MODEL_ERRORS),
)
@router.get(f"{MODEL_VERSION}/ready", include_in_schema=False)
async def model_ready(request: Request, name: str) -> Response:
    """200 if the model is there and the service accepts requests."""
    _model_of(request)
    return json_response({"name": name, "ready": True})


@router.get(
    MODEL,
    summary="Describe the inputs and outputs of a model",
    response_description="Names, datatypes and shapes.",
    response_model=schemas.ModelMetadata,
    responses=schemas.errors(*MODEL_ERRORS),
)
@router.get(MODEL_VERSION, include_in_schema=False)
async def model_metadata(request: Request, name: str) -> Response:
    """Names, datatypes and shapes of the inputs and outputs."""
    if record_of(request.scope).endpoint:  # `{name:path}` also matches the path of `infer`
        raise HTTPException(405, headers={"allow": "POST"})
    return json_response(models.metadata(name, _model_of(request)))


@router.post(
    "/v2/repository/index",
    summary="List the models that can be asked",
    response_description="The names of the models; all of them are ready.",
    response_model=list[schemas.ModelState],
    responses=schemas.errors(*NOT_SERVING),
)
async def repository_index(request: Request) -> Response:
    """The models and their state. The body, which could ask for those alone that are ready, is not read: all are."""
    names = models.all_names(service_of(request).pipeline.info)
    return json_response([{"name": name, "version": models.VERSION, "state": "READY", "reason": ""} for name in names])


def _model_of(request: Request) -> models.ModelDescription:
    """The model that the path of a request names, with or without a version.

    Raises:
        NotReady, Draining, EngineLost: the service takes no new work.
        ModelNotFound, NoHead, NoDecoder: as `find_model`.
    """
    name, version = request.path_params["name"], request.path_params.get("version", models.VERSION)
    return models.find_model(name, version, service_of(request).pipeline)
