"""The API server as the plugin needs it: few calls, each of which fails with one line.

Objects are plain JSON: the client's models refuse what a newer or older server
says otherwise than they were generated for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import urllib3
from kubernetes import client, config

from aranya.names import GROUP, PLURAL, VERSION

Object = dict[str, Any]

#: Seconds for one call: connect, read.
_TIMEOUT = (10, 20)


class PluginError(Exception):
    """The command failed; the text is one line that says why and what to do."""


class Missing(PluginError):
    """What was asked for is not there."""


class Denied(PluginError):
    """The caller's RBAC says no."""


class Changed(PluginError):
    """The object is not as the command thought it was; try again."""


class Cluster:
    """One context of a kubeconfig, and the namespace that the command is about."""

    def __init__(self, kubeconfig: str | None, context: str | None, namespace: str | None) -> None:
        self._client = _connect(kubeconfig, context)
        self.namespace = namespace or _context_namespace(kubeconfig, context) or "default"
        self._custom = client.CustomObjectsApi(self._client)
        self._core = client.CoreV1Api(self._client)
        self._coordination = client.CoordinationV1Api(self._client)

    def version(self) -> str:
        """The API server's version."""
        told = _object("ask for the version", client.VersionApi(self._client).get_code)
        return str(told.get("gitVersion"))

    def edge_devices(self) -> list[Object]:
        """All EdgeDevices of the namespace."""
        listed = _object(
            "list EdgeDevices",
            self._custom.list_namespaced_custom_object,
            GROUP,
            VERSION,
            self.namespace,
            PLURAL,
        )
        return list(listed.get("items") or [])

    def edge_device(self, name: str) -> Object:
        """One EdgeDevice."""
        return _object(
            f"read EdgeDevice {name} in namespace {self.namespace}",
            self._custom.get_namespaced_custom_object,
            GROUP,
            VERSION,
            self.namespace,
            PLURAL,
            name,
        )

    def patch_edge_device(self, name: str, steps: Sequence[Object]) -> None:
        """Apply a JSON patch to an EdgeDevice."""
        _call(
            f"change EdgeDevice {name} in namespace {self.namespace}",
            self._custom.patch_namespaced_custom_object,
            GROUP,
            VERSION,
            self.namespace,
            PLURAL,
            name,
            list(steps),
            # Left to itself some releases of the client send a list as a merge patch.
            _content_type="application/json-patch+json",
        )

    def secret(self, name: str) -> Object:
        """One Secret of the namespace."""
        return _object(
            f"read Secret {name} in namespace {self.namespace}",
            self._core.read_namespaced_secret,
            name,
            self.namespace,
        )

    def leases(self, name: str, namespace: str | None) -> list[Object]:
        """The Leases of that name, in one namespace or in all."""
        selector = f"metadata.name={name}"
        if namespace is None:
            found = _object(
                "list Leases", self._coordination.list_lease_for_all_namespaces, field_selector=selector
            )
        else:
            found = _object(
                "list Leases",
                self._coordination.list_namespaced_lease,
                namespace,
                field_selector=selector,
            )
        return list(found.get("items") or [])

    def node(self, name: str) -> Object:
        """One Node."""
        return _object(f"read Node {name}", self._core.read_node, name)

    def nodes(self) -> list[Object]:
        """All Nodes."""
        return list(_object("list Nodes", self._core.list_node).get("items") or [])

    def delete_node(self, name: str, uid: str) -> None:
        """Delete a Node, if it still is this one."""
        body = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid=uid))
        _call(f"delete Node {name}", self._core.delete_node, name, body=body)

    def node_health(self, name: str) -> str:
        """What the kubelet endpoint of a Node answers to ``/healthz``, asked through the API server."""
        return _call(
            f"reach the kubelet endpoint of {name}",
            self._core.connect_get_node_proxy_with_path,
            name,
            "healthz",
        ).strip()

    def pod(self, name: str) -> Object:
        """One Pod of the namespace."""
        return _object(
            f"read Pod {name} in namespace {self.namespace}",
            self._core.read_namespaced_pod,
            name,
            self.namespace,
        )

    def delete_pod(self, name: str, uid: str) -> None:
        """Delete a Pod at once, if it still is this one."""
        body = client.V1DeleteOptions(grace_period_seconds=0, preconditions=client.V1Preconditions(uid=uid))
        _call(f"delete Pod {name}", self._core.delete_namespaced_pod, name, self.namespace, body=body)


def _connect(kubeconfig: str | None, context: str | None) -> Any:
    try:
        return config.new_client_from_config(config_file=kubeconfig, context=context)
    except config.ConfigException as error:
        if kubeconfig is None and context is None:
            settings = client.Configuration()
            try:
                config.load_incluster_config(client_configuration=settings)
                return client.ApiClient(settings)
            except config.ConfigException:
                pass
        raise PluginError(f"no usable kubeconfig: {_line(str(error))}") from None
    except Exception as error:
        # YAML, credential plugins, files, keys: all of them are the kubeconfig's fault, none a bug of ours.
        raise PluginError(f"no usable kubeconfig: {_line(str(error))}") from None


def _context_namespace(kubeconfig: str | None, context: str | None) -> str | None:
    try:
        contexts, active = config.list_kube_config_contexts(config_file=kubeconfig)
    except (config.ConfigException, OSError, ValueError):
        return None
    chosen = next((one for one in contexts if one["name"] == context), None) if context else active
    return chosen["context"].get("namespace") if chosen else None


def _object(purpose: str, operation: Callable[..., Any], *arguments: Any, **options: Any) -> Object:
    try:
        found = json.loads(_call(purpose, operation, *arguments, **options))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise PluginError(f"cannot {purpose}: the API server's answer is not an object")
    return found


def _call(purpose: str, operation: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    try:
        answer = operation(*arguments, **options, _preload_content=False, _request_timeout=_TIMEOUT)
        content: bytes = answer.data
        return content.decode("utf-8", "replace")
    except client.ApiException as error:
        told = _told(error)
        if error.status == 404:
            raise Missing(f"cannot {purpose}: {told}") from None
        if error.status in (401, 403):
            raise Denied(f"cannot {purpose}: {told}") from None
        if error.status in (409, 422):
            raise Changed(f"cannot {purpose}: {told}") from None
        raise PluginError(f"cannot {purpose}: {told}") from None
    except urllib3.exceptions.HTTPError as error:
        reason = getattr(error, "reason", None) or error
        raise PluginError(
            f"cannot {purpose}: the API server is not reachable: {_line(str(reason))}"
        ) from None


def _told(error: Any) -> str:
    body = error.body or b""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body)
    try:
        message = json.loads(text).get("message")
    except (ValueError, AttributeError):
        message = text
    return _line(str(message or error.reason or f"HTTP {error.status}"))


def _line(text: str) -> str:
    return " ".join(text.split())[:400]


def age(moment: object, now: datetime) -> float:
    """Seconds since a time as the API server writes it; very many for what is not one."""
    try:
        return (now - datetime.fromisoformat(str(moment))).total_seconds()
    except (ValueError, TypeError):
        return float("inf")
