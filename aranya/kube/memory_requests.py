"""What a request to the API server in memory means, by the rules of the real one, and how it is refused.

Parsing, validation, selectors and patches; nothing here knows what is stored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import orjson
from twisted.web.http_headers import Headers

from aranya.interfaces import Object
from aranya.kube.objects import RESOURCES

_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)")


class Refusal(Exception):
    """An answer that is a ``Status``; a hook may raise it to refuse a request."""

    def __init__(
        self, code: int, reason: str, message: str, details: Object | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked; hooks and tests look at these."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any
    group: str
    version: str
    plural: str
    namespace: str
    name: str
    sub: str

    @property
    def kind(self) -> tuple[str, str]:
        """Group and plural, under which objects are kept."""
        return self.group, self.plural


def parse(method: bytes, uri: bytes, headers: Headers, body: bytes) -> Request:
    """What was sent, taken apart; raises ``Refusal``."""
    parts = urlsplit(uri.decode("ascii"))
    words = [unquote(word) for word in parts.path.strip("/").split("/")]
    try:
        if words[0] == "api":
            group, version, rest = "", words[1], words[2:]
        elif words[0] == "apis":
            group, version, rest = words[1], words[2], words[3:]
        elif words == ["version"]:
            group, version, rest = "", "", words
        else:
            raise IndexError
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
            namespace, rest = rest[1], rest[2:]
        plural, name, sub = (*rest, "", "")[:3]
        decoded = orjson.loads(body) if body else None
    except IndexError:
        raise Refusal(404, "NotFound", "the server could not find the requested resource") from None
    except ValueError:
        raise Refusal(400, "BadRequest", "the body is not JSON") from None
    return Request(
        method.decode("ascii"),
        parts.path,
        dict(parse_qsl(parts.query)),
        {
            key.decode("latin-1").lower(): values[0].decode("latin-1")
            for key, values in headers.getAllRawHeaders()
        },
        decoded,
        group,
        version,
        plural,
        namespace,
        name,
        sub,
    )


_KINDS: Mapping[tuple[str, str], str] = {(one.group, one.plural): one.kind for one in RESOURCES}


def kind_of(request: Request) -> str:
    """The kind of the objects that it is about."""
    return _KINDS.get(request.kind) or request.plural.removesuffix("s").capitalize()


def success() -> Object:
    """The answer where there is no object to give."""
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}


def status_of(refusal: Refusal) -> Object:
    """The body of a refusal."""
    status: Object = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": refusal.message,
        "reason": refusal.reason,
        "code": refusal.code,
    }
    if refusal.details is not None:
        status["details"] = refusal.details
    return status


def not_found(request: Request) -> Refusal:
    """What it is about is not there."""
    details = {"name": request.name, "group": request.group, "kind": request.plural}
    resource = f"{request.plural}.{request.group}" if request.group else request.plural
    return Refusal(404, "NotFound", f'{resource} "{request.name}" not found', details)


# ---- rules ------------------------------------------------------------------


def check(request: Request, body: Object) -> None:
    """The few rules of validation that this project meets."""
    if request.plural == "leases":
        for name in ("renewTime", "acquireTime"):
            value = body.get("spec", {}).get(name)
            if value is not None and not _MICRO_TIME.fullmatch(value):
                raise Refusal(
                    400, "BadRequest", f"Lease in version v1 cannot be handled: spec.{name}: {value}"
                )
    for label in (body["metadata"].get("labels") or {}).values():
        if not isinstance(label, str) or len(label) > 63:
            raise Refusal(422, "Invalid", f"metadata.labels: invalid value: {label!r}")


def label_tests(selector: str) -> list[Callable[[Mapping[str, str]], bool]]:
    """What an object's labels must pass to be selected."""
    return [_label_test(term.strip()) for term in selector.split(",") if term.strip()]


def _label_test(term: str) -> Callable[[Mapping[str, str]], bool]:
    if "!=" in term:
        name, value = term.split("!=", 1)
        return lambda labels: labels.get(name) != value
    if "=" in term:
        name, value = re.split("==?", term, maxsplit=1)
        return lambda labels: labels.get(name) == value
    if term.startswith("!"):
        return lambda labels: term[1:] not in labels
    return lambda labels: term in labels


#: The fields that the real server lets select by, of the kinds used here.
_FIELDS: Mapping[str, frozenset[str]] = {
    "pods": frozenset({"spec.nodeName", "status.phase"}),
    "events": frozenset(
        {"involvedObject.name", "involvedObject.uid", "involvedObject.kind", "reason", "type"}
    ),
    "certificatesigningrequests": frozenset({"spec.signerName"}),
    "secrets": frozenset({"type"}),
}


def field_tests(selector: str, request: Request) -> list[Callable[[Object], bool]]:
    """What an object must pass to be selected; raises ``Refusal`` for a field that cannot be asked for."""
    tests = []
    for term in filter(None, selector.split(",")):
        negated = "!=" in term
        name, value = re.split("!=|==?", term, maxsplit=1)
        if name not in {"metadata.name", "metadata.namespace"} | _FIELDS.get(request.plural, frozenset()):
            raise Refusal(400, "BadRequest", f"field label not supported: {name}")
        tests.append(_field_test(name, value, negated))
    return tests


def _field_test(path: str, value: str, negated: bool) -> Callable[[Object], bool]:
    def test(found: Object) -> bool:
        place: Any = found
        for word in path.split("."):
            place = place.get(word, "") if isinstance(place, dict) else ""
        return bool(place == value) is not negated

    return test


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge_patch(result.get(name), value)
    return result


def json_patch(target: Any, operations: list[Object]) -> Any:
    """RFC 6902: add, remove, replace, test."""
    for operation in operations:
        words = [word.replace("~1", "/").replace("~0", "~") for word in operation["path"].split("/")[1:]]
        try:
            place = target
            for word in words[:-1]:
                place = place[int(word)] if isinstance(place, list) else place[word]
            _apply(place, words[-1], operation)
        except (KeyError, IndexError, ValueError, TypeError):
            raise Refusal(
                422, "Invalid", f"the server rejected our request: {operation['op']} {operation['path']}"
            ) from None
    return target


def _apply(place: Any, word: str, operation: Object) -> None:
    action, value = operation["op"], operation.get("value")
    if isinstance(place, list):
        if action == "add":
            place.insert(len(place) if word == "-" else int(word), value)
            return
        index: Any = int(word)
    else:
        index = word
        if action == "add":
            place[index] = value
            return
    if action == "replace":
        place[index]
        place[index] = value
    elif action == "remove":
        del place[index]
    elif action == "test":
        if place[index] != value:
            raise ValueError
    else:
        raise ValueError
