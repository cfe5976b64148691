import json
import logging
import sys
import warnings
from datetime import UTC, datetime
from typing import Any

import pytest

from service.logs import JSONFormatter, TextFormatter, configure_logging


def record(message: str, *arguments: object, level: int = logging.INFO, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("service.access", level, "file.py", 1, message, arguments, extra.pop("exc_info", None))
    made.created = datetime(2026, 3, 4, 5, 6, 7, 89_000, tzinfo=UTC).timestamp()
    vars(made).update(extra)
    return made


def failure() -> Any:
    try:
        raise ValueError("bad\nnews")
    except ValueError:
        return sys.exc_info()


def test_a_json_line_holds_time_level_message_and_fields() -> None:
    line = JSONFormatter().format(record("%d requests", 3, level=logging.WARNING, fields={"status": 200, "ms": 1.5}))
    assert json.loads(line) == {
        "time": "2026-03-04T05:06:07.089+00:00",
        "level": "warning",
        "logger": "service.access",
        "message": "3 requests",
        "status": 200,
        "ms": 1.5,
    }


@pytest.mark.parametrize(
    "message", ['"quotes"', "two\nlines", "é ü 図", "\x00\x1b[31m", "surrogate \udcff of a file name", "%s"]
)
def test_whatever_is_said_stays_one_line_of_json(message: str) -> None:
    line = JSONFormatter().format(record(message.replace("%", "%%") % ()))
    assert "\n" not in line
    assert json.loads(line)["message"] in (message, message.replace("%", "%%"))
    line.encode()


def test_fields_may_be_anything() -> None:
    line = JSONFormatter().format(record("x", fields={"path": logging, "large": 2**80, "text": "\udcff"}))
    assert json.loads(line)["large"] == 2**80


def test_a_traceback_is_a_key() -> None:
    line = JSONFormatter().format(record("x", exc_info=failure()))
    assert "\n" not in line
    exception = json.loads(line)["exception"]
    assert exception.startswith("Traceback (most recent call last)")
    assert exception.endswith("ValueError: bad\nnews")


def test_a_text_line() -> None:
    line = TextFormatter().format(record("%d requests", 3, fields={"status": 200, "path": "/embed"}))
    assert line == "2026-03-04T05:06:07.089+00:00 INFO     3 requests status=200 path=/embed"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("two\nlines", "two\\nlines"),
        ("\x1b[31m", "\\x1b[31m"),
        ("next\x85line", "next\\x85line"),
        ("\u2028", "\\u2028"),
    ],
)
def test_whatever_is_said_stays_one_line_of_text(text: str, written: str) -> None:
    line = TextFormatter().format(record(text, fields={"query": text}))
    assert line == f"2026-03-04T05:06:07.089+00:00 INFO     {written} query={written}"
    assert len(line.splitlines()) == 1


def test_a_text_line_is_followed_by_its_traceback() -> None:
    first, second, *_ = TextFormatter().format(record("x", exc_info=failure())).splitlines()
    assert first.endswith("INFO     x")
    assert second.startswith("Traceback")


def test_everything_goes_to_standard_error_in_the_form_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    logging.getLogger("model.checkpoints.locate").info("hello")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("careful", stacklevel=1)
    configure_logging("text")
    logging.getLogger("model.checkpoints.locate").info("goodbye")
    logging.getLogger("model.checkpoints.locate").debug("whisper")
    out, err = capsys.readouterr()
    assert out == ""
    hello, careful, goodbye = err.splitlines()
    assert json.loads(hello)["message"] == "hello"
    assert json.loads(careful)["logger"] == "py.warnings"
    assert goodbye.endswith("INFO     goodbye")
