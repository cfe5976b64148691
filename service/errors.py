"""Everything that can go wrong with a request: one class a case, carrying its status and its code.

    ServiceError
      UndecodableImage 400     MalformedBody 400        NoImages 400
      Unauthorized 401         NoDecoder 404            NoHead 404
      BodyTooLarge 413         TooManyPixels 413        TooManyImages 413
      UnsupportedType 415      NotAcceptable 406        InvalidParameter 422
      QueueFull 429            MemoryFull 429
      InferenceFailed 500      NotReady 503             Draining 503        EngineLost 503
      DeadlinePassed 504       ClientGone 499

They are raised where the fact is known and become `{"error": {"code", "message", "details"}}` in `service.api.app`.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ServiceError(Exception):
    """A refusal or a failure that the client is told about."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    retry_after_s: ClassVar[int | None] = None
    close: ClassVar[bool] = False
    """Whether the connection should be closed after the answer, since the server is leaving."""

    def __init__(self, message: str, **details: Any) -> None:
        """`message` is for people, `details` for programs."""
        super().__init__(message)
        self.message = message
        self.details = details

    @property
    def headers(self) -> dict[str, str]:
        """What goes out with the status."""
        headers = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(self.retry_after_s)
        if self.close:
            headers["connection"] = "close"
        return headers

    def body(self) -> dict[str, Any]:
        """The answer as it is written in JSON."""
        return {"error": {"code": self.code, "message": self.message, "details": self.details}}


class UndecodableImage(ServiceError):
    """The bytes are no image, or a damaged one."""

    status, code = 400, "undecodable_image"


class MalformedBody(ServiceError):
    """The body is not the multipart form or the JSON that its type promises."""

    status, code = 400, "malformed_body"


class NoImages(ServiceError):
    """There is nothing in the body to work on."""

    status, code = 400, "no_images"


class Unauthorized(ServiceError):
    """No key, or a wrong one."""

    status, code = 401, "unauthorized"

    @property
    def headers(self) -> dict[str, str]:
        """Names the scheme, as HTTP asks."""
        return {"www-authenticate": "Bearer", **super().headers}


class NoDecoder(ServiceError):
    """The model can embed but has nothing to reconstruct with."""

    status, code = 404, "no_decoder"


class NoHead(ServiceError):
    """The model can embed but has nothing to classify with."""

    status, code = 404, "no_head"


class NotAcceptable(ServiceError):
    """None of the media types that the client accepts can be answered."""

    status, code = 406, "not_acceptable"


class BodyTooLarge(ServiceError):
    """More bytes than one request may have."""

    status, code = 413, "body_too_large"


class TooManyPixels(ServiceError):
    """An image with more pixels than may be decoded."""

    status, code = 413, "too_many_pixels"


class TooManyImages(ServiceError):
    """More images than one request may have, or than the queue could ever hold."""

    status, code = 413, "too_many_images"


class UnsupportedType(ServiceError):
    """A body or an image of a type that is not served."""

    status, code = 415, "unsupported_media_type"


class InvalidParameter(ServiceError):
    """A parameter that is unknown or out of range."""

    status, code = 422, "invalid_parameter"


class QueueFull(ServiceError):
    """Too many images are waiting already."""

    status, code, retry_after_s = 429, "queue_full", 1


class MemoryFull(ServiceError):
    """Too many bytes are being received already."""

    status, code, retry_after_s = 429, "memory_full", 1


class InferenceFailed(ServiceError):
    """The engine failed on this image."""

    status, code = 500, "inference_failed"


class NotReady(ServiceError):
    """The engine is still being loaded."""

    status, code, retry_after_s = 503, "not_ready", 5


class Draining(ServiceError):
    """The server is about to leave and takes no new work."""

    status, code, retry_after_s, close = 503, "draining", 1, True


class EngineLost(ServiceError):
    """The engine is beyond help and the process is about to end."""

    status, code, retry_after_s, close = 503, "engine_lost", 5, True


class DeadlinePassed(ServiceError):
    """The answer would have come too late."""

    status, code = 504, "deadline_passed"


class ClientGone(ServiceError):
    """The client has closed the connection; nobody reads this answer, but the log and the metrics count it."""

    status, code = 499, "client_gone"
