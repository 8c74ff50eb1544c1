"""
Finds the programs of a control plane: where they lie, and which version they are.

In this order: ``$KUBEBUILDER_ASSETS`` (envtest's convention), the project's cache, and, if asked, a
build into that cache. Tests ask with `for_tests`, which never builds: a suite that is started by hand
must not compile Kubernetes by surprise, and a CI without a control plane must not pass.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import unittest
from dataclasses import dataclass
from pathlib import Path

from test.cluster.build import PROGRAMS, BuildError, build, cache_folder, is_complete

_ASSETS = "KUBEBUILDER_ASSETS"
_NEEDED = ("etcd", "kube-apiserver")


class NoControlPlane(Exception):
    """There are no programs to run a control plane with; the text says what to do."""


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A Kubernetes version, as far as flags and behaviour depend on it."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


@dataclass(frozen=True, slots=True)
class Binaries:
    """The programs of one control plane; without controllers nobody signs CSRs or makes ServiceAccounts."""

    version: Version
    etcd: Path
    apiserver: Path
    controller_manager: Path | None
    scheduler: Path | None


@dataclass(frozen=True, slots=True)
class KubectlBinary:
    """One kubectl of the machine."""

    version: Version
    path: Path


def find() -> Binaries:
    """Find a control plane without building one; ``NoControlPlane`` if there is none."""
    assets = os.environ.get(_ASSETS)
    if assets:
        folder = Path(assets)
        missing = [name for name in _NEEDED if not os.access(folder / name, os.X_OK)]
        if missing:
            raise NoControlPlane(f"{_ASSETS}={assets} has no {' and no '.join(missing)}")
        return _in_folder(folder)
    folder = cache_folder()
    if not is_complete(folder):
        raise NoControlPlane(
            f"no Kubernetes control plane: run `python -m test.cluster.build` (into {folder}), "
            f"or set {_ASSETS} to a folder with {', '.join(PROGRAMS)}"
        )
    return _in_folder(folder)


def find_or_build() -> Binaries:
    """Find a control plane, or build it with progress on stdout; ``NoControlPlane`` if that fails."""
    try:
        return find()
    except NoControlPlane:
        if os.environ.get(_ASSETS):
            raise
    try:
        return _in_folder(build())
    except BuildError as problem:
        raise NoControlPlane(str(problem)) from None


def for_tests() -> Binaries:
    """Find a control plane for a test: without one the test is skipped, but in CI it fails."""
    try:
        return find()
    except NoControlPlane as problem:
        if os.environ.get("CI"):
            raise
        raise unittest.SkipTest(str(problem)) from None


def find_kubectls() -> tuple[KubectlBinary, ...]:
    """List the kubectl programs of assets, cache and machine, oldest first, one of each version."""
    candidates: list[Path] = []
    assets = os.environ.get(_ASSETS)
    if assets:
        candidates += sorted(Path(assets).glob("kubectl*"))
    candidates += sorted(cache_folder().glob("kubectl-*"))
    on_path = shutil.which("kubectl")
    if on_path:
        candidates.append(Path(on_path))
    found: dict[Version, Path] = {}
    for path in candidates:
        version = _ask_version([str(path), "version", "--client"])
        if version:
            found.setdefault(version, path)
    return tuple(KubectlBinary(version, found[version]) for version in sorted(found))


def _in_folder(folder: Path) -> Binaries:
    etcd, apiserver, controller_manager, scheduler = (folder / name for name in PROGRAMS)
    version = _ask_version([str(apiserver), "--version"])
    if version is None:
        raise NoControlPlane(f"{apiserver} does not tell its version: is it built for this machine?")
    return Binaries(
        version=version,
        etcd=etcd,
        apiserver=apiserver,
        controller_manager=controller_manager if os.access(controller_manager, os.X_OK) else None,
        scheduler=scheduler if os.access(scheduler, os.X_OK) else None,
    )


def _ask_version(words: list[str]) -> Version | None:
    try:
        asked = subprocess.run(words, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # kubectl says it in three ways over the years: "v1.36.0" is in all of them.
    matched = re.search(rb"v(\d+)\.(\d+)\.\d+", asked.stdout)
    return Version(int(matched[1]), int(matched[2])) if matched else None
