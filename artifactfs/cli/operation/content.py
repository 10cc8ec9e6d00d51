"""``artifact-fs prefetch``, ``evict-cache`` and ``gc``."""

from __future__ import annotations

from typing import Any

import click

from artifactfs.cli.terminal import output
from artifactfs.cli.terminal.context import Size, connect, daemon, json_option, state
from artifactfs.cli.terminal.known import registered
from artifactfs.cli.terminal.names import name_or_here_option, optional_name_option
from artifactfs.cli.terminal.output import human_bytes


@click.command()
@name_or_here_option
@click.argument("patterns", nargs=-1)
@click.option("--wait/--no-wait", default=False, help="Return when everything is here.")
@click.option(
    "--history",
    multiple=True,
    metavar="PATH",
    help="Every version of PATH, for git blame and git log -p. Repeatable; always waits.",
)
@json_option
def prefetch(
    name: str, patterns: tuple[str, ...], wait: bool, history: tuple[str, ...], as_json: bool
) -> None:
    """Fetch contents before they are read.

    PATTERNS are paths or globs as in .gitignore, from the top of the tree; without any,
    everything.

    \b
    Examples:
      artifact-fs prefetch --name hello --wait
      artifact-fs prefetch --name hello src '*.proto'
      artifact-fs prefetch --name hello --history src/main.c && git blame src/main.c
    """
    if patterns and history:
        raise click.UsageError("give either PATTERNS or --history PATH")
    args = {"patterns": list(patterns), "history": list(history), "wait": wait or bool(history)}
    with daemon() as client, output.progress(name, quiet=as_json) as report:
        answer = client.request(
            "worker", on_progress=report, name=name, request="prefetch", args=args
        )
    if as_json:
        output.print_json(answer)
    else:
        done = "are here" if answer["waited"] else "are being fetched"
        click.echo(f"{name}: {answer['blobs']} blobs {done}")


@click.command("evict-cache")
@optional_name_option
@click.option(
    "--max-bytes", type=Size(), default=0, metavar="SIZE", help="Leave so much. [default: 0]"
)
@json_option
def evict_cache(name: str | None, max_bytes: int, as_json: bool) -> None:
    """Shrink the cache of contents, least recently used first.

    What is evicted is fetched again when it is read. Never touches local changes, nor what is
    open. The daemon keeps a limit by itself. All repositories share one cache, so a NAME only has
    to be registered.

    \b
    Examples:
      artifact-fs evict-cache
      artifact-fs evict-cache --max-bytes 2G
    """
    if name is not None:
        registered(name)
    client = connect()
    if client is not None:
        with client:
            answer = client.request("evict", max_bytes=max_bytes)
    else:
        from artifactfs.daemon.repositories.housekeeping import evict_here

        answer = evict_here(state(), max_bytes)
    if as_json:
        output.print_json(answer)
    else:
        click.echo(f"freed {human_bytes(answer['freed_bytes'])}")


@click.command()
@optional_name_option
@json_option
def gc(name: str | None, as_json: bool) -> None:
    """Put small packs together, and remove what nothing refers to any more.

    In the cache, and in every gitdir that add-repo made: fetches leave a pack each. Safe while
    mounted and while git works. What an interrupted command left is removed; data of registered
    repositories never is. Workspaces of programs that were killed are unmounted: those with work
    that nobody else has are kept, others are removed. With a NAME, of gitdirs only that one's.

    \b
    Examples:
      artifact-fs gc
      artifact-fs gc --json
    """
    if name is not None:
        registered(name)
    from artifactfs.workspaces.ending import collect, how_to_get_back

    workspaces = collect(state())
    client = connect()
    if client is not None:
        with client, output.progress("gc", quiet=as_json) as report:
            answer: dict[str, Any] = client.request("gc", on_progress=report, name=name)
    else:
        from artifactfs.daemon.repositories.housekeeping import collect_garbage

        answer = collect_garbage(state(), adding=(), only=name)
    answer["workspaces"] = workspaces
    if as_json:
        output.print_json(answer)
        return
    click.echo(f"packs: {answer['packs_before']} → {answer['packs_after']}")
    for name, packs in answer["gitdirs"].items():
        click.echo(f"packs of {name}: {packs['packs_before']} → {packs['packs_after']}")
    click.echo(f"removed: {', '.join(answer['removed']) or 'nothing'}")
    for each in workspaces:
        kept = f"kept {each['kept']}; {how_to_get_back(each['name'])}"
        click.echo(f"workspace {each['name']}: {kept if each['kept'] else 'removed'}")
