"""The log on standard error: text for people, or JSON for programs."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Literal

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""The characters that end a line or move a terminal's cursor: the text may come from a file or from a client."""


def configure_logging(form: Literal["text", "json"]) -> None:
    """Sends all log messages and Python warnings to standard error, through one handler."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if form == "json" else TextFormatter())
    # No format shows threads, processes or tasks, so logging need not look them up for every message.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("httpx").setLevel(logging.WARNING)


class JSONFormatter(logging.Formatter):
    """One JSON object per log message, on one line; a message's `fields` become keys."""

    def format(self, record: logging.LogRecord) -> str:
        """`record` as JSON."""
        content = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return json.dumps(content, default=str)  # orjson refuses surrogates (file names) and large integers


class TextFormatter(logging.Formatter):
    """Time, level, message and `fields` of a log message, on one line; its traceback follows."""

    def format(self, record: logging.LogRecord) -> str:
        """`record` as text."""
        fields = "".join(f" {name}={value}" for name, value in getattr(record, "fields", {}).items())
        line = f"{_time(record)} {record.levelname:<8} {record.getMessage()}{fields}"
        line = CONTROL.sub(lambda character: ascii(character[0])[1:-1], line)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
