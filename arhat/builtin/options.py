"""The command lines of ``tar`` that are understood here: those of ``kubectl cp`` and near ones."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_LONG = {
    "--create": "c",
    "--extract": "x",
    "--get": "x",
    "--touch": "m",
    "--dereference": "h",
    "--preserve-permissions": "p",
    "--same-permissions": "p",
    "--file": "f",
    "--directory": "C",
    "--no-same-permissions": "no-same-permissions",
    "--no-same-owner": "no-same-owner",
    "--same-owner": "same-owner",
}
_WITH_VALUE = ("f", "C")


@dataclass(frozen=True, slots=True)
class Create:
    """Pack ``paths``, each a folder to start from and a path from there, to stdout."""

    paths: tuple[tuple[str, str], ...]
    dereference: bool = False


@dataclass(frozen=True, slots=True)
class Extract:
    """Unpack stdin into ``folder``; ``None`` for a choice is what ``tar`` does without the option."""

    folder: str
    touch: bool = False
    same_permissions: bool | None = None
    same_owner: bool | None = None


class NotUnderstood(Exception):
    """A command line for a real ``tar``."""


def understood(arguments: Sequence[str]) -> Create | Extract:
    """What the arguments after ``tar`` ask for. Raises ``NotUnderstood``."""
    folder, paths, letters = "", [], set()
    permissions: bool | None = None
    owner: bool | None = None
    for option, value in _options(arguments):
        match option:
            case "C":
                folder = os.path.join(folder, value)
            case "":
                paths.append((folder, value))
            case "f":
                if value != "-":
                    raise NotUnderstood(f"only -f - is known, not {value}")
                letters.add("f")
            case "p" | "no-same-permissions":
                permissions = option == "p"
            case "same-owner" | "no-same-owner":
                owner = option == "same-owner"
            case _:
                letters.add(option)
    if letters - {"c", "x", "f", "m", "h"} or "f" not in letters or len(letters & {"c", "x"}) != 1:
        raise NotUnderstood("only cf - and xf - are known")
    if "c" in letters:
        if not paths or "m" in letters:
            raise NotUnderstood("nothing to pack")
        return Create(tuple(paths), "h" in letters)
    if paths or "h" in letters:
        raise NotUnderstood("members cannot be chosen")
    return Extract(folder or ".", "m" in letters, permissions, owner)


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each option by its letter or name with its value, and ``""`` for what is none."""
    rest = list(arguments)
    if rest and not rest[0].startswith("-"):
        # The old way: letters without a dash first, their values after all of them.
        letters = rest.pop(0)
        for letter in letters:
            yield letter, _value(rest) if letter in _WITH_VALUE else ""
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            break
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            letter = _LONG.get(name, "")
            if not letter or (equals and letter not in _WITH_VALUE):
                raise NotUnderstood(f"{argument} is not known")
            yield letter, value if equals else _value(rest) if letter in _WITH_VALUE else ""
        elif argument.startswith("-") and argument != "-":
            letters = argument[1:]
            while letters:
                letter, letters = letters[0], letters[1:]
                if letter in _WITH_VALUE:
                    yield letter, letters or _value(rest)
                    break
                yield letter, ""
        else:
            yield "", argument
    for argument in rest:
        yield "", argument


def _value(rest: list[str]) -> str:
    if not rest:
        raise NotUnderstood("an option lacks its value")
    return rest.pop(0)
