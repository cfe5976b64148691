"""The log, on standard error: lines for people, or JSON for programs."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal


def configure_logging(form: Literal["text", "json"]) -> None:
    """One handler for everything, warnings included; uvicorn's own access log stays off."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if form == "json" else TextFormatter())
    # No line names threads, processes or tasks: let no request pay for looking them up.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("httpx").setLevel(logging.WARNING)


class JSONFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """`record` with its facts as keys of their own."""
        content = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return json.dumps(content, default=str)  # orjson refuses surrogates (file names) and large integers


class TextFormatter(logging.Formatter):
    """Time, level, message, facts."""

    def format(self, record: logging.LogRecord) -> str:
        """`record` as one line, and its traceback if there is one."""
        facts = "".join(f" {name}={fact}" for name, fact in getattr(record, "facts", {}).items())
        line = f"{_time(record)} {record.levelname:<8} {record.getMessage()}{facts}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
