"""What the environment of whoever added a repository tells git, kept for the repository's daemon.

A container gives git its configuration in ``GIT_CONFIG_COUNT`` or a file that ``GIT_CONFIG_GLOBAL``
names, a shell has ``GIT_SSH_COMMAND`` or ``https_proxy``: `git clone` works there, and the daemon,
which was started elsewhere, knows nothing of them. So they are kept with the repository, as safely
as a credential (a file of mode 0600): they may be one.

The surroundings are a context variable: tasks inherit them from whoever started them, and two
repositories in one process have their own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path

from artifactfs.errors import StateError
from artifactfs.system.files import replace_file

Setting = tuple[str, str | None]
"""A key of git-config(1) and its value; None for a key without one, which means true."""

KEPT = (
    "GIT_CONFIG_GLOBAL",
    "GIT_CONFIG_SYSTEM",
    "GIT_CONFIG_NOSYSTEM",
    "GIT_TEMPLATE_DIR",
    "HOME",
    "XDG_CONFIG_HOME",
    "GIT_SSH",
    "GIT_SSH_COMMAND",
    "GIT_SSH_VARIANT",
    "GIT_PROXY_COMMAND",
    "GIT_OVERRIDE_VIRTUAL_HOST",
    "GIT_ASKPASS",
    "GIT_ALLOW_PROTOCOL",
    "GIT_PROTOCOL_FROM_USER",
    "GIT_SSL_NO_VERIFY",
    "GIT_SSL_CERT",
    "GIT_SSL_CERT_TYPE",
    "GIT_SSL_KEY",
    "GIT_SSL_KEY_TYPE",
    "GIT_SSL_CERT_PASSWORD_PROTECTED",
    "GIT_SSL_CAINFO",
    "GIT_SSL_CAPATH",
    "GIT_SSL_VERSION",
    "GIT_SSL_CIPHER_LIST",
    "GIT_PROXY_SSL_CERT",
    "GIT_PROXY_SSL_KEY",
    "GIT_PROXY_SSL_CERT_PASSWORD_PROTECTED",
    "GIT_PROXY_SSL_CAINFO",
    "GIT_HTTP_PROXY_AUTHMETHOD",
    "GIT_HTTP_USER_AGENT",
    "GIT_HTTP_LOW_SPEED_LIMIT",
    "GIT_HTTP_LOW_SPEED_TIME",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
)
"""Variables by which git, curl or ssh reach a remote, or git makes a repository."""

PATHS = frozenset(
    (
        "GIT_CONFIG_GLOBAL",
        "GIT_CONFIG_SYSTEM",
        "GIT_TEMPLATE_DIR",
        "GIT_SSL_CERT",
        "GIT_SSL_KEY",
        "GIT_SSL_CAINFO",
        "GIT_SSL_CAPATH",
        "GIT_PROXY_SSL_CERT",
        "GIT_PROXY_SSL_KEY",
        "GIT_PROXY_SSL_CAINFO",
    )
)
"""Those that name a file, which may be relative to the folder that the user was in."""

WHERE_NONE = ("SSH_AUTH_SOCK",)
"""Kept for a daemon without one of its own: that of a login ends with the login."""

SETTINGS_FILE = "git-settings"
OWN_FOLDER = "artifactfs"
OWN_CONFIG_PATH = f"{OWN_FOLDER}/config"
"""What a gitdir's config includes, relative to the gitdir: the file that is ours."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Environment variables, and settings that were given for one command alone.

    `includes` are files of settings that apply for the place of the mount (``includeIf``),
    `remote_includes` those for its remote, for processes that have no gitdir.
    `configuration` is what git said of all that (a `Configuration`): until there is a gitdir, it
    need not be asked again.
    """

    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    settings: tuple[Setting, ...] = field(default=(), repr=False)
    includes: tuple[str, ...] = ()
    remote_includes: tuple[str, ...] = ()
    configuration: object = field(default=None, repr=False, compare=False)

    def __bool__(self) -> bool:
        return bool(self.variables or self.settings or self.includes)

    def beyond(self, environment: Mapping[str, str]) -> Surroundings:
        """Without the variables that `environment` has with the same value."""
        other = {
            name: value for name, value in self.variables.items() if environment.get(name) != value
        }
        return Surroundings(other, self.settings, self.includes)

    def over(self, other: Surroundings) -> Surroundings:
        """Both; what this one says wins, also of a key that may have several values: a header that
        two shells set would be sent twice."""
        said = {key for key, _ in self.settings}
        older = [setting for setting in other.settings if setting[0] not in said]
        return Surroundings(
            {**other.variables, **self.variables},
            (*older, *self.settings),
            self.includes or other.includes,
        )

    def without(self, key: str) -> Surroundings:
        """Without the settings of that key."""
        return replace(self, settings=tuple(each for each in self.settings if each[0] != key))

    def environment(self) -> dict[str, str]:
        """The variables to add to the environment of a git process."""
        here = [name for name in WHERE_NONE if name in os.environ]
        return {name: value for name, value in self.variables.items() if name not in here}

    def settings_of_remote(self) -> tuple[Setting, ...]:
        """What git finds out where it has the gitdir."""
        return tuple(("include.path", path) for path in self.remote_includes)

    def all_settings(self) -> tuple[Setting, ...]:
        """The settings that are not in any file that git reads by itself."""
        return (*(("include.path", path) for path in self.includes), *self.settings)


class _Box:
    """Tasks that inherited it see what is put into it later."""

    def __init__(self, content: Surroundings) -> None:
        self.content = content


_NONE = Surroundings()
_current: ContextVar[_Box | None] = ContextVar("surroundings", default=None)


def current() -> Surroundings:
    """Those of the repository that this task works for."""
    box = _current.get()
    return _NONE if box is None else box.content


@contextmanager
def within(surroundings: Surroundings) -> Iterator[None]:
    """Run git with `surroundings`, in the block and in the tasks that it starts."""
    token = _current.set(_Box(surroundings))
    try:
        yield
    finally:
        _current.reset(token)


def adopt(surroundings: Surroundings) -> None:
    """The same from here on: for this task, those that it starts, and those that share its."""
    box = _current.get()
    if box is None:
        _current.set(_Box(surroundings))
    else:
        box.content = surroundings


def variable(name: str) -> str | None:
    """An environment variable as git processes of ours see it."""
    given = current().environment().get(name)
    return os.environ.get(name) if given is None else given


def settings_environment(settings: tuple[Setting, ...]) -> dict[str, str]:
    """``GIT_CONFIG_COUNT`` and what belongs to it: only the owner of a process can read it."""
    if not settings:
        return {}
    environment = {"GIT_CONFIG_COUNT": str(len(settings))}
    for number, (key, value) in enumerate(settings):
        environment[f"GIT_CONFIG_KEY_{number}"] = key
        environment[f"GIT_CONFIG_VALUE_{number}"] = "true" if value is None else value
    return environment


def included_by(gitdir: Path) -> bool:
    """Whether git reads the settings that were kept from the config of `gitdir`."""
    try:
        return SETTINGS_FILE in (gitdir / OWN_CONFIG_PATH).read_text("utf-8", "replace")
    except OSError:
        return False


def load(path: Path) -> Surroundings:
    """What `store` wrote; nothing where there is none. Raises: StateError."""
    try:
        return decoded(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return Surroundings()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StateError(f"{path} cannot be read: {error}", hint=f"remove it: rm {path}") from error


def store(path: Path, surroundings: Surroundings) -> None:
    """Write a file of mode 0600, as a whole; nothing to keep removes it. Raises: OSError."""
    if not surroundings:
        path.unlink(missing_ok=True)
        return
    write_private(path, json.dumps(encoded(surroundings)).encode())


def encoded(surroundings: Surroundings) -> dict[str, object]:
    """For JSON. `includes` are worked out anew at each mount."""
    return {"variables": dict(surroundings.variables), "settings": list(surroundings.settings)}


NOTHING: dict[str, object] = {"variables": {}, "settings": []}
"""What `encoded` makes of no surroundings."""


def decoded(fields: object) -> Surroundings:
    """What `encoded` made. Raises: TypeError, KeyError, ValueError."""
    if not isinstance(fields, dict):
        raise TypeError("surroundings are an object")
    variables = {
        str(name): str(value)
        for name, value in fields["variables"].items()
        if name in KEPT or name in WHERE_NONE
    }
    settings = tuple(
        (str(key), None if value is None else str(value)) for key, value in fields["settings"]
    )
    return Surroundings(variables, settings)


def write_private(path: Path, content: bytes) -> None:
    """Replace a file by one of mode 0600, synced. Raises: OSError."""
    replace_file(path, content, mode=0o600, sync=True)
