"""Which patches carry a score: each is seen in a random half of the passes, and left out of the others.

This is the randomised input sampling of RISE (Petsiuk et al. 2018) with one difference: a patch that is left out is not
painted over but not encoded, as in the model's pretraining. So a pass gives the score of an image with holes, and no
background is invented.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from model.arrays import Bytes, Floats, Indices
from model.checkpoints.heads import POOL_INDEX, Head, Heads, Whitening
from model.engines.base import EngineInfo
from model.masking import all_indices, new_seed
from service.errors import InvalidParameter, NoHead
from service.inference.images import ImageRequest
from service.inference.passes import Inference
from service.inference.pipeline import Pipeline
from service.parameters import ExplainParameters, ExplainTarget

BLOCK = 2
"""Side of the squares in which patches are left out, in patches."""
SIMILARITY_POOL = POOL_INDEX["mean"]
"""The pooled vector that similarity compares: that of the mean, which every model has."""


@dataclass(frozen=True)
class Explanation:
    """The shares of an image's patches in a score."""

    patches: Bytes
    """The image, uint8 [N, P]."""
    score: float
    """The score of the whole image: a probability, or a cosine."""
    shares: Floats
    """Mean score of the passes that see a patch, less that of the passes that do not, float32 [N]."""
    label: str | None
    """The class whose probability is the score; None for similarity."""

    @property
    def scale(self) -> float:
        """The largest share in size, which pictures show in the full colour."""
        return float(np.abs(self.shares).max())


@dataclass(frozen=True)
class ExplanationPlan:
    """What a request for an explanation asks for, for routes and commands alike."""

    target: ExplainTarget
    seed: int
    subsets: Sequence[Indices]
    """Visible indices of each pass, int32 [N / 2]."""
    head: Head | None
    """The head that gives the score, for a class."""
    label: int | None
    """The index of the class; None for the most probable class."""
    whitening: Whitening | None
    """The whitening that comes before the cosine, where the weights hold one."""

    @classmethod
    def of(cls, parameters: ExplainParameters, info: EngineInfo, heads: Heads) -> Self:
        """The plan for a request's parameters.

        Raises:
            NoHead: a class is asked for, and the model has no classification head.
            InvalidParameter: the head has no class `label`, or similarity is asked for with a label.
        """
        target = parameters.target or ("similarity" if heads.head is None else "class")
        if target == "class" and heads.head is None:
            raise NoHead.of(info.model)
        label = None
        if parameters.label is not None:
            if target == "similarity" or heads.head is None:
                raise InvalidParameter("label: only target=class has a label", parameter="label")
            if parameters.label not in heads.head.config.classes:
                raise InvalidParameter(f"label: the head has no class {parameters.label!r}", parameter="label")
            label = heads.head.config.classes.index(parameters.label)
        seed = new_seed() if parameters.seed is None else parameters.seed
        subsets = draw_subsets(info.config.grid, parameters.passes, seed)
        if target == "class":
            return cls(target, seed, subsets, heads.head, label, None)
        return cls(target, seed, subsets, None, None, heads.whitening.get("mean"))

    def require_images(self, count: int) -> None:
        """Checks the number of images.

        Raises:
            InvalidParameter: a class needs one image, and similarity two.
        """
        needed = 1 if self.target == "class" else 2
        if count != needed:
            second = "" if needed == 1 else ", the second being the one that the first is compared with"
            raise InvalidParameter(
                f"target={self.target} takes {needed} image{'s' * (needed > 1)}{second}: this request has {count}",
                parameter="target",
            )

    def explain(self, patches: Bytes, whole: Floats, passes: Floats) -> Explanation:
        """The explanation of the first image.

        Args:
            patches: the first image, uint8 [N, P].
            whole: pooled vectors of the whole images, float32 [B, 2, D].
            passes: pooled vectors of the first image from each of `subsets`, float32 [passes, 2, D].
        """
        label = None
        if self.head is not None:
            pool = POOL_INDEX[self.head.config.pool]
            # Each vector alone: how a product of matrices rounds depends on the number of rows.
            vectors = [whole[0, pool], *passes[:, pool]]
            probabilities = np.concatenate([self.head.probabilities(vector[None]) for vector in vectors])
            index = int(probabilities[0].argmax()) if self.label is None else self.label
            scores, label = probabilities[:, index], self.head.config.classes[index]
        else:
            vectors = [whole[0, SIMILARITY_POOL], *passes[:, SIMILARITY_POOL]]
            scores = _cosines(vectors, whole[1, SIMILARITY_POOL], self.whitening)
        return Explanation(patches, float(scores[0]), compute_shares(scores[1:], self.subsets, len(patches)), label)


