"""The errors of a request: one class per case, with its HTTP status and its code.

    ServiceError
      UndecodableImage 400     MalformedBody 400        NoImages 400        MalformedRequest 400
      NotServed 400            ImagesOnly 400           Unauthorized 401
      NoDecoder 404            NoHead 404               NoIndex 404
      ModelNotFound 404        NotFound 404             MethodNotAllowed 405
      NotAcceptable 406        RequestStalled 408
      UnsupportedType 415      InvalidParameter 422
      BodyTooLarge 413         TooManyPixels 413        TooManyImages 413
      UriTooLong 414           HeadersTooLarge 431
      QueueFull 429            MemoryFull 429           KeyBusy 429         KeyRateExceeded 429
      InferenceFailed 500      SearchFailed 500         UnsupportedTransferCoding 501
      NotReady 503             Draining 503             EngineLost 503      TooManyConnections 503
      OutOfMemory 503
      DeadlinePassed 504       ClientGone 499

Each is raised where its cause is known; `service.error_formats` turns it into the JSON of the client's protocol.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self


class ServiceError(Exception):
    """An error that the response reports to the client; an instance of this class itself is an unexpected error."""

    status: ClassVar[int] = 500
    """The HTTP status."""
    code: ClassVar[str] = "internal_error"
    """The name of the case, for programs."""
    retry_after_s: ClassVar[int | None] = None
    """The value of the Retry-After header in seconds; None where trying again does not help."""
    close: ClassVar[bool] = False
    """Whether to close the connection after the response: the server is about to end, or the client does not go on."""

    def __init__(self, message: str, **details: Any) -> None:
        """`message` is for people, `details` for programs."""
        super().__init__(message)
        self.message = message
        self.details = details

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the response."""
        headers = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(self.retry_after_s)
        if self.close:
            headers["connection"] = "close"
        return headers

    def body(self) -> dict[str, Any]:
        """The body of the response in the service's own format, for JSON."""
        return {"error": {"code": self.code, "message": self.message, "details": self.details}}


class UndecodableImage(ServiceError):
    """The bytes are no image, or the image is damaged."""

    status, code = 400, "undecodable_image"


class MalformedBody(ServiceError):
    """The body cannot be parsed as its content type says: as a multipart form or as JSON."""

    status, code = 400, "malformed_body"


class NoImages(ServiceError):
    """The body has no image."""

    status, code = 400, "no_images"


class ImagesOnly(ServiceError):
    """An input is text, sound, or something else that is not an image."""

    status, code = 400, "images_only"


class MalformedRequest(ServiceError):
    """What has arrived is no HTTP/1.1, or asks for a tunnel."""

    status, code, close = 400, "malformed_request", True


class NotServed(ServiceError):
    """The request asks for a part of its protocol that is not served."""

    status, code = 400, "not_served"


class Unauthorized(ServiceError):
    """The request has no key, or its key is not valid."""

    status, code = 401, "unauthorized"

    @property
    def headers(self) -> dict[str, str]:
        """Also names the authentication scheme, as HTTP requires for 401."""
        return {"www-authenticate": "Bearer", **super().headers}


class NoDecoder(ServiceError):
    """The model has no decoder, so it cannot reconstruct."""

    status, code = 404, "no_decoder"


class NoHead(ServiceError):
    """The model has no classification head, so it cannot classify."""

    status, code = 404, "no_head"

    @classmethod
    def of(cls, model: str) -> Self:
        """The error for `model`, which says how to get a head."""
        return cls(f"{model} has no classification head: mae finetune trains one")


class NoIndex(ServiceError):
    """The service has no index, so it cannot search."""

    status, code = 404, "no_index"


class ModelNotFound(ServiceError):
    """The request names a model that is not served."""

    status, code = 404, "model_not_found"


class NotFound(ServiceError):
    """There is no such route."""

    status, code = 404, "not_found"


class MethodNotAllowed(ServiceError):
    """The route does not have this method."""

    status, code = 405, "method_not_allowed"


class NotAcceptable(ServiceError):
    """The route offers none of the media types that the client accepts."""

    status, code = 406, "not_acceptable"


