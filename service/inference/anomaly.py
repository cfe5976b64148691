"""Requests for anomalies: how the patches of each image are scored, and from which score on an image is flagged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from model.anomaly.render import render_expected, render_mask, render_scores
from model.anomaly.scores import expected_pixels, image_score, reconstruction_scores
from model.arrays import Bytes, Floats, Indices
from model.checkpoints.memory_bank import MemoryBank
from model.masking import MaskError, all_indices, complementary_visible, new_seed, passes_to_cover
from service.errors import InvalidParameter
from service.inference.images import ImageRequest
from service.inference.passes import Inference
from service.inference.pipeline import Pipeline
from service.inference.reconstruction import MaskPlan, Reconstruction, reconstruct_images
from service.parameters import AnomalyMethod, AnomalyParameters

RAW_BRIGHTEST = 2.0
"""The score that is shown in the brightest colour where there is no threshold. A patch that scores 1 differs from what
the decoder expects by as much as patches usually vary in themselves."""
OF_PASSES = ("mask_ratio", "passes", "seed")
"""The parameters of reconstructions in passes."""


@dataclass(frozen=True)
class Anomaly:
    """The scores of one image.

    Attributes:
        patches: the image, uint8 [N, P].
        scores: of its patches, float32 [N].
        threshold: the score above which a patch, and so the image, is flagged; None without a memory bank.
        expected: what the decoder expects in each patch, float32 [N, P]; None if it was not asked.
    """

    patches: Bytes
    scores: Floats
    threshold: float | None
    expected: Floats | None

    @property
    def score(self) -> float:
        """The score of the image."""
        return image_score(self.scores)

    @property
    def flagged(self) -> bool | None:
        """Whether the image's score is above the threshold; None without one."""
        return None if self.threshold is None else self.score > self.threshold

    def render(self, parameters: AnomalyParameters) -> bytes:
        """The view that a request asks for, as PNG."""
        if parameters.view == "expected":
            assert self.expected is not None
            return render_expected(self.expected)
        if parameters.view == "mask":
            assert self.threshold is not None
            return render_mask(self.patches, self.scores, self.threshold)
        brightest = RAW_BRIGHTEST if self.threshold is None else max(2 * self.threshold, 1e-9)
        return render_scores(parameters.view, self.patches, self.scores, brightest)


@dataclass(frozen=True)
class AnomalyPlan:
    """How the images of one request are scored, for routes and commands alike.

    Attributes:
        method: what the scores are.
        bank: the memory bank that features are compared with; None for `reconstruction`.
        threshold: see `Anomaly`.
        mask_ratio: share of the patches that each pass removes; None without masks.
        seed: the seed of the masks; None without masks.
        visible_indices: the visible patches of each pass, int32 [K]; none without masks.
    """

    method: AnomalyMethod
    bank: MemoryBank | None
    threshold: float | None
    mask_ratio: float | None
    seed: int | None
    visible_indices: list[Indices]

    @classmethod
    def of(cls, parameters: AnomalyParameters, pipeline: Pipeline) -> Self:
        """The plan for a request's parameters.

        Raises:
            NoDecoder: reconstructions are needed, and the model has no decoder.
            InvalidParameter: the model lacks what the request asks for, or the parameters exclude each other.
        """
        config, bank = pipeline.info.config, pipeline.heads.memory_bank
        method = parameters.method or ("reconstruction" if bank is None else "features")
        given = parameters.model_fields_set
        if method == "reconstruction":
            bank = None
            for name in ("false_alarms", *(["view"] if parameters.view == "mask" else ())):
                if name in given:
                    raise InvalidParameter(
                        f"{name}: method=reconstruction gives raw scores without a threshold, which only"
                        " method=features has, with weights of mae anomaly fit",
                        parameter=name,
                    )
        elif bank is None:
            raise InvalidParameter(
                f"method: {pipeline.info.model} holds no memory bank of normal images: mae anomaly fit adds one",
                parameter="method",
            )
        elif bank.image_size != config.image_size:
            raise InvalidParameter(
                f"method: the memory bank was fitted on squares of {bank.image_size} pixels, and IMAGE_SIZE is"
                f" {config.image_size}: take method=reconstruction",
                parameter="method",
            )
        threshold = None if bank is None else bank.threshold(parameters.false_alarms)
        if bank is not None and parameters.view != "expected":
            for name in OF_PASSES:
                if name in given:
                    raise InvalidParameter(
                        f"{name}: there are masks only for method=reconstruction and view=expected", parameter=name
                    )
            return cls(method, bank, threshold, None, None, [])
        pipeline.require_decoder()
        seed = new_seed() if parameters.seed is None else parameters.seed
        visible_indices = _choose_passes(parameters, config.grid, seed)
        mask_ratio = 1 - len(visible_indices[0]) / config.num_patches
        return cls(method, bank, threshold, mask_ratio, seed, visible_indices)

    async def detect(self, pipeline: Pipeline, request: ImageRequest) -> list[Anomaly]:
        """Scores the patches of images; returns the scores of each image that is not left out.

        Raises:
            ServiceError: an image is refused, the queue is full, or the engine has failed.
        """
        passes_of: dict[int, list[Reconstruction]] = {}
        if self.visible_indices:
            by_image = await reconstruct_images(pipeline, request, MaskPlan((), self.visible_indices))
            passes_of = dict(zip(request.answered, by_image, strict=True))
        if (bank := self.bank) is None:
            std = pipeline.info.preprocessing.std
            return await pipeline.render(
                lambda: [self._by_reconstruction(passes, std) for passes in by_image], request.timings
            )
        encoded = await encode_images(pipeline, request)
        return await pipeline.render(
            lambda: [
                Anomaly(patches, bank.distances(tokens), self.threshold, self._expected(passes_of.get(index)))
                for index, (patches, tokens) in zip(request.answered, encoded, strict=True)
            ],
            request.timings,
        )

    def _by_reconstruction(self, passes: list[Reconstruction], std: Sequence[float]) -> Anomaly:
        patches, expected = passes[0].patches, self._expected(passes)
        assert expected is not None
        return Anomaly(patches, reconstruction_scores(patches, expected, std), None, expected)

    def _expected(self, passes: list[Reconstruction] | None) -> Floats | None:
        if passes is None:
            return None
        return expected_pixels([one.pixels for one in passes], self.visible_indices)


async def encode_images(pipeline: Pipeline, request: ImageRequest) -> list[tuple[Bytes, Floats]]:
    """Patches uint8 [N, P] and their tokens float32 [N, D], of each whole image that is not left out.

    Raises:
        ServiceError: an image is refused, the queue is full, or the engine has failed.
    """
    everything = all_indices(pipeline.info.config.num_patches)
    results = await pipeline.infer(request, Inference("tokens", (everything,), keeps_patches=True))
    return [(image.patches, image.vectors[0]) for image in results if image.patches is not None]


def _choose_passes(parameters: AnomalyParameters, grid: int, seed: int) -> list[Indices]:
    name = "mask_ratio"
    try:
        least = passes_to_cover(grid**2, parameters.mask_ratio)
        if parameters.passes is not None and parameters.passes < least:
            name = "passes"
        passes = least if parameters.passes is None else parameters.passes
        return complementary_visible(grid, parameters.mask_ratio, passes, seed)
    except MaskError as error:
        raise InvalidParameter(f"{name}: {error}", parameter=name) from error