async def explain_images(pipeline: Pipeline, request: ImageRequest, plan: ExplanationPlan) -> Explanation:
    """Explains the score of the first image.

    Args:
        pipeline: to the engine.
        request: encoded images, as many as `plan.require_images` asks for; none of them may be left out.
        plan: what was asked for.

    Raises:
        ServiceError: an image is refused, the queue is full, or the engine has failed.
    """
    whole = Inference("embed", (all_indices(pipeline.info.config.num_patches),), keeps_patches=True)
    first = ImageRequest(request.images[:1], request.timings, request.deadline)
    # Both are admitted before anything is decoded: a request whose subsets find no room is refused at once.
    with (
        pipeline.admit(request, whole) as images,
        pipeline.admit(first, Inference("embed", plan.subsets)) as subsets,
    ):
        await images.queue_images()
        patches = images.patches(0)
        passes = await pipeline.run_in_pool(lambda: [(patches[visible], visible) for visible in plan.subsets])
        subsets.queue_passes(0, passes)
        vectors = np.array([image.vectors[0] for image in await images.wait()])
        [of_subsets] = await subsets.wait()
    return await pipeline.run_in_pool(plan.explain, patches, vectors, np.array(of_subsets.vectors))


def describe_explanation(info: EngineInfo, plan: ExplanationPlan, explanation: Explanation) -> dict[str, Any]:
    """An explanation as JSON, without its picture."""
    content: dict[str, Any] = {
        "model": info.model_id,
        "target": plan.target,
        "score": explanation.score,
        "grid": (info.config.grid, info.config.grid),
        "patches": explanation.shares,
        "scale": explanation.scale,
        "passes": len(plan.subsets),
        "seed": plan.seed,
    }
    if plan.target == "class":
        return {**content, "label": explanation.label}
    return {**content, "whitened": plan.whitening is not None}


def draw_subsets(grid: int, passes: int, seed: int) -> list[Indices]:
    """Draws a random half of the patches for each pass, int32 [N / 2], as squares of BLOCK x BLOCK patches.

    Neighbouring patches mostly show one thing, so larger squares change the score by more, and fewer passes tell which
    of them matter. The squares of each pass lie on a grid of another offset, and the last one of a pass may be cut.
    """
    bits = np.random.PCG64(seed)
    rows, columns = np.divmod(np.arange(grid**2), grid)
    side = (grid + BLOCK - 2) // BLOCK + 1  # squares along a side, those that the offset cuts included
    subsets = []
    for _ in range(passes):
        down, right = (int(raw % BLOCK) for raw in bits.random_raw(2))
        order = bits.random_raw(side**2)[(rows + down) // BLOCK * side + (columns + right) // BLOCK]
        subsets.append(np.sort(np.argsort(order, kind="stable")[: max(1, grid**2 // 2)]).astype(np.int32))
    return subsets


def compute_shares(scores: Floats, subsets: Sequence[Indices], num_patches: int) -> Floats:
    """The share of each patch in the scores of passes that see `subsets` of the patches, float32 [N].

    It is the mean score of the passes that see the patch, less that of the passes that do not; 0 for a patch that all
    or none of the passes see.

    Args:
        scores: of each pass, [passes].
        subsets: visible indices of each pass.
        num_patches: N.
    """
    seen = np.zeros((len(subsets), num_patches))  # [passes, N]
    for row, visible_indices in zip(seen, subsets, strict=True):
        row[visible_indices] = 1
    count = seen.sum(axis=0)
    left_out = len(subsets) - count
    # Against the mean of all passes, so that no digit is lost.
    total = (scores - scores.mean(dtype=np.float64)) @ seen
    known = (count > 0) & (left_out > 0)
    shares = total / np.maximum(count, 1) + total / np.maximum(left_out, 1)
    return np.where(known, shares, 0).astype(np.float32)


def _cosines(vectors: Sequence[Floats], other: Floats, whitening: Whitening | None) -> Floats:
    """The cosine of each of `vectors` [D] with `other` [D], after whitening if there is one."""
    if whitening is not None:
        vectors, other = [whitening.apply(vector) for vector in vectors], whitening.apply(other)
    return np.array([_unit(vector) @ _unit(other) for vector in vectors])


def _unit(vector: Floats) -> Floats:
    """`vector` [D], scaled to length 1."""
    return np.asarray(vector / np.maximum(np.linalg.norm(vector), np.finfo(np.float32).tiny))
