"""What can go wrong with the API server, as types with fields.

Two families, for two different answers. ``ApiError`` is a ``Status``: the server
heard the question and said no. ``Unreachable`` is no answer at all. Neither ever
carries what was sent, so no secret comes to the log with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class KubeError(Exception):
    """Anything that went wrong with the API server; its text is one line for a person."""


class CredentialsError(KubeError):
    """The credentials for the API server are missing or not usable."""


class Unreachable(KubeError):
    """The API server gave no answer: refused, timed out, not trusted, cut off."""


class ApiError(KubeError):
    """The API server answered with a ``Status``."""

    def __init__(
        self,
        code: int,
        reason: str = "",
        message: str = "",
        details: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message or reason or f"the API server answered {code}")
        self.code = code
        self.reason = reason
        self.message = message
        self.details: Mapping[str, Any] = details or {}
        self.retry_after = retry_after


class BadRequest(ApiError):
    """400: the server could not make sense of the request."""


class Unauthorized(ApiError):
    """401: the credentials were not accepted."""


class Forbidden(ApiError):
    """403: RBAC or an admission plugin said no."""

    @property
    def is_terminating(self) -> bool:
        """Whether the namespace is being deleted: stop, do not try again."""
        causes = self.details.get("causes") or ()
        return any(cause.get("reason") == "NamespaceTerminating" for cause in causes) or (
            "because it is being terminated" in self.message
        )


class NotFound(ApiError):
    """404: no such object, or no such resource."""


class Conflict(ApiError):
    """409: the object changed meanwhile, or a precondition does not hold."""


class AlreadyExists(Conflict):
    """409: an object of that name is there already."""


class Gone(ApiError):
    """410: that resource version is too old; list again."""


class Invalid(ApiError):
    """422: validation refused the object."""


class TooManyRequests(ApiError):
    """429: come again after ``retry_after`` seconds."""


class ServerError(ApiError):
    """5xx: the server, its store or a webhook failed."""


_BY_CODE: Mapping[int, type[ApiError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: TooManyRequests,
}


def error_of(code: int, status: object, retry_after: float | None = None) -> ApiError:
    """The typed error for an answer: its HTTP code and, if it was one, its ``Status``."""
    fields: Mapping[str, Any] = status if isinstance(status, dict) else {}
    reason = str(fields.get("reason") or "")
    details = fields.get("details")
    if not isinstance(details, dict):
        details = {}
    if retry_after is None and isinstance(details.get("retryAfterSeconds"), int):
        retry_after = float(details["retryAfterSeconds"])
    kind = _BY_CODE.get(code, ServerError if code >= 500 else ApiError)
    if reason == "AlreadyExists":
        kind = AlreadyExists
    elif reason == "Expired":
        kind = Gone
    # Servers put the offending object's text in places; one line is what a person needs.
    message = " ".join(str(fields.get("message") or "").split())
    return kind(code, reason, message, details, retry_after)
