"""Settings from flags, the environment and one TOML file, all with the same names.

The long name of an option is its name everywhere: ``--hydrate-budget`` of ``add-repo`` is
``ARTIFACT_FS_ADD_REPO_HYDRATE_BUDGET`` in the environment and ``hydrate-budget`` (or
``hydrate_budget``) in the table ``[add-repo]`` of the file. Options of ``artifact-fs`` itself, such
as ``--state-root``, stand before the first table. A flag wins over the environment, the environment
over the file, the file over the built-in default; click does that, given its ``default_map``.

The file is ``$ARTIFACT_FS_CONFIG`` where set (empty: none), else ``/etc/artifact-fs/config.toml``
for root and ``$XDG_CONFIG_HOME/artifact-fs/config.toml`` for everybody else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from artifactfs.errors import InvalidInput

ENVIRONMENT_PREFIX = "ARTIFACT_FS"

Settings = dict[str, Any]


def configuration_file() -> Path | None:
    """Where the file is, or would be. None when ``$ARTIFACT_FS_CONFIG`` is empty, or there is no
    home."""
    given = os.environ.get("ARTIFACT_FS_CONFIG")
    if given is not None:
        return Path(given).absolute() if given else None
    if os.geteuid() == 0:
        return Path("/etc/artifact-fs/config.toml")
    config_home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    if not os.path.isabs(config_home):  # no home either
        return None
    return Path(config_home) / "artifact-fs" / "config.toml"


def load_configuration() -> Settings:
    """Read the file into a click ``default_map``; empty where there is none.

    Raises: InvalidInput for a file that cannot be read or is no TOML, or one that was named by
    ``$ARTIFACT_FS_CONFIG`` and does not exist.
    """
    path = configuration_file()
    if path is None:
        return {}
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        if "ARTIFACT_FS_CONFIG" in os.environ:
            raise InvalidInput(f"$ARTIFACT_FS_CONFIG names {path}, which does not exist") from None
        return {}
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from error
    return parse_configuration(text.decode("utf-8", "replace"), path)


def parse_configuration(text: str, path: Path) -> Settings:
    """Turn TOML into a ``default_map``: parameter names with ``_``, commands with ``-``."""
    import tomllib

    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{path} is not TOML: {error}") from error
    return _default_map(tables)


def _default_map(table: Mapping[str, Any]) -> Settings:
    found: Settings = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found[key.replace("_", "-")] = _default_map(value)
        else:
            found[key.replace("-", "_")] = value
    return found


def check_settings(context: click.Context, settings: Settings) -> None:
    """Raises: InvalidInput for a command or an option that there is not."""
    group = context.command
    assert isinstance(group, click.Group)
    for key, value in settings.items():
        if not isinstance(value, dict):
            if key not in setting_names(group):
                raise _unknown(key, [*setting_names(group)], "artifact-fs")
            continue
        command = group.get_command(context, key)
        if command is None:
            raise _unknown(key, group.list_commands(context), "artifact-fs")
        _for_command(value, command, key)


def apply_configuration(context: click.Context, name: str, command: click.Command) -> None:
    """Give `command` its part of the file, which `context.default_map` of its group holds.

    The names of options become those of click's parameters (``--json`` is ``as_json``), and a name
    that `command` does not have is refused, so that a typo is not silent. Raises: InvalidInput.
    """
    settings = (context.default_map or {}).get(name)
    if isinstance(settings, dict):
        assert context.default_map is not None
        context.default_map[name] = _for_command(settings, command, name)


def _for_command(settings: Settings, command: click.Command, name: str) -> Settings:
    parameters = setting_names(command)
    below: Mapping[str, click.Command] = getattr(command, "commands", {})
    found: Settings = {}
    for key, value in settings.items():
        if isinstance(value, dict) and key in below:
            found[key] = _for_command(value, below[key], f"{name} {key}")
        elif key in parameters:
            found[parameters[key]] = value
        else:
            raise _unknown(key, [*parameters, *below], name)
    return found


def setting_names(command: click.Command) -> dict[str, str]:
    """What an option may be called in the file (with ``_``) → the name of its parameter."""
    names = {}
    for parameter in command.params:
        if parameter.name and parameter.param_type_name == "option":
            names[parameter.name] = parameter.name
            for flag in parameter.opts:
                if flag.startswith("--"):
                    names[flag[2:].replace("-", "_")] = parameter.name
    return names


def _unknown(key: str, known: list[str], name: str) -> InvalidInput:
    import difflib

    close = difflib.get_close_matches(key, known, n=1)
    return InvalidInput(
        f"{configuration_file()}: {name} has no setting {key.replace('_', '-')!r}",
        hint=f"did you mean {close[0].replace('_', '-')!r}?"
        if close
        else f"artifact-fs {name} --help lists them",
    )
