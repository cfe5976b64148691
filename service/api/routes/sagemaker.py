"""POST /invocations: what Amazon SageMaker calls. It is /embed, by Content-Type and Accept."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError

from service.api.error_schemas import INFERENCE_ERRORS, error_responses
from service.api.fast_path import InferenceRoute, unique_parameters
from service.api.routes.embed import BYTES, NPY, embed
from service.api.schemas import BINARY, Embeddings, request_body
from service.parameters import EmbedParameters, invalid_parameter

router = APIRouter(tags=["platforms"], route_class=InferenceRoute)
ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"
"""The header by which a client hands parameters through SageMaker, which passes no query on."""


@router.post(
    "/invocations",
    summary="Turn images into vectors, as SageMaker calls it",
    response_description="As for POST /embed.",
    response_model=Embeddings,
    responses={
        200: {"content": {NPY: BINARY, BYTES: BINARY}},
        **error_responses(*INFERENCE_ERRORS),
    },
    openapi_extra=request_body(mask="white patches are encoded, the opposite of /reconstruct"),
)
async def invocations(request: Request, parameters: Annotated[EmbedParameters, Query()]) -> Response:
    """Answers as POST /embed does; `CustomAttributes` of SageMaker may hold parameters: `pool=cls&normalize=true`."""
    if attributes := request.headers.get(ATTRIBUTES):
        given = {name: getattr(parameters, name) for name in parameters.model_fields_set}
        try:
            parameters = EmbedParameters.model_validate({**_read_attributes(attributes), **given})
        except ValidationError as error:
            raise invalid_parameter(error.errors()[0]) from error
    return await embed(request, parameters)


def _read_attributes(attributes: str) -> dict[str, str]:
    """The parameters among the custom attributes, which are written like a query; parts without `=` are none."""
    parts = [part for part in attributes.split("&") if "=" in part]
    return unique_parameters(parse_qsl("&".join(parts), keep_blank_values=True))
