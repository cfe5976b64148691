"""POST /search: images -> the nearest images of an index."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from service.api.base64_text import encode_base64
from service.api.error_schemas import INFERENCE_ERRORS, error_responses
from service.api.fast_path import InferenceRoute
from service.api.request import RequestContext, service_of
from service.api.responses import JSON, describe_skipped, header_value, json_bytes, preferred_type, with_gaps
from service.api.schemas import Searches, request_body
from service.errors import NoIndex, SearchFailed, ServiceError
from service.inference.search import search_images
from service.inference.searcher import Neighbour
from service.inference.vector_space import space_of
from service.parameters import SearchParameters

router = APIRouter(tags=["inference"], route_class=InferenceRoute)


@router.post(
    "/search",
    summary="Find the nearest images of the index",
    response_description="The nearest images of the index for each image, in the order of the images.",
    response_model=Searches,
    responses=error_responses(*INFERENCE_ERRORS, NoIndex, SearchFailed),
    openapi_extra=request_body(),
)
async def search(request: Request, parameters: Annotated[SearchParameters, Query()]) -> Response:
    """Embeds each image as those of the index were embedded, and returns the images of the index that are nearest.

    The index is that of the setting INDEX, which `mae index` makes. An image that is in the index itself is found, too.
    """
    context = RequestContext(request)
    pipeline = context.pipeline
    space = space_of(pipeline.info, pipeline.index.embedding)
    preferred_type(request.headers.get("accept", ""), (JSON,))
    skips = parameters.on_error == "skip"
    body = await context.read_body(skips=skips)
    skipped = body.errors if skips else None
    has_paths = service_of(request).settings.index_paths

    async def work() -> bytes:
        found = await search_images(pipeline, context.images_to_infer(body.images, skipped), parameters)
        context.record.images = len(found)
        content = {"model": pipeline.info.model_id, "space": space, "count": len(body.images)}
        return await pipeline.render(
            lambda: json_bytes(content | _searches(found, parameters, has_paths, skipped)), context.record.timings
        )

    content = await context.run_while_client_waits(work())
    headers = {"x-mae-model": header_value(pipeline.info.model_id), "x-mae-space": space}
    return Response(content, headers=headers, media_type=JSON)


def _searches(
    found: list[list[Neighbour]],
    parameters: SearchParameters,
    has_paths: bool,
    skipped: dict[int, ServiceError] | None,
) -> dict[str, Any]:
    """What is found, as `Searches` has it."""

    def describe(neighbour: Neighbour) -> dict[str, Any]:
        content: dict[str, Any] = {"name": PurePath(neighbour.file).name, "similarity": neighbour.similarity}
        if has_paths:
            content |= {"path": neighbour.path, "file": neighbour.file}
        if parameters.thumbnails:
            picture = neighbour.thumbnail
            content["thumbnail"] = None if picture is None else f"data:image/jpeg;base64,{encode_base64(picture)}"
        return content

    searches = [{"neighbours": [describe(neighbour) for neighbour in image]} for image in found]
    content: dict[str, Any] = {"searches": with_gaps(searches, skipped or {})}
    return content if skipped is None else {**content, "errors": describe_skipped(skipped)}
