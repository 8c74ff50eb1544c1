"""What went wrong between here and the API server: taken apart, judged, and said in plain words."""

from __future__ import annotations

from OpenSSL import SSL
from service_identity.exceptions import VerificationError
from twisted.internet import error as network
from twisted.internet.defer import CancelledError
from twisted.web.client import ResponseNeverReceived

from aranya.kube.errors import KubeError


def _causes(error: BaseException) -> list[BaseException]:
    """An exception of the HTTP client, taken apart."""
    reasons = getattr(error, "reasons", None)
    if not reasons:
        return [error]
    return [cause for reason in reasons for cause in _causes(reason.value)]


def was_cancelled(error: BaseException) -> bool:
    """Whether somebody on this side gave the request up."""
    return any(
        isinstance(cause, CancelledError | network.ConnectingCancelledError) for cause in _causes(error)
    )


def died_unseen(error: BaseException) -> bool:
    """Whether the connection ended before the answer began, as a kept one does that the peer closed."""
    from twisted.web._newclient import RequestNotSent, RequestTransmissionFailed

    if isinstance(error, RequestNotSent):
        return True
    return isinstance(error, ResponseNeverReceived | RequestTransmissionFailed) and all(
        isinstance(cause, network.ConnectionClosed) for cause in _causes(error)
    )


def plainly(error: BaseException | None) -> str:
    """One line for a person, without what was sent."""
    for cause in () if error is None else _causes(error):
        if isinstance(cause, network.DNSLookupError):
            return "its name is not known (DNS)"
        if isinstance(cause, network.ConnectionRefusedError):
            return "connection refused"
        if isinstance(cause, network.TimeoutError | network.TCPTimedOutError):
            return "connecting took too long"
        if isinstance(cause, network.NoRouteError):
            return "no route to it"
        if isinstance(cause, VerificationError):
            return "its certificate is for another name"
        if isinstance(cause, SSL.Error):
            return _plain_tls(cause)
        if isinstance(cause, network.ConnectionClosed):
            return "it closed the connection before it answered"
        if isinstance(cause, KubeError):
            return str(cause)
        if isinstance(cause, network.ConnectError | OSError):
            return " ".join(str(cause).split()) or type(cause).__name__
    return type(error).__name__


def _plain_tls(error: SSL.Error) -> str:
    words = " ".join(str(part[-1]) for part in error.args[0]) if error.args and error.args[0] else ""
    if "certificate verify failed" in words:
        return (
            "its certificate is not trusted: not signed by the given CA, expired, or the clock here is wrong"
        )
    if "alert" in words:
        return f"it refused our TLS certificate ({words})"
    return f"TLS failed ({words or 'no reason given'})"
