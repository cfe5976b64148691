"""The messages between a worker and the engine process: their kinds, and how each is packed.

Messages about images are small structs, because every image needs some. Rare messages (settings, state, metrics, an
error) and what a search finds are JSON. Nothing is ever pickled.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence
from enum import IntEnum
from struct import Struct

import numpy as np
import orjson
import safetensors.numpy

from model.checkpoints.heads import POOL_INDEX, Head, Heads, Whitening
from model.checkpoints.memory_bank import MemoryBank
from model.engines.base import EngineInfo
from service.errors import ServiceError
from service.inference.queue import Operation
from service.inference.searcher import Neighbour, Query
from service.lifecycle.state import State
from service.parameters import EmbedParameters, SearchParameters

HEAD = Struct("<IB3x")
"""The head of each message: the length of its content in bytes, and its kind."""
PUT = Struct("<IIIIIIIId")
"""Content of PUT: request, slot, index of the image, number of the request's images, passes, K, what an image takes of
the budget of images, operation, deadline."""
DONE = Struct("<Idd")
"""Content of DONE: slot, seconds in the queue, seconds in the batch."""
NUMBER = Struct("<I")
"""The number of a slot, a request, a pull, a scrape or a search."""
OPERATIONS: tuple[Operation, ...] = ("embed", "tokens", "reconstruct")
ERROR_CLASSES: list[type[ServiceError]] = [ServiceError, *ServiceError.__subclasses__()]
ERRORS = {error_class.__name__: error_class for error_class in ERROR_CLASSES}


class Kind(IntEnum):
    """The kind of a message, with its direction and its content."""

    SETTINGS = 1
    """To a worker, as the first message: the settings, JSON."""
    HELLO = 2
    """From a worker: it accepts connections. No content."""
    OPEN = 3
    """To a worker: the engine is loaded. Content of `pack_engine`."""
    STATE = 4
    """To a worker: the state of the service. Content of `pack_state`."""
    PUT = 5
    """From a worker: an image waits in a slot, which now belongs to the engine process. PUT, then the `traceparent` of
    the request's span in ASCII, if the request is traced."""
    DONE = 6
    """To a worker: the image's result is in the slot, which now belongs to the worker. DONE."""
    RELEASED = 7
    """To a worker: a slot belongs to the worker again, and holds no result. NUMBER of the slot."""
    FAILED = 8
    """To a worker: a request has failed. NUMBER of the request, then content of `pack_error`."""
    CANCEL = 9
    """From a worker: nobody waits for a request any more. NUMBER of the request."""
    PULL = 10
    """To a worker: it should send its counters. NUMBER of the pull."""
    COUNTERS = 11
    """From a worker: its counters. NUMBER of the pull, or 0 without one, then content of `pack_counters`."""
    SCRAPE = 12
    """From a worker: it wants the metrics of the whole service. NUMBER of the scrape."""
    EXPOSITION = 13
    """To a worker: the metrics of the whole service, or no text if they failed. NUMBER of the scrape, then the text."""
    EXIT = 14
    """To a worker: it should answer the requests that it has, and end. No content."""
    SAMPLE = 15
    """From a worker: a slot holds an image whose drift can be measured; RELEASED gives it back. NUMBER of the slot."""
    SEARCH = 16
    """From a worker: it wants the neighbours of vectors. NUMBER of the search, then content of `pack_query`."""
    DESCRIBE_INDEX = 17
    """From a worker: it wants the description of the index. NUMBER of the search."""
    DROP_SEARCH = 18
    """From a worker: nobody waits for a search any more. NUMBER of the search."""
    FOUND = 19
    """To a worker: what SEARCH or DESCRIBE_INDEX asks for. NUMBER of the search, then content of `pack_neighbours`, or
    the `IndexInfo` as JSON."""
    SEARCH_FAILED = 20
    """To a worker: a search has failed. NUMBER of the search, then content of `pack_error`."""
    MEASURED = 21
    """To a worker: the seconds of batches are measured. The description of the engine, an `EngineInfo` as JSON."""
    MEMORY_WANTED = 22
    """From a worker, and to each other one: MAX_INFLIGHT_MB is full, and the sender has no slow body that could make
    room. No content."""


