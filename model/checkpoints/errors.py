"""What can be wrong with weights, told in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError


class WeightsError(ValueError):
    """Weights that are missing, foreign or damaged; one sentence says what was found and what was expected."""


@contextmanager
def naming_path(path: Path) -> Iterator[None]:
    """Makes whatever is wrong with the weights at `path` a WeightsError: one sentence, with the path as its subject.

    So functions that look at weights raise verb phrases ("holds no config.json"), whether they know the path or not.
    """
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{path} {error}") from error
    except ValidationError as error:
        raise WeightsError(f"{path} describes a model that cannot be: {_explain(error)}") from error
    except SafetensorError as error:
        raise WeightsError(f"{path} is a damaged safetensors file ({error})") from error
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist: expected a file or a folder of weights") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror})") from error


def _explain(error: ValidationError) -> str:
    """One line for what pydantic found: each field, its value, and what it should have been."""
    details = error.errors(include_url=False, include_context=False)
    return "; ".join(
        f"{'.'.join(map(str, detail['loc']))} is {detail['input']!r} ({detail['msg']})"
        if detail["loc"]
        else detail["msg"]
        for detail in details
    )
