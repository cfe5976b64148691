"""The name under which clients see the model."""

from __future__ import annotations

from functools import cached_property

from model.engines.base import EngineInfo


class NamedEngineInfo(EngineInfo):
    """The description of an engine whose model has another name for clients: the setting SERVED_NAME.

    `model` stays the name that the weights have, and so does the name of the vector space: vectors of the same weights
    may be compared, whatever the servers are called.
    """

    served_name: str

    @cached_property
    def model_id(self) -> str:
        """The served name and the hash of the weights in one word."""
        return f"{self.served_name}@{self.weights[:12]}"


def apply_served_name(info: EngineInfo, served_name: str | None) -> EngineInfo:
    """`info` with the name for clients, if there is one."""
    return info if served_name is None else NamedEngineInfo(**dict(info), served_name=served_name)


def served_name_of(info: EngineInfo) -> str:
    """The name under which clients see the model: SERVED_NAME, otherwise the name that the weights have."""
    return info.served_name if isinstance(info, NamedEngineInfo) else info.model


def names_of(info: EngineInfo) -> tuple[str, ...]:
    """Every name by which a request may ask for the served model: those that answers have, and those of the weights."""
    return (served_name_of(info), info.model_id, info.model, info.config.name)
