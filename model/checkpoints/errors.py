"""The error for weights that cannot be used, and words for its messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError


class WeightsError(ValueError):
    """Weights are missing, foreign or damaged; the message is a whole sentence that names the file or folder.

    It tells the content of the file and the content that was expected.
    """


def summarise(names: Iterable[str]) -> str:
    """Names of tensors in a few words: the first, and the number of the others."""
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else first


@contextmanager
def wrap_read_errors(path: Path) -> Iterator[None]:
    """Turns the exceptions of other libraries, raised while the weights at `path` are read, into a WeightsError."""
    try:
        yield
    except ValidationError as error:
        raise WeightsError(f"{path} describes a model that cannot be: {_explain(error)}") from error
    except SafetensorError as error:
        raise WeightsError(f"{path} is a damaged safetensors file ({error})") from error
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist: expected a file or a folder of weights") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror})") from error


def _explain(error: ValidationError) -> str:
    """Puts pydantic's errors into one line: each field, its value, and the rule that it breaks."""
    details = error.errors(include_url=False, include_context=False)
    rules = [detail["msg"].removeprefix("Value error, ") for detail in details]
    return "; ".join(
        f"{'.'.join(map(str, detail['loc']))} is {detail['input']!r} ({rule})" if detail["loc"] else rule
        for detail, rule in zip(details, rules, strict=True)
    )