KIND_OF = {int(kind): kind for kind in Kind}
"""The kinds by number: a lookup costs less than the call `Kind(number)`, and every image needs some."""


def pack_error(error: ServiceError) -> bytes:
    """An error as bytes."""
    return orjson.dumps([type(error).__name__, error.message, error.details])


def unpack_error(data: bytes | memoryview) -> ServiceError:
    """The error that `pack_error` packed, of the same class."""
    name, message, details = orjson.loads(data)
    return ERRORS[name](message, **details)


def pack_state(state: State, progress: str) -> bytes:
    """The state of the service and its reason as bytes."""
    return orjson.dumps({"state": state, "progress": progress})


def unpack_state(data: bytes | memoryview) -> tuple[State, str]:
    """The state and the reason that `pack_state` packed."""
    content = orjson.loads(data)
    return content["state"], content["progress"]


def pack_query(query: Query) -> bytes:
    """A query of the index as bytes: the length of a JSON object, the object, and the vectors."""
    head = {"count": len(query.vectors), "parameters": query.parameters.model_dump(), "deadline": query.deadline}
    text = orjson.dumps(head)
    return NUMBER.pack(len(text)) + text + np.ascontiguousarray(query.vectors, np.float32).tobytes()


def unpack_query(data: bytes) -> Query:
    """The query that `pack_query` packed."""
    (length,) = NUMBER.unpack_from(data)
    head = orjson.loads(data[NUMBER.size : NUMBER.size + length])
    vectors = np.frombuffer(data[NUMBER.size + length :], np.float32).reshape(head["count"], -1)
    return Query(vectors, SearchParameters.model_validate(head["parameters"]), head["deadline"])


def pack_neighbours(found: Sequence[Sequence[Neighbour]]) -> bytes:
    """The neighbours of each vector as bytes: JSON with base64 for pictures."""
    return orjson.dumps(
        [
            [(*one[:3], None if one.thumbnail is None else b64encode(one.thumbnail).decode()) for one in neighbours]
            for neighbours in found
        ]
    )


def unpack_neighbours(data: bytes) -> list[list[Neighbour]]:
    """The neighbours that `pack_neighbours` packed."""
    return [
        [
            Neighbour(file, path, similarity, None if picture is None else b64decode(picture))
            for file, path, similarity, picture in neighbours
        ]
        for neighbours in orjson.loads(data)
    ]


def pack_engine(info: EngineInfo, heads: Heads, slot_count: int, embedding: EmbedParameters | None = None) -> bytes:
    """The description of an engine for a worker, as bytes.

    Args:
        info: of the engine.
        heads: of its model.
        slot_count: number of the worker's slots.
        embedding: how the images of the index were embedded; None without an index.
    """
    content = {
        "slots": slot_count,
        "info": info.model_dump(mode="json"),
        "embedding": None if embedding is None else embedding.model_dump(),
    }
    description = orjson.dumps(content)
    return NUMBER.pack(len(description)) + description + safetensors.numpy.save(heads.arrays())


def unpack_engine(data: bytes) -> tuple[EngineInfo, Heads, int, EmbedParameters | None]:
    """The arguments of `pack_engine`."""
    (length,) = NUMBER.unpack_from(data)
    content = orjson.loads(data[NUMBER.size : NUMBER.size + length])
    arrays = safetensors.numpy.load(data[NUMBER.size + length :])
    info = EngineInfo.model_validate(content["info"])
    head = None if info.head is None else Head(info.head, arrays["head.weight"], arrays["head.bias"])
    whitening = {
        pool: Whitening(arrays[f"whitening.{pool}.centre"], arrays[f"whitening.{pool}.matrix"])
        for pool in POOL_INDEX
        if f"whitening.{pool}.centre" in arrays
    }
    bank = None
    if info.memory_bank is not None:
        bank = MemoryBank(arrays["memory_bank.tokens"], arrays["memory_bank.scores"], info.memory_bank.image_size)
    embedding = None if content["embedding"] is None else EmbedParameters.model_validate(content["embedding"])
    return info, Heads(head, whitening, bank), content["slots"], embedding
