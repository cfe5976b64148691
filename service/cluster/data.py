"""Collections of images embedded by Ray Data, on every machine of a cluster.

    images -> tasks on CPUs: read, decode -> uint8 [B, N, P] -> actors with an engine each -> float32 [B, D]
           -> this process, in the order of the images

Ray Data's own reader of images is not used: it applies no EXIF orientation, no colour profile and no alpha, so its
pixels, and the vectors of them, would differ from those of the service.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from model.arrays import Bytes, Floats
from model.checkpoints.heads import Heads
from model.engines.base import EngineInfo, ServedModel
from model.engines.build import build
from service.cluster.cpus import ClaimedCPUs
from service.errors import EngineLost, ServiceError
from service.inference.embedding import EmbeddingPlan, embed_images
from service.inference.images import ImageRequest
from service.inference.pipeline import Pipeline
from service.inference.vector_space import space_of
from service.parameters import EmbedParameters
from service.settings import Settings

OpenPipeline = Callable[[ServedModel, Settings, int], AbstractAsyncContextManager[Pipeline]]
"""Opens the pipeline around an engine, for at most so many images at the same time."""
Image = tuple[str, Callable[[], bytes]]
"""The name of an image in errors, and what returns the bytes of its file on any machine of the cluster."""
Decode = Callable[[Sequence[Image]], Sequence[tuple[Bytes | None, str, int]]]
"""Reads and decodes images, on any machine of the cluster. Of each image: its patches uint8 [N, P], or None and the
sentence that says why it has none; and the bytes of its file."""
Row = tuple[Floats | None, str, int]
"""An image's vector float32 [D] (tokens: [K, D]), or None and the sentence that says why it has none; and the bytes."""
IMAGES_PER_TASK = 32
IMAGES_PER_CALL = 64
"""Images that an actor gets at once: some batches for every lane. Others are decoded meanwhile."""
DECODE_BYTES = 2**27
"""Memory that Ray is told of each task that decodes."""
ENGINE_CPUS = 4
"""CPUs of an engine, at least, where a machine has as many to spare."""


CONNECT_S = 5.0
"""Seconds in which a cluster takes a connection."""


class ClusterError(Exception):
    """Ray cannot run the work; the message is one sentence that gives the reason."""


@dataclass(frozen=True)
class EngineResources:
    """What Ray assigns to each engine, and how many engines there are at most."""

    num_cpus: float
    num_gpus: float
    max_engines: int


@dataclass(frozen=True)
class EmbeddingJob:
    """What the processes of the cluster do. All of it travels to them."""

    settings: Settings
    parameters: EmbedParameters
    decode: Decode
    describe_error: Callable[[str, ServiceError], str]
    """The sentence for an image, by its name, that an engine has failed on."""
    open_pipeline: OpenPipeline


@contextmanager
def connect(address: str | None) -> Iterator[None]:
    """Connects to a cluster, and leaves it in the end; a process that is connected already stays so.

    Args:
        address: of the cluster, or `local` for one of this machine alone, which is started and ended. None: what
            RAY_ADDRESS says, else the cluster that runs on this machine, else `local`.

    Raises:
        ClusterError: there is no cluster at this address.
    """
    if ray.is_initialized():
        yield
        return
    _require_listener(address or os.environ.get("RAY_ADDRESS") or "")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Its C++ code writes to our standard error: of every pool of actors, for example, that restarting one may fail.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RayError) as error:
        raise ClusterError(f"there is no Ray cluster at {address or os.environ.get('RAY_ADDRESS')}: {error}") from error
    signal.signal(signal.SIGTERM, handler)  # Ray has set its own, by which a process ends at once
    try:
        yield
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Checks that something listens at HOST:PORT, since Ray tries for minutes; other addresses are left to Ray."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"there is no Ray cluster at {address}: {error}") from error


