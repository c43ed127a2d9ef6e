"""One JSON object a line on standard error: what the service did, never the text of a document."""

import json
import logging
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

LOG = logging.getLogger("latentbits.service")


def log_as_json() -> None:
    """Send the service's log lines, and its web server's, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json())
    for name in ("latentbits.service", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


def tell(event: str, facts: Mapping[str, Any], level: int = logging.INFO) -> None:
    """Log one event with its facts."""
    LOG.log(level, event, extra={"facts": facts})


def tell_failure(event: str, error: BaseException, facts: Mapping[str, Any]) -> None:
    """Log an error by its kind and place; its words may hold the text of a document."""
    places = [f"{frame.name} {frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    tell(event, {**facts, "error": type(error).__name__, "at": places[-5:]}, logging.ERROR)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        return json.dumps(line | dict(getattr(record, "facts", {})), ensure_ascii=False, default=str)
