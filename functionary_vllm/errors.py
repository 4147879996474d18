"""The error tree: everything that can be told to a client, as status, type, code and param.

In: a message for a person, and the request field it is about. Out: OpenAI's error envelope. Refuses to know HTTP
frameworks: `api/app.py` turns an ApiError into a response, `api/sse.py` into an event inside a stream.

    ApiError
    ├── InvalidRequest            400  invalid_request_error
    │   └── ContextLengthExceeded 400  context_length_exceeded
    ├── AuthenticationFailed      401  authentication_error, invalid_api_key
    ├── PermissionDenied          403  permission_error, admin_key_required
    ├── NotFound                  404  not_found
    │   └── ModelNotFound         404  model_not_found
    ├── MethodNotAllowed          405  method_not_allowed
    ├── DeadlineExceeded          408  timeout_error, deadline_exceeded: the client's own deadline
    ├── ReaderTooSlow             408  timeout_error, reader_too_slow: more is kept for the client than may be
    ├── BodyTooLarge              413  request_too_large
    ├── UnsupportedMediaType      415  unsupported_media_type
    ├── Unprocessable             422  invalid_type: JSON of the wrong shape
    ├── RateLimited               429  rate_limit_error, server_overloaded and others; Retry-After
    ├── UnknownFunctionCalled     500  server_error, unknown_function: the model called what was not on offer
    ├── EngineFailure             500  server_error, engine_failure
    └── EngineUnavailable         503  server_error, engine_unavailable; Retry-After

Source of the envelope: OpenAI API reference, "Error codes".
"""

from __future__ import annotations

from typing import Any, ClassVar


class ApiError(Exception):
    """An error with a place in OpenAI's envelope. `status` is an HTTP status code."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None
    retry_after: float | None = None  # seconds after which it may be worth another try

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code

    def envelope(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(ApiError):
    status = 400
    type = "invalid_request_error"
    default_code = "invalid_value"


class ContextLengthExceeded(InvalidRequest):
    default_code = "context_length_exceeded"


class AuthenticationFailed(ApiError):
    status = 401
    type = "authentication_error"
    default_code = "invalid_api_key"


class PermissionDenied(ApiError):
    status = 403
    type = "permission_error"
    default_code = "admin_key_required"


class NotFound(ApiError):
    status = 404
    type = "invalid_request_error"
    default_code = "not_found"


class ModelNotFound(NotFound):
    default_code = "model_not_found"


class MethodNotAllowed(ApiError):
    status = 405
    type = "invalid_request_error"
    default_code = "method_not_allowed"


class DeadlineExceeded(ApiError):
    status = 408
    type = "timeout_error"
    default_code = "deadline_exceeded"


class ReaderTooSlow(ApiError):
    status = 408
    type = "timeout_error"
    default_code = "reader_too_slow"


class BodyTooLarge(ApiError):
    status = 413
    type = "invalid_request_error"
    default_code = "request_too_large"


class UnsupportedMediaType(ApiError):
    status = 415
    type = "invalid_request_error"
    default_code = "unsupported_media_type"


class Unprocessable(ApiError):
    status = 422
    type = "invalid_request_error"
    default_code = "invalid_type"


class RateLimited(ApiError):
    """Too much at once, of one key or of all; `code` says which limit it was."""

    status = 429
    type = "rate_limit_error"
    default_code = "server_overloaded"

    def __init__(
        self, message: str, retry_after: float = 1.0, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.retry_after = retry_after


class UnknownFunctionCalled(ApiError):
    default_code = "unknown_function"


class EngineFailure(ApiError):
    default_code = "engine_failure"


class EngineUnavailable(ApiError):
    status = 503
    default_code = "engine_unavailable"
    retry_after = 5.0
