"""POST /reconstruct: images -> the pictures that the decoder makes of their visible patches."""

from __future__ import annotations

import io
import zipfile
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from model.engines.base import EngineInfo
from model.images.render import View, render
from model.masking import removed_flags
from service.api.base64_text import encode_base64
from service.api.error_schemas import INFERENCE_ERRORS, error_responses
from service.api.fast_path import InferenceRoute
from service.api.request import RequestContext
from service.api.responses import JSON, PNG, describe_skipped, header_value, json_bytes, preferred_type, with_gaps
from service.api.schemas import BINARY, Reconstructions, request_body
from service.errors import NoDecoder, ServiceError
from service.inference.reconstruction import (
    MaskPlan,
    Reconstruction,
    choose_patches_by_picture,
    choose_patches_to_remove,
    mean_of_draws,
    reconstruct_images,
)
from service.parameters import ReconstructParameters

router = APIRouter(tags=["inference"], route_class=InferenceRoute)
ZIP = "application/zip"


@router.post(
    "/reconstruct",
    summary="Reconstruct removed patches of images",
    response_description="One picture as PNG; or pictures and figures as JSON or zip.",
    response_model=Reconstructions,
    responses={
        200: {"content": {PNG: BINARY, ZIP: BINARY}},
        **error_responses(*INFERENCE_ERRORS, NoDecoder),
    },
    openapi_extra=request_body(mask="white patches are removed"),
)
async def reconstruct(request: Request, parameters: Annotated[ReconstructParameters, Query()]) -> Response:
    """Removes patches of each image and reconstructs them: one image as PNG, several as JSON or zip."""
    context = RequestContext(request)
    pipeline, timings = context.pipeline, context.record.timings
    config, view, accept = pipeline.info.config, parameters.view, request.headers.get("accept", "")
    pipeline.require_decoder()
    plan = choose_patches_to_remove(config, parameters)
    skips = parameters.on_error == "skip"
    # Refuses early; the number of images, known later, decides between the types.
    preferred_type(accept, (JSON,) if skips else (PNG, JSON, ZIP))
    body = await context.read_body(takes_mask=True, skips=skips)
    count, skipped = len(body.images), body.errors if skips else None
    media_type = JSON if skips else preferred_type(accept, (PNG, JSON) if count == 1 else (JSON, ZIP))
    if body.mask is not None:
        plan = choose_patches_by_picture(config, pipeline.image_decoder, parameters, body.mask, count)

    async def work() -> tuple[bytes, list[Reconstruction]]:
        by_image = await reconstruct_images(pipeline, context.images_to_infer(body.images, skipped), plan)
        context.record.images = len(by_image)

        def write() -> tuple[bytes, list[Reconstruction]]:
            reconstructions = [mean_of_draws(draws) for draws in by_image]
            pictures = [
                render(view, image.patches, image.pixels, image.error, image.visible_indices, image.spread)
                for image in reconstructions
            ]
            if media_type == PNG:
                return pictures[0], reconstructions
            content = _content(pipeline.info, view, reconstructions, pictures, plan, skipped)
            return json_bytes(content) if media_type == JSON else _zip(content, pictures), reconstructions

        return await pipeline.render(write, timings)

    content, reconstructions = await context.run_while_client_waits(work())
    headers = {
        "x-mae-model": header_value(pipeline.info.model_id),
        "x-mae-mask-ratio": f"{reconstructions[0].removed_share:.6g}",
        "x-mae-loss": ",".join(
            "" if image is None else f"{image.loss:.6f}" for image in with_gaps(reconstructions, skipped or {})
        ),
    }
    if plan.seed is not None:
        headers["x-mae-seed"] = str(plan.seed)
    return Response(content, headers=headers, media_type=media_type)


def _content(
    info: EngineInfo,
    view: View,
    reconstructions: list[Reconstruction],
    pictures: list[bytes],
    plan: MaskPlan,
    skipped: dict[int, ServiceError] | None,
) -> dict[str, Any]:
    """The response as JSON: `Reconstructions`."""
    first = reconstructions[0]  # all images have the same mask
    images = [
        {
            "loss": reconstruction.loss,
            "error": np.ascontiguousarray(reconstruction.error),
            **({} if reconstruction.spread is None else {"spread": reconstruction.patch_spread}),
            "png": encode_base64(picture),
        }
        for reconstruction, picture in zip(reconstructions, pictures, strict=True)
    ]
    content = {
        "model": info.model_id,
        "view": view,
        "count": len(reconstructions) + len(skipped or ()),
        "seed": plan.seed,
        **({"seeds": plan.seeds} if plan.draws > 1 else {}),
        "mask_ratio": first.removed_share,
        "grid": (info.config.grid, info.config.grid),
        "mask": removed_flags(first.visible_indices, info.config.num_patches),
        "reconstructions": with_gaps(images, skipped or {}),
    }
    return content if skipped is None else {**content, "errors": describe_skipped(skipped)}


def _zip(content: dict[str, Any], pictures: list[bytes]) -> bytes:
    """The pictures as numbered files, and beside them a file with the JSON response without its PNGs."""
    file = io.BytesIO()
    without_pngs = [
        {key: value for key, value in image.items() if key != "png"} for image in content["reconstructions"]
    ]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for number, picture in enumerate(pictures):
            archive.writestr(_zip_member(f"{number:04d}.png"), picture)
        archive.writestr(_zip_member("reconstructions.json"), json_bytes({**content, "reconstructions": without_pngs}))
    return file.getvalue()


def _zip_member(name: str) -> zipfile.ZipInfo:
    """A readable file, whose time is zip's first one and not the current one: the same request gives the same bits."""
    member = zipfile.ZipInfo(name)
    member.external_attr = 0o644 << 16
    return member
