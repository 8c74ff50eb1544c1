"""An API server that only reviews tokens and accesses, by tables that a test fills."""

from __future__ import annotations

from aranya.interfaces import Object, Resource
from aranya.kubelet.auth import ACCESS_REVIEWS, TOKEN_REVIEWS


class ReviewingKubernetes:
    """An API server that reviews tokens and accesses by tables."""

    def __init__(self) -> None:
        self.tokens: dict[str, Object] = {}
        self.allowed: set[tuple[str, str, str]] = set()  # user, verb, subresource
        self.asked: list[Object] = []
        self.failure: Exception | None = None
        self.config_map: Object = {}

    async def create(self, resource: Resource, namespace: str | None, body: Object, **_: str) -> Object:
        self.asked.append(body)
        if self.failure is not None:
            raise self.failure
        if resource == TOKEN_REVIEWS:
            user = self.tokens.get(body["spec"]["token"])
            status: Object = (
                {"authenticated": False} if user is None else {"authenticated": True, "user": user}
            )
            return {**body, "status": status}
        assert resource == ACCESS_REVIEWS
        spec = body["spec"]
        wanted = spec["resourceAttributes"]
        allowed = (spec["user"], wanted["verb"], wanted["subresource"]) in self.allowed
        return {**body, "status": {"allowed": allowed}}

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        self.asked.append({"get": (resource.plural, namespace, name)})
        if self.failure is not None:
            raise self.failure
        return self.config_map
