"""The import law: who may import whom, read from the sources themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("aranya", "arhat", "tether")

#: (who, what it must not import, why). A name stands for itself and all beneath it.
LAW: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("tether", ("aranya", "arhat"), "what both share knows neither"),
    ("aranya", ("arhat",), "the daemons never import each other"),
    ("arhat", ("aranya",), "the daemons never import each other"),
    ("tether.wire", ("twisted", "autobahn", "zope"), "the core is without I/O"),
    ("tether.verbs", ("twisted", "autobahn", "zope", "tether.wire"), "values only"),
    ("tether.errors", ("twisted", "tether.wire", "tether.link"), "the bottom"),
    ("arhat", ("twisted.web", "kubernetes", "prometheus_client", "orjson"), "a small agent"),
    ("tether", ("twisted.web", "kubernetes"), "a small agent"),
    ("aranya.streaming.spdy.connection", ("twisted",), "the core is without I/O"),
    ("aranya.streaming.spdy.frames", ("twisted",), "the core is without I/O"),
    ("aranya.streaming.spdy.headers", ("twisted",), "the core is without I/O"),
    ("aranya.streaming.websocket.channels", ("twisted",), "the core is without I/O"),
    ("aranya.streaming.websocket.frames", ("twisted",), "the core is without I/O"),
    ("aranya.streaming.negotiate", ("twisted",), "a decision, not an action"),
    ("aranya.kube.watch", ("twisted",), "the core is without I/O"),
    ("aranya.controller.devices.plan", ("twisted", "aranya.kube.client"), "the planner is pure"),
    (
        "aranya.kube",
        (
            "tether.link",
            "aranya.device",
            "aranya.kubelet",
            "aranya.session",
            "aranya.streaming",
            "aranya.controller",
            "aranya.certs",
        ),
        "speaks to the API server and knows no device",
    ),
    (
        "aranya.streaming",
        ("aranya.kube", "aranya.device", "aranya.session", "aranya.kubelet", "aranya.controller"),
        "languages, not meanings",
    ),
    (
        "aranya.session",
        ("aranya.kube", "aranya.device", "aranya.streaming", "aranya.kubelet", "aranya.controller"),
        "joins two interfaces",
    ),
    (
        "aranya.device",
        ("aranya.kubelet", "aranya.session", "aranya.streaming", "aranya.controller"),
        "the back door does not know the front door",
    ),
    (
        "aranya.controller",
        ("aranya.kubelet", "aranya.streaming", "aranya.session", "tether.link"),
        "steps call interfaces",
    ),
    ("aranya.kubelet", ("aranya.controller", "aranya.device"), "receives Devices"),
    ("aranya.plugin", ("twisted", "aranya.kube", "aranya.controller"), "a tool, not a daemon"),
)

#: The only modules that may import the global reactor, autobahn, or the generated schema.
ONLY: tuple[tuple[str, frozenset[str]], ...] = (
    ("twisted.internet.reactor", frozenset({"aranya.tap", "arhat.tap"})),
    (
        "autobahn",
        frozenset({"tether.link.websocket", "aranya.streaming.websocket.frames"}),
    ),
    (
        "tether.schema",
        frozenset({"tether.wire.frames", "tether.verbs.codec", "tether.join"}),
    ),
)


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module of the product with its tree; the generated ones are left out."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.name.endswith("_pb2.py"):
                continue
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield name, ast.parse(path.read_text("utf-8"), str(path))


def imports(tree: ast.Module) -> Iterator[str]:
    """What a module imports, in full: ``from a import b`` gives ``a`` and ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield node.module
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def within(name: str, package: str) -> bool:
    """Whether a module is the package or beneath it."""
    return name == package or name.startswith(package + ".")


class LayersTests(SynchronousTestCase):
    """Imports go down only."""

    def test_law(self) -> None:
        """No module imports what its layer must not know."""
        broken = [
            f"{module} imports {imported}: {why}"
            for module, tree in modules()
            for imported in imports(tree)
            for who, what, why in LAW
            if within(module, who) and any(within(imported, one) for one in what)
        ]
        self.assertEqual(broken, [])

    def test_single_doors(self) -> None:
        """The reactor, autobahn and the schema each come in through their own modules."""
        broken = [
            f"{module} imports {imported}"
            for module, tree in modules()
            for imported in imports(tree)
            for what, who in ONLY
            if within(imported, what) and module not in who and not within(module, what)
        ]
        self.assertEqual(broken, [])

    def test_the_law_names_what_exists(self) -> None:
        """Every subject of the law is a module, so that a renamed one does not escape it."""
        names = {name for name, _ in modules()}
        subjects = {who for who, _, _ in LAW} | {door for _, doors in ONLY for door in doors}
        self.assertEqual(sorted(subjects - names), [])

    def test_packages_say_what_they_are(self) -> None:
        """An ``__init__`` holds a docstring and nothing else."""
        for name, tree in modules():
            path = ROOT.joinpath(*name.split("."))
            if path.is_dir():
                self.assertIsNotNone(ast.get_docstring(tree), name)
                self.assertEqual(len(tree.body), 1, name)
