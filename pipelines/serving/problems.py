"""Whatever goes wrong becomes {"error": message} with a status that says whose fault it is."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pipelines.serving.answers import Unavailable, Unknown
from pipelines.serving.batches import Busy
from pipelines.serving.documents import Conflict, Unwritten
from pipelines.serving.requests import Problem
from vae_core.errors import LatentbitsError, Misuse

PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "what is asked for is not there, or does not fit"},
    401: {"model": Problem, "description": "no token, or another one"},
    413: {"model": Problem, "description": "the request is too large"},
    422: {"model": Problem, "description": "the request is not of this form"},
    429: {"model": Problem, "description": "too many requests from this address"},
    503: {"model": Problem, "description": "too much waits, or the service is stopping"},
    504: {"model": Problem, "description": "no answer within the time allowed"},
}
STATUS = {Unknown: 404, Conflict: 409, Busy: 503, Unwritten: 503, Unavailable: 503}
RETRY = {"retry-after": "1"}


def add_problems(app: FastAPI) -> None:
    @app.exception_handler(LatentbitsError)
    async def refused(_: Request, error: LatentbitsError) -> Response:
        status = STATUS.get(type(error), 400 if isinstance(error, Misuse) else 500)
        return json_response({"error": str(error)}, status, RETRY if status == 503 else None)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        return json_response({"error": "; ".join(_said(one) for one in error.errors()[:3])}, 422)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        told = {404: f"there is nothing at {request.url.path}", 405: f"{request.method} is not for this address"}
        words = told.get(error.status_code, error.detail)
        return json_response({"error": f"{words}; /openapi.json lists what there is"}, error.status_code)


def _said(error: Any) -> str:
    """A validation error in words; never the value, which may be somebody's text."""
    if error["type"] == "json_invalid":
        return f"the body is not JSON ({error['ctx']['error']} at character {error['loc'][-1]})"
    if len(error["loc"]) <= 2 and error["type"] == "model_attributes_type":
        return "the body is not a JSON object; send one, with the header 'Content-Type: application/json'"
    place = ".".join(str(part) for part in error["loc"] if part not in ("body", "one", "many"))
    words = error["msg"].removeprefix("Value error, ")
    return f"{place}: {words}" if place else words


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`value` as JSON."""
    return Response(to_json(value), status, headers, "application/json")
