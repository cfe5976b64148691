"""Command-line options made of pydantic models, so that nothing is said twice: names, help, defaults and bounds."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from model.engines.settings import EngineSettings
from service.api.schemas import refusal
from service.settings import Settings, load_settings

M = TypeVar("M", bound=BaseModel)
ENGINE_OPTIONS: Mapping[str, FieldInfo] = {
    name: Settings.model_fields[name] for name in (*EngineSettings.model_fields, "decode_threads", "max_pixels")
}
"""The settings that also make sense without a server."""


def with_options(command: Any, fields: Mapping[str, FieldInfo]) -> Any:
    """Gives `command`, which takes **given, one option a field of a model.

    Values arrive as they were typed, None where nothing was: `settings_of` and `parameters_of` validate them.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for parameter in signature.parameters.values() if parameter.kind != parameter.VAR_KEYWORD]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(name, field))
        for name, field in fields.items()
    ]
    command.__signature__ = signature.replace(parameters=[*own, *options])
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *options]}
    return command


def settings_of(given: Mapping[str, Any]) -> Settings:
    """Settings from those of `given` that are settings, and from the environment.

    Raises:
        InvalidSettings: a value that cannot be.
    """
    return load_settings(**_fields(Settings, given))


def parameters_of(model: type[M], given: Mapping[str, Any]) -> M:
    """Parameters of a request from those of `given` that are fields of `model`.

    Raises:
        InvalidParameter: a value that cannot be, in the words of the route.
    """
    try:
        return model(**_fields(model, given))
    except ValidationError as error:
        raise refusal(error.errors()[0]) from error


def _fields(model: type[BaseModel], given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name in model.model_fields and value is not None}


def _option(name: str, field: FieldInfo) -> Any:
    flag = "--" + name.replace("_", "-")
    text = field.description or ""
    # Not typer's `show_default`, which puts a text between brackets; the backslash keeps Rich from reading a style.
    shown = "" if field.default_factory or field.default in (None, ()) else rf" \[default: {_text(field.default)}]"
    help_text = text[:1].upper() + text[1:] + shown
    panel = "Engine" if name in ENGINE_OPTIONS else None
    kinds = _kinds(field.annotation)
    if kinds == [bool]:
        return Annotated[bool | None, typer.Option(f"{flag}/--no-{flag[2:]}", help=help_text, rich_help_panel=panel)]
    return Annotated[str | None, typer.Option(flag, help=help_text, metavar=_metavar(kinds), rich_help_panel=panel)]


def _text(default: object) -> str:
    return ("no", "yes")[default] if isinstance(default, bool) else str(default)


def _metavar(kinds: list[Any]) -> str:
    if all(isinstance(kind, str) for kind in kinds):
        return "|".join(kinds)
    return {int: "<int>", float: "<float>", Path: "<path>", dict: "<json>"}.get(kinds[0], "<text>")


def _kinds(annotation: Any) -> list[Any]:
    """The plain types in an annotation, without None, and the values of its literals."""
    origin = get_origin(annotation)
    if origin is Literal:
        return list(get_args(annotation))
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [kind for part in get_args(annotation) if part is not types.NoneType for kind in _kinds(part)]
    return [origin or annotation]
