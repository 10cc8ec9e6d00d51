"""What the environment of a command says to git, put together to be kept.

Without an event loop: the command line calls it, which starts as fast as it can.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

from artifactfs.errors import InvalidInput
from artifactfs.git.apart import git_environment
from artifactfs.git.configuration.entries import Configuration, parsed
from artifactfs.git.surroundings import KEPT, PATHS, WHERE_NONE, Setting, Surroundings
from artifactfs.git.wire.url import RemoteURL
from artifactfs.redact import foreign_text

_DEADLINE_S = 10.0
_SETTINGS = ("GIT_CONFIG_COUNT", "GIT_CONFIG_PARAMETERS")
_SECTIONS = frozenset(
    (
        *("clone", "credential", "fetch", "filter", "http", "includeif", "init", "lfs", "protocol"),
        *("remote", "safe", "ssh", "transfer", "url"),
    )
)
_KEYS = frozenset(
    (
        "branch.autosetuprebase",
        "core.askpass",
        "core.attributesfile",
        "core.autocrlf",
        "core.eol",
        "core.gitproxy",
        "core.logallrefupdates",
        "core.sshcommand",
        "include.path",
    )
)
"""What a mount needs of the settings of one command: how remotes are reached, how a repository is
made, and how files are converted. Whose commits they are, and what git prints, is for the command
alone."""


def capture(environment: Mapping[str, str] | None = None) -> Surroundings:
    """What is to be kept of `environment` (this process's).

    Takes a git process where it has settings. Raises: InvalidInput where git does not understand
    them.
    """
    environment = os.environ if environment is None else environment
    variables = {
        name: _absolute(name, environment[name])
        for name in (*KEPT, *WHERE_NONE)
        if name in environment
    }
    return Surroundings(variables, captured_settings(environment))


def captured_settings(environment: Mapping[str, str]) -> tuple[Setting, ...]:
    """The settings of ``GIT_CONFIG_COUNT`` and ``GIT_CONFIG_PARAMETERS`` that a mount needs.

    Raises: InvalidInput.
    """
    given = _settings(environment)
    if not given:
        return ()
    output = _list("--show-scope", given)
    fields = output.decode("utf-8", "surrogateescape").split("\0")
    pairs = zip(fields[::2], fields[1::2], strict=False)
    found = (text.partition("\n") for scope, text in pairs if scope == "command")
    return tuple((key, value if nl else None) for key, nl, value in found if _is_needed(key))


def configuration_here() -> Configuration:
    """The user's configuration, with what the environment gives. Raises: InvalidInput."""
    return parsed(_list("--show-origin", _settings(os.environ)))


def login_key(remote: RemoteURL) -> str:
    """The key of git-config(1) that says as whom to log in at the server of `remote`."""
    return f"credential.{remote.origin}.username"


def helper_knows(remote: RemoteURL) -> bool:
    """Whether git, as it is configured here, can log in as the user whom `remote` names.

    Its helpers are asked, and what it would ask for a password, but no terminal.
    """
    asked = {"protocol": remote.scheme, "host": remote.origin.partition("://")[2]}
    asked |= {"path": remote.path.lstrip("/"), "username": remote.username or ""}
    request = "".join(f"{key}={value}\n" for key, value in asked.items())
    try:
        done = subprocess.run(
            ["git", "credential", "fill"],
            env=git_environment({"GIT_DIR": os.devnull, **_settings(os.environ)}),
            cwd="/",
            input=f"{request}\n".encode("utf-8", "surrogateescape"),
            capture_output=True,
            timeout=_DEADLINE_S,
        )
    except (subprocess.TimeoutExpired, OSError):
        return False
    return done.returncode == 0 and b"\npassword=" in done.stdout


def _settings(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name in _SETTINGS or name.startswith(("GIT_CONFIG_KEY_", "GIT_CONFIG_VALUE_"))
    }


def _list(option: str, given: Mapping[str, str]) -> bytes:
    command = ["git", "config", "--list", "-z", option, "--includes"]
    files = {name: _absolute(name, os.environ[name]) for name in PATHS if name in os.environ}
    environment = git_environment({"GIT_DIR": os.devnull, **files, **given})
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd="/",  # the folder that we were started in may be gone, or in a mount that hangs
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_DEADLINE_S,
        )
    except subprocess.TimeoutExpired:
        raise InvalidInput("git config does not end") from None
    except OSError as error:
        raise InvalidInput(f"git could not be started: {error.strerror}") from error
    if done.returncode != 0:
        said = foreign_text(done.stderr).splitlines()
        raise InvalidInput(
            f"git cannot read its configuration: {said[-1] if said else done.returncode}",
            hint="look at `git config --list`, GIT_CONFIG_COUNT and GIT_CONFIG_PARAMETERS",
        )
    return done.stdout


def _is_needed(key: str) -> bool:
    return key in _KEYS or key.partition(".")[0] in _SECTIONS


def _absolute(name: str, value: str) -> str:
    return os.path.abspath(value) if name in PATHS and value else value