def choose_resources(
    settings: Settings, max_engines: int | None = None, num_gpus: float | None = None
) -> EngineResources:
    """The resources of each engine on the cluster that this process is connected to.

    An engine gets a GPU where the cluster has some and BACKEND allows it, else an equal part of the smallest machine's
    CPUs. One CPU of each machine is left for decoding.

    Args:
        settings: of the engines.
        max_engines: largest number of engines; as many as there is room for, if it is None.
        num_gpus: GPUs of each engine; 0.5: two engines share one. None: one, or none where there are no GPUs.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    gpus = sum(node.get("GPU", 0) for node in nodes)
    if num_gpus is None:
        num_gpus = 1 if gpus and settings.backend != "openvino" else 0
    if num_gpus:
        return EngineResources(1, num_gpus, max_engines or max(1, int(gpus / num_gpus)))
    least = int(min(node["CPU"] for node in nodes)) - 1
    cpus = max(1, least // max(1, least // ENGINE_CPUS))
    room = sum(int(node["CPU"] - 1) // cpus for node in nodes)
    return EngineResources(cpus, 0, max_engines or max(1, room))


def describe_engine(settings: Settings, resources: EngineResources) -> tuple[EngineInfo, Heads]:
    """Builds the engine on a machine of the cluster, and returns what it is: this machine may have no GPU, say.

    Raises:
        ClusterError: the engine cannot be built there.
    """

    def describe() -> tuple[EngineInfo, Heads]:
        claimed = ClaimedCPUs(resources.num_cpus)
        try:
            served = build(settings.engine, logging.getLogger(__name__).info)
        finally:
            claimed.release()
        return served.info, served.heads

    # One call a process: the next task of this one would keep to the CPUs of this engine.
    task = ray.remote(num_cpus=resources.num_cpus, num_gpus=resources.num_gpus, max_calls=1)(describe)
    try:
        described: tuple[EngineInfo, Heads] = ray.get(task.remote())
    except RayError as error:
        raise _cluster_error(error) from error
    return described


def embed_on_cluster(
    images: Sequence[Image], info: EngineInfo, job: EmbeddingJob, resources: EngineResources
) -> Iterator[Row]:
    """Embeds images on the cluster; yields the rows in the order of the images.

    Args:
        images: the images; they can be pickled.
        info: of the engine that `describe_engine` has built: engines elsewhere must have the same vector space.
        job: what is done.
        resources: of the engines.

    Raises:
        ClusterError: a process of the cluster could not go on.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    actors = ray.data.ActorPoolStrategy(min_size=1, max_size=resources.max_engines)
    rows = ray.data.from_items(
        [{"index": index, "image": pickle.dumps(image)} for index, image in enumerate(images)],
        override_num_blocks=-(-len(images) // IMAGES_PER_TASK),
    )
    # With other arguments than the actors, decoding stays in tasks of its own: it would be fused into the actors, and
    # each engine would wait for it.
    rows = rows.map_batches(_decode, fn_args=(info, job), batch_size=None, num_cpus=1, memory=DECODE_BYTES)
    rows = rows.map_batches(
        EngineActor,
        fn_constructor_args=(info, job, resources),
        batch_size=IMAGES_PER_CALL,
        compute=actors,
        **({"num_gpus": resources.num_gpus} if resources.num_gpus else {"num_cpus": resources.num_cpus}),
    )
    expected = 0
    try:
        for batch in rows.iter_batches(batch_size=None, batch_format="numpy"):
            for index, vector, error, size in zip(*(batch[name] for name in COLUMNS), strict=True):
                if index != expected:
                    raise ClusterError(f"Ray has returned row {index} in place of row {expected}")
                expected += 1
                yield None if error else np.array(vector, np.float32), str(error), int(size)
    except RayError as error:
        raise _cluster_error(error) from error
    if expected != len(images):
        raise ClusterError(f"Ray has returned {expected} rows of {len(images)}")


Batch = dict[str, Any]
"""Columns of Ray Data as NumPy arrays."""
COLUMNS = ("index", "vector", "error", "size")


def _decode(batch: Batch, info: EngineInfo, job: EmbeddingJob) -> Batch:
    """Replaces `image` by `path`, which names it, `patches`, uint8 [B, N, P], `error`, empty if none, and `size`."""
    images: list[Image] = [pickle.loads(image) for image in batch["image"]]
    decoded = job.decode(images)
    patches = np.zeros((len(decoded), info.config.num_patches, info.config.patch_dim), np.uint8)
    for row, (one, _, _) in zip(patches, decoded, strict=True):
        if one is not None:
            row[...] = one
    errors, sizes = [error for _, error, _ in decoded], [size for _, _, size in decoded]
    return {
        "index": batch["index"],
        "path": np.array([path for path, _ in images], object),
        "patches": patches,
        "error": np.array(errors, object),
        "size": np.array(sizes, np.int64),
    }


class EngineActor:
    """An engine in a process of its own, which embeds what others have decoded."""

    def __init__(self, info: EngineInfo, job: EmbeddingJob, resources: EngineResources) -> None:
        """Builds the engine.

        Raises:
            EngineLost: its vectors would belong to another space than those of the engine that `info` describes.
        """
        self._claimed = ClaimedCPUs(resources.num_cpus)
        served = build(job.settings.engine, logging.getLogger(__name__).info)
        self._plan = EmbeddingPlan.of(job.parameters, served.info, served.heads)
        expected, found = (space_of(one, self._plan.parameters) for one in (info, served.info))
        if expected != found:
            raise EngineLost(f"engines of the cluster compute in different spaces: {expected} and {found}")
        self._shape = (
            (len(self._plan.visible_indices), info.config.embed_dim)
            if self._plan.pool == "tokens"
            else (self._plan.dim(info.config),)
        )
        self._describe_error = job.describe_error
        self._loop = asyncio.new_event_loop()
        self._pipeline = job.open_pipeline(served, job.settings, IMAGES_PER_CALL)
        self._opened = self._loop.run_until_complete(self._pipeline.__aenter__())

    def __call__(self, batch: Batch) -> Batch:
        """Replaces `patches` by `vector`, float32 [B, D] (tokens: [B, K, D]); it is 0 where there is an error."""
        vectors = np.zeros((len(batch["index"]), *self._shape), np.float32)
        errors = batch["error"].copy()
        decoded = np.flatnonzero(errors == "")
        for first in range(0, len(decoded), IMAGES_PER_CALL):
            rows = decoded[first : first + IMAGES_PER_CALL]
            skipped: dict[int, ServiceError] = {}
            request = ImageRequest([batch["patches"][row] for row in rows], skipped=skipped)
            embedded, _ = self._loop.run_until_complete(embed_images(self._opened, request, self._plan))
            answered = [row for index, row in enumerate(rows) if index not in skipped]
            for row, vector in zip(answered, embedded, strict=True):
                vectors[row] = self._plan.finish([vector])[0]
            for index, error in skipped.items():
                errors[rows[index]] = self._describe_error(batch["path"][rows[index]], error)
        return {"index": batch["index"], "vector": vectors, "error": errors, "size": batch["size"]}


def _cluster_error(error: RayError) -> ClusterError:
    """The error in one sentence: of Ray's long text the last line, which names what was raised in the process."""
    cause = getattr(error, "cause", None)
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return ClusterError(str(cause) if cause is not None else lines[-1].strip())
