"""What the environment of a command says to git, put together to be kept."""

from __future__ import annotations

import os
from collections.abc import Mapping

from artifactfs.errors import InvalidInput
from artifactfs.git.command import GitFailed, run_git
from artifactfs.git.configuration.listing import NO_GITDIR
from artifactfs.git.surroundings import KEPT, PATHS, WHERE_NONE, Setting, Surroundings

_SETTINGS = ("GIT_CONFIG_COUNT", "GIT_CONFIG_PARAMETERS")
_SECTIONS = frozenset(
    ("credential", "filter", "http", "lfs", "protocol", "remote", "safe", "ssh", "url")
)
_KEYS = frozenset(
    (
        "clone.defaultremotename",
        "core.askpass",
        "core.attributesfile",
        "core.autocrlf",
        "core.eol",
        "core.gitproxy",
        "core.sshcommand",
        "include.path",
        "init.defaultbranch",
    )
)
"""What a mount needs of the settings of one command: how remotes are reached, and how files are
converted. Whose commits they are, and what git prints, is for the command alone."""


async def capture(environment: Mapping[str, str] | None = None) -> Surroundings:
    """What is to be kept of `environment` (this process's). Takes a git process where it has
    settings. Raises: InvalidInput where git does not understand them."""
    environment = os.environ if environment is None else environment
    variables = {
        name: _absolute(name, environment[name])
        for name in (*KEPT, *WHERE_NONE)
        if name in environment
    }
    return Surroundings(variables, await captured_settings(environment))


async def captured_settings(environment: Mapping[str, str]) -> tuple[Setting, ...]:
    """The settings of ``GIT_CONFIG_COUNT`` and ``GIT_CONFIG_PARAMETERS`` that a mount needs.

    Raises: InvalidInput.
    """
    given = {name: value for name, value in environment.items() if _is_setting(name)}
    if not given:
        return ()
    try:
        output = await run_git(
            "config", "--list", "-z", "--show-scope", env=NO_GITDIR | given, deadline_s=10
        )
    except GitFailed as error:
        raise InvalidInput(
            f"git does not understand the configuration in the environment: {error.message}",
            hint="look at GIT_CONFIG_COUNT and GIT_CONFIG_PARAMETERS",
        ) from error
    fields = output.decode("utf-8", "surrogateescape").split("\0")
    pairs = zip(fields[::2], fields[1::2], strict=False)
    found = (text.partition("\n") for scope, text in pairs if scope == "command")
    return tuple((key, value if nl else None) for key, nl, value in found if _is_needed(key))


def _is_setting(name: str) -> bool:
    return name in _SETTINGS or name.startswith(("GIT_CONFIG_KEY_", "GIT_CONFIG_VALUE_"))


def _is_needed(key: str) -> bool:
    return key in _KEYS or key.partition(".")[0] in _SECTIONS


def _absolute(name: str, value: str) -> str:
    return os.path.abspath(value) if name in PATHS and value else value
