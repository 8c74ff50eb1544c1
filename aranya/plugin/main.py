"""The command line of ``kubectl aranya``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import TextIO

from aranya.plugin.cluster import Cluster, PluginError
from aranya.plugin.devices import join, set_banned
from aranya.plugin.doctor import doctor
from aranya.plugin.uninstall import uninstall


def console() -> None:
    """Entry point of the console script."""
    # Its warnings about retries would stand between the caller and our one line.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    sys.exit(run(sys.argv[1:], sys.stdout, sys.stderr))


def run(arguments: Sequence[str], out: TextIO, err: TextIO) -> int:
    """Do what the command line says; gives back the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return _do(options, out)
    except PluginError as error:
        print(f"error: {error}", file=err)
    except KeyboardInterrupt:
        print("interrupted", file=err)
    except BrokenPipeError:
        pass
    return 1


def _do(options: argparse.Namespace, out: TextIO) -> int:
    given = vars(options)
    cluster = Cluster(given.get("kubeconfig"), given.get("context"), given.get("namespace"))
    if options.verb == "join":
        join(cluster, options.name, print_token=options.print_token, out=out)
    elif options.verb in ("ban", "unban"):
        set_banned(cluster, options.name, options.verb == "ban", out=out)
    elif options.verb == "doctor":
        return 0 if doctor(cluster, options.name, options.system_namespace, out=out) else 1
    elif options.verb == "uninstall":
        uninstall(cluster, options.system_namespace, yes=options.yes, out=out, ask=_ask)
    return 0


def _ask(question: str) -> str:
    try:
        return input(question)
    except EOFError:
        return ""


def _parser() -> argparse.ArgumentParser:
    where = _where()
    parser = argparse.ArgumentParser(
        prog="kubectl aranya", description="Join, ban and examine edge devices.", parents=[where]
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, purpose: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=purpose, description=purpose, parents=[where])

    joining = verb("join", "make a join token and print the line to type on the device")
    joining.add_argument("name", metavar="NAME", help="the EdgeDevice")
    joining.add_argument("--print-token", action="store_true", help="print the token alone")
    for name, purpose in (
        ("ban", "shut a device out at once: its link, its token, its renewal"),
        ("unban", "let a banned device back in"),
    ):
        verb(name, purpose).add_argument("name", metavar="NAME", help="the EdgeDevice")
    examining = verb("doctor", "check the road from kubectl to the devices, one line per check")
    examining.add_argument("name", metavar="NAME", nargs="?", help="only this EdgeDevice")
    leaving = verb("uninstall", "remove the Nodes of this namespace's devices and release the EdgeDevices")
    leaving.add_argument("--yes", "-y", action="store_true", help="do not ask")
    for one in (examining, leaving):
        one.add_argument(
            "--system-namespace", metavar="NAMESPACE", help="where aranya itself runs (its --namespace)"
        )
    return parser


def _where() -> argparse.ArgumentParser:
    # Given to the main parser and to every verb, so that the options may stand before or
    # behind the verb; SUPPRESS, or the verb's defaults would undo what stood before it.
    where = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    where.add_argument("-n", "--namespace", help="the namespace of the EdgeDevices")
    where.add_argument("--context", help="the context of the kubeconfig")
    where.add_argument("--kubeconfig", help="the kubeconfig file")
    return where
