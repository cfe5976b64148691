"""Command-line options from pydantic models: names, help, defaults and bounds are written once, in the model."""

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
from service.parameters import invalid_parameter
from service.settings import Settings, load_settings

M = TypeVar("M", bound=BaseModel)
ENGINE_OPTIONS: Mapping[str, FieldInfo] = {
    name: Settings.model_fields[name]
    for name in (*EngineSettings.model_fields, "decode_threads", "max_pixels", "max_decode_mb")
}
"""The settings that commands without a server take too."""


def with_options(command: Any, fields: Mapping[str, FieldInfo]) -> Any:
    """Gives `command`, a function with a parameter `**options`, one command-line option per field.

    The command receives each value as text, as the user typed it, or None for an option that was not given;
    `settings_of` and `parameters_of` validate them.
    """
    signature = inspect.signature(command, eval_str=True)
    declared = [parameter for parameter in signature.parameters.values() if parameter.kind != parameter.VAR_KEYWORD]
    generated = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(name, field))
        for name, field in fields.items()
    ]
    command.__signature__ = signature.replace(parameters=[*declared, *generated])
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in [*declared, *generated]}
    return command


def settings_of(options: Mapping[str, Any]) -> Settings:
    """Settings from the environment and from those `options` that are settings; an option overrides a variable.

    Raises:
        InvalidSettings: a value is invalid.
    """
    return load_settings(**_select_fields(Settings, options))


def parameters_of(model: type[M], options: Mapping[str, Any]) -> M:
    """Parameters of class `model` from those `options` that are its fields.

    Raises:
        InvalidParameter: a value is invalid; the message is the one that the HTTP route would send.
    """
    try:
        return model(**_select_fields(model, options))
    except ValidationError as error:
        raise invalid_parameter(error.errors()[0]) from error


def _select_fields(model: type[BaseModel], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that have values and are fields of `model`."""
    return {name: value for name, value in options.items() if name in model.model_fields and value is not None}


def _option(name: str, field: FieldInfo) -> Any:
    flag = "--" + name.replace("_", "-")
    text = field.description or ""
    # typer's `show_default` would put the text in parentheses; the backslash keeps Rich from reading a style.
    default = "" if field.default_factory or field.default in (None, ()) else rf" \[default: {_text(field.default)}]"
    help_text = text[:1].upper() + text[1:] + default
    panel = "Engine" if name in ENGINE_OPTIONS else None
    kinds = _plain_types(field.annotation)
    if kinds == [bool]:
        return Annotated[bool | None, typer.Option(f"{flag}/--no-{flag[2:]}", help=help_text, rich_help_panel=panel)]
    return Annotated[str | None, typer.Option(flag, help=help_text, metavar=_metavar(kinds), rich_help_panel=panel)]


def _text(default: object) -> str:
    return ("no", "yes")[default] if isinstance(default, bool) else str(default)


def _metavar(kinds: list[Any]) -> str:
    if all(isinstance(kind, str) for kind in kinds):
        return "|".join(kinds)
    return {int: "<int>", float: "<float>", Path: "<path>", dict: "<json>"}.get(kinds[0], "<text>")


def _plain_types(annotation: Any) -> list[Any]:
    """The plain types of an annotation without None; for a literal, its values."""
    origin = get_origin(annotation)
    if origin is Literal:
        return list(get_args(annotation))
    if origin is Annotated:
        return _plain_types(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [kind for part in get_args(annotation) if part is not types.NoneType for kind in _plain_types(part)]
    return [origin or annotation]
