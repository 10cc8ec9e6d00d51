"""``artifact-fs fetch``, ``set-refresh`` and ``set-remote``."""

from __future__ import annotations

from typing import Any

import click

from artifactfs.cli.terminal import output
from artifactfs.cli.terminal.context import Duration, connect, json_option, state
from artifactfs.cli.terminal.names import (
    name_argument_or_here_option,
    name_or_here_option,
    store_name,
)
from artifactfs.daemon.control.remote_argument import read_remote


@click.command()
@name_argument_or_here_option
@json_option
def fetch(name: str, as_json: bool) -> None:
    """Fetch the remote's refs now. Never touches the working tree.

    \b
    Examples:
      artifact-fs fetch --name hello
      artifact-fs fetch --name hello && git -C /mnt/artifact-fs/hello log HEAD..@{upstream}
    """
    client = connect()
    mounted = client is not None and client.request("list") and _is_mounted(client, name)
    if client is not None and mounted:
        with client, output.progress(name, quiet=as_json) as report:
            answer = client.request("worker", on_progress=report, name=name, request="fetch")
    else:
        answer = _fetch_here(name)
    if as_json:
        output.print_json(answer)
        return
    updated = answer.get("updated") or {}
    for ref, change in updated.items():
        click.echo(f"{ref}: {change}")
    click.echo(f"{name}: {answer['result']}")


def _is_mounted(client: Any, name: str) -> bool:
    return any(
        repo["name"] == name and repo["state"] == "mounted" for repo in client.request("list")
    )


def _fetch_here(name: str) -> dict[str, Any]:
    """Of a repository that is not mounted: nobody else works on its gitdir."""
    import trio

    from artifactfs.daemon.repositories.fetching import fetch_once
    from artifactfs.daemon.repositories.registry import Registry

    with Registry(state().registry_db) as registry:
        settings = registry.get(name).settings
    return trio.run(fetch_once, state().repo(name), settings)


def _name_and_interval(
    ctx: click.Context, option: click.Parameter, words: tuple[str, ...]
) -> list[float | None]:
    """``NAME INTERVAL``, or one of them; the interval in a list, empty where there is none.

    One word is the interval if it can be one. Raises: UsageError.
    """
    if len(words) > 2:
        raise click.UsageError("give a NAME and one INTERVAL, such as 30s or never", ctx)
    duration, name, rest = Duration(never=True), None, list(words)
    if len(words) == 2:
        name = rest.pop(0)
    elif words:
        try:
            duration.convert(words[0], option, ctx)
        except click.BadParameter:
            if words[0][0].isdigit() or words[0][0] == "-":
                raise
            name = rest.pop()
    store_name(ctx, name)
    return [duration.convert(word, option, ctx) for word in rest]


@click.command("set-refresh")
@name_or_here_option
@click.argument(
    "interval",
    metavar="[NAME] [INTERVAL]",
    nargs=-1,
    is_eager=True,
    callback=_name_and_interval,
)
@click.option("--interval", "flag", type=Duration(never=True), help="The same as INTERVAL.")
@click.option("--refresh", type=Duration(never=True), help="The same as INTERVAL.")
@json_option
def set_refresh(
    name: str,
    interval: list[float | None],
    flag: float | None,
    refresh: float | None,
    as_json: bool,
) -> None:
    """Fetch the remote's refs in the background every INTERVAL (30s, 5m, 1h), or never.

    \b
    Examples:
      artifact-fs set-refresh hello 30s
      artifact-fs set-refresh --name hello never
    """
    source = click.get_current_context().get_parameter_source
    commandline = click.core.ParameterSource.COMMANDLINE
    flags = {"flag": flag, "refresh": refresh}
    given = interval + [flags[each] for each in flags if source(each) is commandline]
    if len(given) != 1:
        raise click.UsageError("give one interval, such as 30s or never")
    (refresh_s,) = given
    client = connect()
    if client is not None:
        with client:
            client.request("set-refresh", name=name, refresh_s=refresh_s)
    else:
        from dataclasses import replace

        from artifactfs.daemon.repositories.registry import Registry

        with Registry(state().registry_db) as registry:
            registry.update(replace(registry.get(name).settings, refresh_s=refresh_s))
    if as_json:
        output.print_json({"name": name, "refresh_s": refresh_s})
    else:
        click.echo(f"{name}: refresh {output.human_seconds(refresh_s)}")


@click.command("set-remote")
@name_argument_or_here_option
@click.option("--remote", required=True, help="The new URL; - reads it from standard input.")
@click.option("--no-check", is_flag=True, help="Do not ask the new remote whether it answers.")
@json_option
def set_remote(name: str, remote: str, no_check: bool, as_json: bool) -> None:
    """Change the URL or the credentials, also while mounted (short-lived tokens expire).

    Credentials in the URL go to a 0600 file. To keep them out of the shell's history and the
    process list, give the URL on standard input (--remote -) or the token in $ARTIFACTS_TOKEN.

    \b
    Examples:
      artifact-fs set-remote --name hello --remote https://x:TOKEN@host/org/hello.git
      ARTIFACTS_TOKEN=… artifact-fs set-remote --name hello --remote https://host/org/hello.git
    """
    parsed = read_remote(remote)
    client = connect()
    if client is not None:
        with client:
            answer = client.request(
                "set-remote",
                name=name,
                remote=parsed.url,
                secret=parsed.secret,
                no_check=no_check,
            )
    else:
        answer = _set_remote_here(name, parsed.url, parsed.secret)
    if as_json:
        output.print_json(answer)
    else:
        checked = "checked" if answer["checked"] else "not checked"
        click.echo(f"{name}: remote {answer['remote']} ({checked})")


def _set_remote_here(name: str, url: str, secret: dict[str, Any] | None) -> dict[str, Any]:
    from dataclasses import replace

    import trio

    from artifactfs.daemon.repositories.registration import Secret, resolve_mount_point
    from artifactfs.daemon.repositories.registry import Registry
    from artifactfs.daemon.repositories.remotes import store_remote

    stored = Secret.from_fields(secret)
    with Registry(state().registry_db) as registry:
        settings = registry.get(name).settings
        mount_point = resolve_mount_point(settings, state().mount_root())
        old = replace(settings, mount_point=mount_point)
        trio.run(store_remote, state().repo(name), old, url, stored)
        registry.update(replace(settings, remote=url))
    return {"name": name, "remote": url, "checked": False}
