"""What this project expects of an API server, asked of the real one and of the one in memory.

A question is an ``async def`` that uses ``self.kube`` and fresh names in ``self.namespace``. Who
answers, and how coroutines are driven, is for the class that mixes this in: it gives
``kube``, ``namespace`` and ``ask``.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

from aranya.interfaces import Change, Kubernetes, Object, Patch
from aranya.kube.errors import AlreadyExists, BadRequest, Conflict, Invalid, NotFound
from aranya.kube.objects import (
    CONFIGMAPS,
    EVENTS,
    LEASES,
    NODES,
    PODS,
    SUBJECTACCESSREVIEWS,
    TOKENREVIEWS,
    key_of,
    micro_time,
    new_object,
    uid_of,
    version_of,
)


def question(method: Callable[[Any], Coroutine[Any, Any, None]]) -> Callable[[Any], Any]:
    """A test whose body is a coroutine, driven by the class it ends up in."""

    @functools.wraps(method)
    def test(self: Any) -> Any:
        return self.ask(method(self))

    return test


class KubernetesQuestions:
    """The suite; its tests leave nothing behind that another would trip over."""

    kube: Kubernetes
    namespace: str

    def ask(self, answer: Coroutine[Any, Any, None]) -> Any:
        """Drive one question to its end."""
        raise NotImplementedError

    def fresh(self, word: str = "thing") -> str:
        """A name that nobody has yet."""
        return f"{word}-{uuid.uuid4().hex[:10]}"

    async def refused(self, kind: type[Exception], work: Coroutine[Any, Any, Any]) -> Any:
        """The error of that kind that the work ends with."""
        try:
            result = await work
        except kind as error:
            return error
        raise AssertionError(f"expected {kind.__name__}, got {result!r}")

    def config_map(self, name: str, **data: str) -> Object:
        return new_object(CONFIGMAPS, {"name": name}, data=data)

    async def make(self, name: str, **data: str) -> Object:
        return await self.kube.create(CONFIGMAPS, self.namespace, self.config_map(name, **data))

    # -- creating and reading

    @question
    async def test_create_and_get(self) -> None:
        """What was created is found, with a UID, a version and its kind."""
        name = self.fresh()
        made = await self.make(name, a="1")
        found = await self.kube.get(CONFIGMAPS, self.namespace, name)
        assert found == made
        assert uid_of(found) and version_of(found)
        assert (found["kind"], found["data"]) == ("ConfigMap", {"a": "1"})

    @question
    async def test_absent(self) -> None:
        """What is not there is ``NotFound``, named."""
        name = self.fresh()
        error = await self.refused(NotFound, self.kube.get(CONFIGMAPS, self.namespace, name))
        assert (error.code, error.details["name"]) == (404, name)

    @question
    async def test_create_twice(self) -> None:
        """A name is given once: ``AlreadyExists``, which is a ``Conflict`` too."""
        name = self.fresh()
        await self.make(name)
        error = await self.refused(AlreadyExists, self.make(name))
        assert isinstance(error, Conflict)

    @question
    async def test_generated_name(self) -> None:
        """``generateName`` is completed by the server."""
        body = new_object(CONFIGMAPS, {"generateName": "made-"})
        made = await self.kube.create(CONFIGMAPS, self.namespace, body)
        assert made["metadata"]["name"].startswith("made-")
        assert len(made["metadata"]["name"]) > len("made-")

    @question
    async def test_bad_name(self) -> None:
        """A name that is none is ``Invalid``."""
        await self.refused(Invalid, self.make("Not_A_Name"))

    # -- listing

    @question
    async def test_list_selects_by_label(self) -> None:
        """A label selector takes only what matches; items say what they are."""
        word = self.fresh()
        for name, labels in (("a", {"set": word}), ("b", {"set": "other"}), ("c", {})):
            body = new_object(CONFIGMAPS, {"name": f"{word}-{name}", "labels": labels})
            await self.kube.create(CONFIGMAPS, self.namespace, body)
        listing = await self.kube.list(CONFIGMAPS, self.namespace, label_selector=f"set={word}")
        assert [key_of(item).name for item in listing["items"]] == [f"{word}-a"]
        assert (listing["items"][0]["kind"], listing["items"][0]["apiVersion"]) == ("ConfigMap", "v1")
        assert version_of(listing)

    @question
    async def test_list_selects_by_name(self) -> None:
        """A field selector on the name takes one."""
        name = self.fresh()
        await self.make(name)
        listing = await self.kube.list(CONFIGMAPS, self.namespace, field_selector=f"metadata.name={name}")
        assert [key_of(item).name for item in listing["items"]] == [name]

    @question
    async def test_list_joins_pages(self) -> None:
        """A list read in pages of two is whole, and does not say ``continue``."""
        word = self.fresh()
        for number in range(5):
            body = new_object(CONFIGMAPS, {"name": f"{word}-{number}", "labels": {"set": word}})
            await self.kube.create(CONFIGMAPS, self.namespace, body)
        listing = await self.kube.list(CONFIGMAPS, self.namespace, label_selector=f"set={word}", limit=2)
        assert [key_of(item).name for item in listing["items"]] == [f"{word}-{n}" for n in range(5)]
        assert "continue" not in listing["metadata"]

    @question
    async def test_empty_list(self) -> None:
        """A list of nothing has no items, as a list."""
        listing = await self.kube.list(CONFIGMAPS, self.namespace, label_selector=f"set={self.fresh()}")
        assert listing["items"] == []

    # -- changing

    @question
    async def test_replace_needs_the_latest(self) -> None:
        """A replacement based on an old version is a ``Conflict``."""
        name = self.fresh()
        old = await self.make(name, a="1")
        new = await self.kube.replace(CONFIGMAPS, self.namespace, name, {**old, "data": {"a": "2"}})
        assert version_of(new) != version_of(old)
        stale = self.kube.replace(CONFIGMAPS, self.namespace, name, {**old, "data": {"a": "3"}})
        await self.refused(Conflict, stale)

    @question
    async def test_nothing_changed(self) -> None:
        """A write that changes nothing makes no new version."""
        name = self.fresh()
        made = await self.make(name, a="1")
        same = await self.kube.patch(CONFIGMAPS, self.namespace, name, {"data": {"a": "1"}})
        assert version_of(same) == version_of(made)

    @question
    async def test_merge_patch(self) -> None:
        """A merge patch sets, keeps, and removes with null."""
        name = self.fresh()
        await self.make(name, a="1", b="2", c="3")
        new = await self.kube.patch(CONFIGMAPS, self.namespace, name, {"data": {"a": "9", "b": None}})
        assert new["data"] == {"a": "9", "c": "3"}

    @question
    async def test_json_patch_tests_first(self) -> None:
        """A JSON patch applies as a whole, or is ``Invalid`` when its test fails."""
        name = self.fresh()
        await self.make(name, a="1")
        steps = [
            {"op": "test", "path": "/data/a", "value": "1"},
            {"op": "replace", "path": "/data/a", "value": "2"},
        ]
        new = await self.kube.patch(CONFIGMAPS, self.namespace, name, steps, kind=Patch.JSON)
        assert new["data"] == {"a": "2"}
        again = self.kube.patch(CONFIGMAPS, self.namespace, name, steps, kind=Patch.JSON)
        await self.refused(Invalid, again)

    @question
    async def test_patch_with_version(self) -> None:
        """A patch that names an old version is a ``Conflict``."""
        name = self.fresh()
        made = await self.make(name)
        patch = {"metadata": {"resourceVersion": version_of(made)}, "data": {"a": "1"}}
        await self.kube.patch(CONFIGMAPS, self.namespace, name, patch)
        patch["data"] = {"a": "2"}
        await self.refused(Conflict, self.kube.patch(CONFIGMAPS, self.namespace, name, patch))

    @question
    async def test_status_is_apart(self) -> None:
        """A Node may be created with status; later, only ``status`` changes it and it alone."""
        name = self.fresh("node")
        made = await self.kube.create(
            NODES, None, new_object(NODES, {"name": name}, status={"nodeInfo": {"kernelVersion": "6"}})
        )
        assert made["status"]["nodeInfo"]["kernelVersion"] == "6"
        both = {"spec": {"providerID": "aranya://x/y"}, "status": {"nodeInfo": {"kernelVersion": "7"}}}
        changed = await self.kube.patch(NODES, None, name, both)
        assert changed["status"]["nodeInfo"]["kernelVersion"] == "6"
        assert changed["spec"]["providerID"] == "aranya://x/y"
        both = {"spec": {"unschedulable": True}, "status": {"nodeInfo": {"kernelVersion": "8"}}}
        changed = await self.kube.patch(NODES, None, name, both, sub="status")
        assert changed["status"]["nodeInfo"]["kernelVersion"] == "8"
        assert "unschedulable" not in changed["spec"]
        await self.kube.delete(NODES, None, name)

    @question
    async def test_lease_times(self) -> None:
        """A Lease takes six digits of a second, and refuses none."""
        name = self.fresh("lease")
        moment = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
        good = new_object(LEASES, {"name": name}, spec={"renewTime": micro_time(moment)})
        made = await self.kube.create(LEASES, self.namespace, good)
        assert made["spec"]["renewTime"] == "2026-02-03T04:05:06.000000Z"
        bad = new_object(LEASES, {"name": self.fresh()}, spec={"renewTime": "2026-02-03T04:05:06Z"})
        await self.refused(BadRequest, self.kube.create(LEASES, self.namespace, bad))

    @question
    async def test_lease_is_not_overwritten_blindly(self) -> None:
        """A Lease is replaced only by who names its version."""
        name = self.fresh("lease")
        body = new_object(LEASES, {"name": name}, spec={"holderIdentity": "a"})
        await self.kube.create(LEASES, self.namespace, body)
        await self.refused(Invalid, self.kube.replace(LEASES, self.namespace, name, body))

    # -- deleting

    @question
    async def test_delete(self) -> None:
        """What is deleted is gone; deleting it again is ``NotFound``."""
        name = self.fresh()
        await self.make(name)
        await self.kube.delete(CONFIGMAPS, self.namespace, name)
        await self.refused(NotFound, self.kube.get(CONFIGMAPS, self.namespace, name))
        await self.refused(NotFound, self.kube.delete(CONFIGMAPS, self.namespace, name))

    @question
    async def test_delete_only_this_one(self) -> None:
        """A wrong UID or version keeps the object: ``Conflict``."""
        name = self.fresh()
        made = await self.make(name)
        strange = str(uuid.uuid4())
        await self.refused(Conflict, self.kube.delete(CONFIGMAPS, self.namespace, name, uid=strange))
        await self.kube.patch(CONFIGMAPS, self.namespace, name, {"data": {"a": "1"}})
        stale = self.kube.delete(CONFIGMAPS, self.namespace, name, resource_version=version_of(made))
        await self.refused(Conflict, stale)
        await self.kube.delete(CONFIGMAPS, self.namespace, name, uid=uid_of(made))

    @question
    async def test_finalizer_holds(self) -> None:
        """An object with a finaliser stays, marked, until the last one is taken away."""
        name = self.fresh()
        body = self.config_map(name)
        body["metadata"]["finalizers"] = ["aranya.arhat.dev/test"]
        await self.kube.create(CONFIGMAPS, self.namespace, body)
        await self.kube.delete(CONFIGMAPS, self.namespace, name)
        held = await self.kube.get(CONFIGMAPS, self.namespace, name)
        assert held["metadata"]["deletionTimestamp"]
        await self.kube.patch(CONFIGMAPS, self.namespace, name, {"metadata": {"finalizers": None}})
        await self.refused(NotFound, self.kube.get(CONFIGMAPS, self.namespace, name))

    def pod(self, name: str, node: str, grace: int) -> Object:
        spec = {
            "nodeName": node,
            "terminationGracePeriodSeconds": grace,
            "automountServiceAccountToken": False,
            "containers": [{"name": "host", "image": "virtualimage.arhat.dev/host"}],
            "tolerations": [{"operator": "Exists"}],
        }
        return new_object(PODS, {"name": name}, spec=spec)

    @question
    async def test_pod_waits_for_its_kubelet(self) -> None:
        """A pod that is bound to a node goes in two steps, unless its grace is zero."""
        slow, fast, node = self.fresh("pod"), self.fresh("pod"), self.fresh("node")
        await self.kube.create(PODS, self.namespace, self.pod(slow, node, 30))
        await self.kube.create(PODS, self.namespace, self.pod(fast, node, 0))
        await self.kube.delete(PODS, self.namespace, fast)
        await self.refused(NotFound, self.kube.get(PODS, self.namespace, fast))
        await self.kube.delete(PODS, self.namespace, slow)
        held = await self.kube.get(PODS, self.namespace, slow)
        assert held["metadata"]["deletionGracePeriodSeconds"] == 30
        bound = await self.kube.list(PODS, self.namespace, field_selector=f"spec.nodeName={node}")
        assert [key_of(item).name for item in bound["items"]] == [slow]
        await self.kube.delete(PODS, self.namespace, slow, grace_seconds=0)
        await self.refused(NotFound, self.kube.get(PODS, self.namespace, slow))

    # -- watching

    @question
    async def test_watch_tells_in_order(self) -> None:
        """From a list's version on, a watch tells what happens, in order, with selectors honoured."""
        word = self.fresh()
        selector = f"set={word}"
        listing = await self.kube.list(CONFIGMAPS, self.namespace, label_selector=selector)
        await self.make(self.fresh("noise"))
        body = new_object(CONFIGMAPS, {"name": word, "labels": {"set": word}})
        await self.kube.create(CONFIGMAPS, self.namespace, body)
        await self.kube.patch(CONFIGMAPS, self.namespace, word, {"data": {"a": "1"}})
        await self.kube.delete(CONFIGMAPS, self.namespace, word)
        told = await self.watched(listing, selector, 3)
        assert [change for change, _ in told] == [Change.ADDED, Change.MODIFIED, Change.DELETED]
        assert [key_of(found).name for _, found in told] == [word] * 3
        versions = [int(version_of(found)) for _, found in told]
        assert versions == sorted(set(versions))

    @question
    async def test_watch_is_resumed(self) -> None:
        """A watch goes on after the version of the last event that was heard."""
        word = self.fresh()
        selector = f"set={word}"
        listing = await self.kube.list(CONFIGMAPS, self.namespace, label_selector=selector)
        body = new_object(CONFIGMAPS, {"name": word, "labels": {"set": word}})
        await self.kube.create(CONFIGMAPS, self.namespace, body)
        [(_, first)] = await self.watched(listing, selector, 1)
        await self.kube.delete(CONFIGMAPS, self.namespace, word)
        [(change, _)] = await self.watched(first, selector, 1)
        assert change is Change.DELETED

    @question
    async def test_watch_tells_what_leaves_the_selection(self) -> None:
        """An object whose label changes away is told as deleted."""
        word = self.fresh()
        selector = f"set={word}"
        body = new_object(CONFIGMAPS, {"name": word, "labels": {"set": word}})
        made = await self.kube.create(CONFIGMAPS, self.namespace, body)
        await self.kube.patch(CONFIGMAPS, self.namespace, word, {"metadata": {"labels": {"set": "x"}}})
        [(change, found)] = await self.watched(made, selector, 1)
        assert (change, key_of(found).name) == (Change.DELETED, word)

    async def watched(self, since: Object, selector: str, count: int) -> list[tuple[Change, Object]]:
        """So many events after that version; bookmarks are left out."""
        stream = self.kube.watch(
            CONFIGMAPS, self.namespace, resource_version=version_of(since), label_selector=selector
        )
        told = []
        async for event in stream:
            if event[0] is not Change.BOOKMARK:
                told.append(event)
            if len(told) == count:
                break
        stream.close()
        return told

    # -- asking

    @question
    async def test_reviews(self) -> None:
        """A token nobody issued is not authenticated; nobody may do everything."""
        body = new_object(TOKENREVIEWS, {}, spec={"token": "nobody's"})
        answer = await self.kube.create(TOKENREVIEWS, None, body)
        assert not answer["status"].get("authenticated")
        spec = {
            "user": "nobody",
            "resourceAttributes": {"verb": "create", "resource": "nodes", "subresource": "proxy"},
        }
        answer = await self.kube.create(
            SUBJECTACCESSREVIEWS, None, new_object(SUBJECTACCESSREVIEWS, {}, spec=spec)
        )
        assert answer["status"]["allowed"] is False

    @question
    async def test_events_may_be_counted(self) -> None:
        """An Event is written, and its count raised by a patch."""
        name = self.fresh("event")
        body = new_object(
            EVENTS,
            {"name": name, "namespace": self.namespace},
            involvedObject={"kind": "ConfigMap", "namespace": self.namespace, "name": "x"},
            reason="Test",
            message="a test",
            type="Normal",
            count=1,
        )
        await self.kube.create(EVENTS, self.namespace, body)
        changed = await self.kube.patch(EVENTS, self.namespace, name, {"count": 2})
        assert changed["count"] == 2
