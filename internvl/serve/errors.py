"""Errors of the server in OpenAI's form: `{"error": {"message", "type", "param", "code"}}` and a status."""

from pydantic import ValidationError

from internvl.command import describe_system_fault
from internvl.errors import ConfigError, DataError, InternVLError

_TYPES = {401: "authentication_error", 429: "rate_limit_error", 504: "timeout_error"}


class ApiError(Exception):
    """What a request gets instead of an answer.

    Args:
        status: Of HTTP.
        message: What was got, what was expected, what to change.
        code: A word by which programs distinguish errors of one status.
        param: The field of the request that is wrong.
    """

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """The error as OpenAI's clients read it."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def from_validation(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a request's json."""
    first = error.errors(include_url=False, include_context=False)[0]
    param = ".".join(str(part) for part in first["loc"]) or None
    got = "" if first["type"] in ("json_invalid", "missing") else f", got {first['input']!r:.100}"
    return ApiError(400, f"{param or 'the body'}: {first['msg']}{got}", code=first["type"], param=param)


def from_exception(error: Exception) -> ApiError:
    """What a request gets for an error that it caused, or met; the server goes on in any case."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, DataError | ConfigError):
        return ApiError(400, str(error), code=error.kind if isinstance(error, DataError) else None)
    if isinstance(error, InternVLError):
        return ApiError(500, str(error))
    if type(error).__name__ == "OutOfMemoryError":  # of torch, on a GPU
        return ApiError(503, "not enough memory for this request; send fewer or smaller pictures", code="memory")
    fault = describe_system_fault(error)
    return ApiError(500 if fault is None else 503, fault or f"internal error ({type(error).__name__})")
