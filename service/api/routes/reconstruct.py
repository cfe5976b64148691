"""POST /reconstruct: images -> what the decoder makes of the patches that stay visible."""

from __future__ import annotations

import base64
import io
import zipfile
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from model.engines.base import EngineInfo
from model.images.render import View, render
from model.masking import removed_flags
from service.api.fast_path import InferenceRoute
from service.api.request import RequestContext
from service.api.responses import JSON, json_bytes, preferred_type
from service.api.schemas import Reconstructions, error_answers, request_body
from service.inference.masks import choose_removed
from service.inference.pipeline import Reconstruction
from service.parameters import ReconstructParameters

router = APIRouter(tags=["inference"], route_class=InferenceRoute)
PNG, ZIP = "image/png", "application/zip"
BINARY = {"schema": {"type": "string", "format": "binary"}}


@router.post(
    "/reconstruct",
    response_model=Reconstructions,
    responses={
        200: {"content": {PNG: BINARY, ZIP: BINARY}},
        **error_answers(400, 401, 404, 413, 415, 422, 429, 500, 503, 504),
    },
    openapi_extra=request_body(with_mask=True),
)
async def reconstruct(request: Request, parameters: Annotated[ReconstructParameters, Query()]) -> Response:
    """Removes patches of each image and paints them anew: one image as PNG, several as JSON or zip."""
    intake = RequestContext(request)
    pipeline, timings = intake.pipeline, intake.record.timings
    payload = await intake.payload(takes_mask=True)
    one = len(payload.images) == 1
    media_type = preferred_type(request.headers.get("accept", ""), (PNG, JSON) if one else (JSON, ZIP))
    config, decoder = pipeline.info.config, pipeline.image_decoder
    seed, place = choose_removed(config, decoder, parameters, payload.mask, len(payload.images))
    found = await intake.attended(pipeline.reconstruct(payload.images, place, timings, intake.deadline))
    view = parameters.view

    def answer() -> bytes:
        pictures = [render(view, x.patches, x.pixels, x.error, x.visible_indices) for x in found]
        if media_type == PNG:
            return pictures[0]
        content = _content(pipeline.info, view, found, pictures, seed)
        return json_bytes(content) if media_type == JSON else _zip(content, pictures)

    body = await pipeline.render(answer, timings)
    headers = {
        "x-mae-model": pipeline.info.model_id,
        "x-mae-mask-ratio": f"{found[0].removed_share:.6g}",
        "x-mae-loss": ",".join(f"{x.loss:.6f}" for x in found),
    }
    if seed is not None:
        headers["x-mae-seed"] = str(seed)
    return Response(body, headers=headers, media_type=media_type)


def _content(
    info: EngineInfo, view: View, found: list[Reconstruction], pictures: list[bytes], seed: int | None
) -> dict[str, Any]:
    visible_indices = found[0].visible_indices
    return {
        "model": info.model_id,
        "view": view,
        "count": len(found),
        "seed": seed,
        "mask_ratio": found[0].removed_share,
        "grid": (info.config.grid, info.config.grid),
        "mask": removed_flags(visible_indices, info.config.num_patches),
        "reconstructions": [
            {
                "loss": one.loss,
                "error": np.ascontiguousarray(one.error),
                "png": base64.b64encode(picture).decode("ascii"),
            }
            for one, picture in zip(found, pictures, strict=True)
        ],
    }


def _zip(content: dict[str, Any], pictures: list[bytes]) -> bytes:
    """The pictures as numbered files, and the rest of the JSON answer beside them."""
    out = io.BytesIO()
    facts = {
        **content,
        "reconstructions": [{"loss": x["loss"], "error": x["error"]} for x in content["reconstructions"]],
    }
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for number, picture in enumerate(pictures):
            archive.writestr(f"{number:04d}.png", picture)
        archive.writestr("reconstructions.json", json_bytes(facts))
    return out.getvalue()
