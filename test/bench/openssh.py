"""
An OpenSSH server for this run alone: on loopback, on a free port, with keys of its own.

If the machine has no ``sshd``, Debian's package is fetched and unpacked into the project's cache, as the
control plane's etcd is; nothing is installed and no service starts. As root, sshd insists on a user and a
folder that the package would make: it gets them in a mount namespace of its own, and the machine keeps its
files. Without a server the rows of ssh stay empty.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from test.bench.child import DIES_WITH_US
from test.cluster.build import cache_folder
from test.cluster.daemons import TooLate, free_port, wait_until

#: sshd and what it needs that a machine without it may lack.
_PACKAGES = ("openssh-server", "libwrap0", "libnsl2", "libtirpc3")
_FETCH_LIMIT = 120.0


class NoOpenSSH(Exception):
    """There is none to compare with; one line of why."""


class OpenSSH:
    """A running server and how to reach it."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self.port = port

    @property
    def environment(self) -> Mapping[str, str]:
        """No agent, no configuration of whoever runs this."""
        return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self._folder)}

    def by(self, port: int) -> OpenSSH:
        """The same server, reached by another port that leads there."""
        return OpenSSH(self._folder, port)

    def client(self, *flags: str, words: list[str] | None = None, stdin: bool = False) -> list[str]:
        """The words of one ssh client, as a stranger to all configuration."""
        options = {
            "IdentityFile": self._folder / "user",
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": self._folder / "known",
            "LogLevel": "ERROR",
            "ConnectTimeout": 10,
        }
        given = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        user = pwd.getpwuid(os.getuid()).pw_name
        quiet = [] if stdin else ["-n"]
        where = ["-p", str(self.port), f"{user}@127.0.0.1"]
        return ["ssh", "-F", "/dev/null", *given, *quiet, *flags, *where, *(words or [])]


@contextlib.contextmanager
def openssh(folder: Path) -> Iterator[OpenSSH]:
    """Run a server, its files in ``folder``; raises ``NoOpenSSH``."""
    if shutil.which("ssh") is None:
        raise NoOpenSSH("this machine has no ssh client")
    program, libraries = _program()
    folder.mkdir()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    port = free_port()
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "user.pub",
        "UsePAM": "no",
        "StrictModes": "no",
        "PidFile": "none",
        "PasswordAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "PrintMotd": "no",
        "MaxStartups": 200,
        "MaxSessions": 200,
    }
    (folder / "config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    # -r: started anew for each connection it would need its libraries told anew.
    words = [str(program), "-r", "-D", "-e", "-f", str(folder / "config")]
    if os.geteuid() == 0:
        words = _in_own_namespace(folder, words)
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LD_LIBRARY_PATH": libraries}
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [*DIES_WITH_US, *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_until("sshd listens", lambda: _answers(port, process), 15)
        yield OpenSSH(folder, port)
    except TooLate as problem:
        raise NoOpenSSH(f"sshd does not answer: {(folder / 'log').read_text()[-300:]}") from problem
    finally:
        process.kill()
        process.wait()


def _answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        raise TooLate("sshd ended")
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as wire:
            return wire.recv(4) == b"SSH-"
    except OSError:
        return False


def _in_own_namespace(folder: Path, words: list[str]) -> list[str]:
    """Give it the folder and the user that its package's installation would make, and nobody else."""
    accounts = Path("/etc/passwd").read_text()
    if "\nsshd:" not in accounts:
        accounts = accounts.rstrip("\n") + "\nsshd:x:65533:65534::/nonexistent:/usr/sbin/nologin\n"
    (folder / "passwd").write_text(accounts)
    (folder / "passwd").chmod(0o644)
    script = (
        "mount -t tmpfs -o size=1m,mode=755 tmpfs /run && mkdir -m 755 /run/sshd && "
        'mount --bind "$0" /etc/passwd && exec "$@"'
    )
    return ["unshare", "--mount", "sh", "-c", script, str(folder / "passwd"), *words]


def _program() -> tuple[Path, str]:
    """The server's program, and the folders of its libraries (empty: the machine's own)."""
    installed = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin")
    if installed:
        return Path(installed), ""
    folder = cache_folder().with_name("openssh")
    if not (folder / "usr" / "sbin" / "sshd").exists():
        _fetch(folder)
    return folder / "usr" / "sbin" / "sshd", ":".join(str(path) for path in _library_folders(folder))


def _library_folders(folder: Path) -> list[Path]:
    return sorted({path.parent for path in folder.glob("**/*.so.*")})


def _fetch(folder: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise NoOpenSSH("this machine has no sshd, and is no Debian to fetch one from")
    making = folder.with_name(f".{folder.name}.making-{os.getpid()}")
    debs = making / "debs"
    debs.mkdir(parents=True)
    try:
        words = ["apt-get", "-q", "-o", "APT::Sandbox::User=", "download", *_PACKAGES]
        fetched = subprocess.run(words, cwd=debs, capture_output=True, timeout=_FETCH_LIMIT, check=False)
        if fetched.returncode:
            told = fetched.stderr.decode(errors="replace").strip().splitlines() or ["apt-get failed"]
            raise NoOpenSSH(f"no sshd here and none to fetch: {told[-1]}")
        for deb in debs.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", deb, making / "root"], check=True, timeout=_FETCH_LIMIT)
        os.rename(making / "root", folder)
    except (OSError, subprocess.SubprocessError) as problem:
        raise NoOpenSSH(f"no sshd here and none to fetch: {problem}") from None
    finally:
        shutil.rmtree(making, ignore_errors=True)
