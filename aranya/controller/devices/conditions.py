"""Conditions of Nodes, Pods and EdgeDevices: what is wished laid over what is there.

Conditions that are not ours stay as they are, and the time of the last
transition moves only with the status, so equal knowledge gives equal bytes and
nothing is written twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition as it should read."""

    type: str
    status: bool
    reason: str
    message: str = ""


def timestamp(now: float) -> str:
    """Seconds since the epoch as the API writes times."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: object) -> float | None:
    """What the API wrote as a time, in seconds since the epoch; ``None`` for anything else."""
    if not isinstance(text, str) or not text:
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def holds(conditions: object, kind: str) -> bool:
    """Whether the condition of this type is there and ``True``."""
    return _find(conditions, kind).get("status") == "True"


def says(there: Any, wished: Any) -> bool:
    """Whether ``there`` says what is wished; the API server leaves out empty strings."""
    if isinstance(wished, dict):
        there = there if isinstance(there, dict) else {}
        return all(says(there.get(key), value) for key, value in wished.items())
    if isinstance(wished, list):
        if not isinstance(there, list) or len(there) != len(wished):
            return not wished and not there
        return all(says(old, new) for old, new in zip(there, wished, strict=True))
    return bool(there == wished) or (there is None and wished == "")


def without_blanks(patch: Mapping[str, Any]) -> dict[str, Any]:
    """A merge patch that takes a field away instead of making it an empty string.

    Some servers take empty strings in custom resources for null.
    """

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: whole(entry) for key, entry in value.items() if entry != ""}
        return [whole(entry) for entry in value] if isinstance(value, list) else value

    def merged(value: Any) -> Any:
        if isinstance(value, dict):
            return without_blanks(value)
        return None if value == "" else whole(value)

    return {key: merged(value) for key, value in patch.items()}


def laid_over(
    there: object, wished: Iterable[Condition], now: float, heartbeat_every: float | None = None
) -> list[dict[str, Any]]:
    """The whole list of conditions as it should be.

    ``heartbeat_every`` gives each wished condition a ``lastHeartbeatTime``,
    renewed when something changed or when it is that old.
    """
    wished = tuple(wished)
    ours = {condition.type for condition in wished}
    others = [dict(entry) for entry in _entries(there) if entry.get("type") not in ours]
    return [_one(_find(there, each.type), each, now, heartbeat_every) for each in wished] + others


def _one(
    old: Mapping[str, Any], wished: Condition, now: float, heartbeat_every: float | None
) -> dict[str, Any]:
    status = "True" if wished.status else "False"
    stamp = timestamp(now)
    same = old.get("status") == status
    entry: dict[str, Any] = {
        "type": wished.type,
        "status": status,
        "reason": wished.reason,
        "message": wished.message,
        "lastTransitionTime": (old.get("lastTransitionTime") if same else None) or stamp,
    }
    if heartbeat_every is not None:
        beat = old.get("lastHeartbeatTime")
        age = now - (moment(beat) or 0.0)
        still = same and says(old, {"reason": wished.reason, "message": wished.message})
        entry["lastHeartbeatTime"] = beat if beat and still and 0 <= age < heartbeat_every else stamp
    return entry


def _entries(conditions: object) -> list[Mapping[str, Any]]:
    return [entry for entry in conditions if isinstance(entry, dict)] if isinstance(conditions, list) else []


def _find(conditions: object, kind: str) -> Mapping[str, Any]:
    return next((entry for entry in _entries(conditions) if entry.get("type") == kind), {})
