"""Names of what joining leaves in the API server; free of Twisted, so that the plugin shares it."""

from __future__ import annotations

from aranya.names import DeviceKey

#: On a join Secret: when its token expires, RFC 3339.
JOIN_EXPIRES = "aranya.arhat.dev/join-expires"

#: On every Secret that records what aranya knows of a device's key.
RECORD_LABEL = "aranya.arhat.dev/record"
RECORD_VALUE = "device"


def join_secret_name(device: str) -> str:
    """The Secret with the token, beside the EdgeDevice."""
    return f"{device}-join"


def record_name(key: DeviceKey) -> str:
    """The Secret in aranya's own namespace that records a device's keys and pending join."""
    return f"aranya-device.{key.namespace}.{key.name}"
