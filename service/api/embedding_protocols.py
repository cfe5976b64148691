"""Embeddings for clients of OpenAI's and Cohere's APIs: what their routes share, from the admission to the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.arrays import Floats
from model.engines.base import EngineInfo
from service.api.bodies import ImagesBody, join, load_json
from service.api.request import RequestContext
from service.api.responses import JSON, LARGE, header_value, json_bytes, preferred_type
from service.errors import MalformedBody, ModelNotFound, UnsupportedType
from service.inference.embedding import EmbeddingPlan, embed_images
from service.inference.served_name import names_of
from service.inference.vector_space import space_of
from service.parameters import EmbedParameters, Seed, invalid_parameter


class NoParameters(BaseModel):
    """The query of a route that takes its parameters in its body; clients of other protocols may send one."""

    model_config = ConfigDict(extra="ignore")


class EmbeddingBody(BaseModel):
    """The keys that the bodies of these protocols share; our own parameters are among them. Others are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(None, description="a name of the served model; any other is a 404")
    pool: Literal["mean", "cls"] | None = Field(None, description="mean of the patch tokens (default), or cls token")
    whiten: bool | None = Field(None, description="whiten each vector by the model's PCA whitening for the pool")
    normalize: bool | None = Field(None, description="scale each vector to length 1")
    keep: float | None = Field(
        None, gt=0, le=1, allow_inf_nan=False, description="share of the patches that is encoded; 1 by default"
    )
    seed: Seed | None = Field(None, description="seed by which the patches are drawn, for keep below 1")

    def embed_parameters(self, dimensions: int | None) -> EmbedParameters:
        """The same as parameters of POST /embed, with `dimensions`."""
        own = {name: getattr(self, name) for name in ("pool", "whiten", "normalize", "keep", "seed")}
        given = {"dimensions": dimensions, **own}
        return EmbedParameters(**{name: value for name, value in given.items() if value is not None})


Body = TypeVar("Body", bound=EmbeddingBody)


@dataclass(frozen=True)
class Embedded:
    """The vectors of a request, and what an answer says of them."""

    vectors: Floats
    """Float32 [B, D']."""
    info: EngineInfo
    space: str
    plan: EmbeddingPlan
    request_id: str

    @property
    def patches(self) -> int:
        """The number of patches that were encoded in all images: the tokens of a request's usage."""
        return len(self.vectors) * len(self.plan.visible_indices)


@dataclass(frozen=True)
class EmbeddingProtocol(Generic[Body]):
    """A protocol: how its bodies are read and its answers are written."""

    body: type[Body]
    """The keys of a body, without the images."""
    parameters: Callable[[Body], EmbedParameters]
    """What a body asks for; it may raise a ServiceError."""
    images: Callable[[dict[str, Any], int], list[bytes]]
    """The encoded images of a body, of which there may be at most so many; it may raise a ServiceError."""
    answer: Callable[[Body, Embedded], dict[str, Any]]
    """The answer, for JSON."""


async def answer_request(request: Request, protocol: EmbeddingProtocol[Body]) -> Response:
    """Answers a request for embeddings in a protocol.

    The checks come in the order of all routes; but since the parameters are in the body, they come after its type and
    length, then the name of the model, what the model lacks, and the images.

    Raises:
        ServiceError: the request is refused.
    """
    context = RequestContext(request)
    pipeline, timings = context.pipeline, context.record.timings
    preferred_type(request.headers.get("accept", ""), (JSON,))

    def parse(text: bytes) -> tuple[Body, EmbeddingPlan, list[bytes]]:
        content = load_json(text)
        if not isinstance(content, dict):
            raise MalformedBody("the JSON body must be an object")
        try:
            body = protocol.body.model_validate(content)
        except ValidationError as error:
            raise invalid_parameter(error.errors()[0]) from error
        parameters = protocol.parameters(body)
        require_model(body.model, pipeline.info)
        plan = EmbeddingPlan.of(parameters, pipeline.info, pipeline.heads)
        return body, plan, protocol.images(content, context.max_images)

    parsed: tuple[Body, EmbeddingPlan, list[bytes]] | None = None

    async def read(content_type: str, chunks: AsyncIterator[bytes]) -> ImagesBody:
        nonlocal parsed
        _require_json(content_type)
        # In a thread: decoding tens of megabytes of base64 would block the event loop for a tenth of a second.
        parsed = await asyncio.to_thread(parse, await join(chunks))
        return ImagesBody(parsed[2])

    await context.read_body_by(read)
    assert parsed is not None
    body, plan, images = parsed
    space = space_of(pipeline.info, plan.parameters)

    async def work() -> bytes:
        vectors, _ = await embed_images(pipeline, context.images_to_infer(images), plan)

        def write() -> bytes:
            embedded = Embedded(plan.finish(vectors), pipeline.info, space, plan, context.record.id)
            return json_bytes(protocol.answer(body, embedded))

        large = len(vectors) * vectors[0].size > LARGE
        return await pipeline.render(write, timings) if large else write()

    content = await context.run_while_client_waits(work())
    headers = {
        "x-mae-model": header_value(pipeline.info.model_id),
        "x-mae-space": space,
        "x-mae-keep": f"{plan.keep(pipeline.info.config):.6g}",
    }
    if plan.seed is not None:
        headers["x-mae-seed"] = str(plan.seed)
    return Response(content, headers=headers, media_type=JSON)


def require_model(name: str | None, info: EngineInfo) -> None:
    """Checks the model that a request names; without a name it means the one that is served.

    Raises:
        ModelNotFound: another model is served.
    """
    if name and name not in names_of(info):
        raise ModelNotFound(
            f"the model {name!r} is not served here: this server serves {info.model_id}", parameter="model"
        )


def _require_json(content_type: str) -> None:
    kind = content_type.partition(";")[0].strip().lower()
    if kind != JSON:
        raise UnsupportedType(f"a body of type {kind or 'none'} is not read here: send {JSON}", type=kind)


def describe_body(body: type[EmbeddingBody], images: dict[str, Any]) -> dict[str, Any]:
    """The request body as OpenAPI describes it: the keys of `body`, and one of those of `images`."""
    schema = body.model_json_schema()
    schema["properties"] = {**images, **schema["properties"]}
    schema["anyOf"] = [{"required": [key]} for key in images]
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema}}}}
