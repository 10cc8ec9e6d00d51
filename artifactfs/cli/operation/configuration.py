"""``artifact-fs config``: the settings file, read and changed."""

from __future__ import annotations

import json
from typing import Any

import click

from artifactfs.cli.terminal import output
from artifactfs.cli.terminal.configuration import (
    check_settings,
    configuration_file,
    load_configuration,
    parse_configuration,
)
from artifactfs.cli.terminal.context import json_option
from artifactfs.errors import ArtifactFSError, InvalidInput
from artifactfs.system.files import replace_file


@click.group()
def config() -> None:
    """Show and change the settings file: `COMMAND.OPTION`, as in `daemon.cache-limit`.

    A flag and the environment win over the file. See docs/configuration.md.

    \b
    Examples:
      artifact-fs config set daemon.cache-limit 5G
      artifact-fs config get daemon.cache-limit
      artifact-fs config list
    """


@config.command("list")
@json_option
def list_settings(as_json: bool) -> None:
    """Print every setting of the file.

    \b
    Examples:
      artifact-fs config list
    """
    found = dict(_flat(load_configuration()))
    if as_json:
        output.print_json(found)
        return
    for key, value in found.items():
        click.echo(f"{key} = {_shown(value)}")


@config.command()
@click.argument("key")
def get(key: str) -> None:
    """Print one setting; exits with 1 where the file does not have it.

    \b
    Examples:
      artifact-fs config get daemon.log-level
    """
    found = dict(_flat(load_configuration()))
    if _normal(key) not in found:
        raise ArtifactFSError(f"{configuration_file()} does not set {key}")
    click.echo(_shown(found[_normal(key)]))


@config.command("set")
@click.argument("key")
@click.argument("value", nargs=-1, required=True)
def set_value(key: str, value: tuple[str, ...]) -> None:
    """Set one option in the file; several VALUES make a list. Comments in the file stay.

    \b
    Examples:
      artifact-fs config set add-repo.refresh 30s
      artifact-fs config set add-repo.hydrate-first '*.toml' '*.lock'
    """
    path = configuration_file()
    if path is None:
        raise InvalidInput("there is no settings file", hint="set $ARTIFACT_FS_CONFIG to a path")
    text = path.read_text() if path.exists() else ""
    changed = _with(text, _normal(key), value)
    root = click.get_current_context().find_root()
    check_settings(root, parse_configuration(changed, path))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, changed)
    click.echo(f"{_normal(key)} = {_shown(value[0] if len(value) == 1 else list(value))}")


def _normal(key: str) -> str:
    return key.replace("_", "-")


def _flat(settings: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in settings.items():
        name = f"{before}{key.replace('_', '-')}"
        found += _flat(value, f"{name}.") if isinstance(value, dict) else [(name, value)]
    return found


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _value(word: str) -> Any:
    """A word of the command line as in TOML: booleans and whole numbers as such."""
    if word in ("true", "false"):
        return word == "true"
    return int(word) if word.lstrip("-").isdecimal() else word


def _with(text: str, key: str, words: tuple[str, ...]) -> str:
    """`text` with the setting changed or added; all else stays as it is."""
    import tomlkit

    document = tomlkit.parse(text)
    *tables, option = key.split(".")
    place: Any = document
    for name in tables:
        place = place.setdefault(_there(place, name), tomlkit.table())
    place[_there(place, option)] = _value(words[0]) if len(words) == 1 else [*map(_value, words)]
    return tomlkit.dumps(document)


def _there(table: Any, name: str) -> str:
    """The name as the file has it, with ``-`` or ``_``."""
    return next((each for each in table if _normal(each) == name), name)