class RequestStalled(ServiceError):
    """The headers or the body of the request have stopped to arrive."""

    status, code, close = 408, "request_stalled", True


class BodyTooLarge(ServiceError):
    """The body has more bytes than MAX_BODY_MB allows."""

    status, code = 413, "body_too_large"


class TooManyPixels(ServiceError):
    """An image has more pixels than MAX_PIXELS allows, or a request's images would cost too much together."""

    status, code = 413, "too_many_pixels"


class TooManyImages(ServiceError):
    """The request has more images than MAX_IMAGES allows, or than the queue could ever hold."""

    status, code = 413, "too_many_images"


class UnsupportedType(ServiceError):
    """The body or an image is of a type that is not served, or the body is compressed."""

    status, code = 415, "unsupported_media_type"

    @property
    def headers(self) -> dict[str, str]:
        """Names the encoding that is served where the body's is not, as RFC 9110, section 15.5.16, asks for."""
        return {"accept-encoding": "identity", **super().headers} if "encoding" in self.details else super().headers


class InvalidParameter(ServiceError):
    """A parameter is unknown, out of range, or asks for something that the model lacks."""

    status, code = 422, "invalid_parameter"


class QueueFull(ServiceError):
    """The queue of images, or that of searches, has no room for the images of this request."""

    status, code, retry_after_s = 429, "queue_full", 1


class MemoryFull(ServiceError):
    """The bodies that are being received fill MAX_INFLIGHT_MB."""

    status, code, retry_after_s = 429, "memory_full", 1


class KeyBusy(ServiceError):
    """As many requests of this key as KEY_MAX_REQUESTS allows are in flight."""

    status, code, retry_after_s = 429, "key_busy", 1


class KeyRateExceeded(ServiceError):
    """The requests of this key have more images per second than KEY_IMAGES_PER_S allows."""

    status, code, retry_after_s = 429, "key_rate_exceeded", 1

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After names the time at which the images would pass."""
        return {**super().headers, "retry-after": str(self.details.get("retry_after_s", self.retry_after_s))}


class UriTooLong(ServiceError):
    """The target of the request has more bytes than a connection takes."""

    status, code, close = 414, "uri_too_long", True


class HeadersTooLarge(ServiceError):
    """The request line and the headers have more bytes than a connection takes."""

    status, code, close = 431, "headers_too_large", True


class UnsupportedTransferCoding(ServiceError):
    """The body is sent in a transfer coding other than `chunked`."""

    status, code, close = 501, "unsupported_transfer_coding", True


class InferenceFailed(ServiceError):
    """The engine failed on an image of this request."""

    status, code = 500, "inference_failed"


class SearchFailed(ServiceError):
    """The index cannot be read; the log has the reason."""

    status, code = 500, "search_failed"


class NotReady(ServiceError):
    """The engine is still being loaded."""

    status, code, retry_after_s = 503, "not_ready", 5


class Draining(ServiceError):
    """The server is shutting down and takes no new requests."""

    status, code, retry_after_s, close = 503, "draining", 1, True

    @classmethod
    def out_of_time(cls) -> Self:
        """For a request that was accepted before the drain, and is not finished at its end."""
        return cls("the server is shutting down, and the time to finish is over")


class TooManyConnections(ServiceError):
    """As many connections as MAX_CONNECTIONS allows are open; only probes and /metrics are answered."""

    status, code, retry_after_s, close = 503, "too_many_connections", 1, True


class OutOfMemory(ServiceError):
    """The operating system has given no memory for decoding an image; that is not the image's fault."""

    status, code, retry_after_s = 503, "out_of_memory", 5


class EngineLost(ServiceError):
    """The engine has failed for good, and the process is about to end."""

    status, code, retry_after_s, close = 503, "engine_lost", 5, True


class DeadlinePassed(ServiceError):
    """The response was not ready within REQUEST_TIMEOUT_S."""

    status, code = 504, "deadline_passed"


class ClientGone(ServiceError):
    """The client has closed the connection; nobody reads this response, but the log and the metrics count it."""

    status, code = 499, "client_gone"
