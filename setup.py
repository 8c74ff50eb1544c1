"""One distribution: the controller, the agent, and the tether between them."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
VERSION = re.search(r'VERSION = "(.+)"', (ROOT / "tether/version.py").read_text("utf-8")).group(1)

# What both daemons need: the reactor, the WebSocket, the identity of a TLS peer, the schema.
TETHER = [
    "attrs>=23.1",
    "autobahn>=23.6",
    "automat>=24.8",
    "cryptography>=42",
    "protobuf>=7.35",
    "pyopenssl>=24.3",
    "PyYAML>=6.0",
    "service_identity>=23.1",
    "twisted>=24.10",
    "zope.interface>=6",
]

setup(
    name="aranya",
    version=VERSION,
    description="Reach any edge device, anywhere, with nothing but kubectl",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=[
        "aranya",
        "aranya.certs",
        "aranya.controller",
        "aranya.controller.devices",
        "aranya.device",
        "aranya.kube",
        "aranya.kubelet",
        "aranya.plugin",
        "aranya.session",
        "aranya.streaming",
        "aranya.streaming.spdy",
        "aranya.streaming.websocket",
        "arhat",
        "arhat.builtin",
        "arhat.executor",
        "arhat.executor.logs",
        "tether",
        "tether.link",
        "tether.schema",
        "tether.verbs",
        "tether.wire",
        "twisted.plugins",
    ],
    # An editable install finds twisted/plugins only through a plain path entry.
    package_dir={"": "."},
    package_data={package: ["py.typed"] for package in ("aranya", "arhat", "tether")},
    install_requires=TETHER,
    extras_require={
        "controller": ["kubernetes>=28", "orjson>=3.9", "prometheus-client>=0.19"],
        "agent": [],
        "dev": [
            "grpcio-tools>=1.71",
            "hypothesis>=6.100",
            "mypy>=1.11",
            "mypy-protobuf>=3.6",
            "mypy-zope>=1.0.7",
            "ruff>=0.6",
            "towncrier>=23.11",
            "types-protobuf",
            "types-PyYAML",
        ],
    },
    entry_points={"console_scripts": ["kubectl-aranya = aranya.plugin.main:console"]},
)
