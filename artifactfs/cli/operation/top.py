"""``artifact-fs top``, ``trace`` and ``wait``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import click

from artifactfs.cli.terminal import output
from artifactfs.cli.terminal.context import Duration, daemon, json_option
from artifactfs.cli.terminal.names import (
    name_argument_or_here_option,
    name_option,
    optional_name_option,
)
from artifactfs.cli.terminal.output import human_bytes

Fields = dict[str, Any]
Looks = Iterator[tuple[list[Fields], dict[str, tuple[float, float]]]]
HEADER = (
    "NAME",
    "STATE",
    "HERE",
    "HITS",
    "QUEUE",
    "FLIGHTS",
    "REQ/S",
    "BYTES/S",
    "FAILED",
    "DIRTY",
)


@click.command()
@optional_name_option
@click.option("--interval", type=Duration(), default=1.0, help="Between two looks. [default: 1s]")
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many looks.")
@json_option
def top(name: str | None, interval: float, count: int | None, as_json: bool) -> None:
    """Watch what the mounts do: requests, bytes, the queue, and who waits for what.

    HITS is the share of contents that were here when a program asked for them. Ends with Ctrl-C, or
    after --count looks. With --json one object a line.

    \b
    Examples:
      artifact-fs top
      artifact-fs top --name hello --count 1 --json
    """
    with suppress(KeyboardInterrupt):
        _show(_looks(name, interval, count), as_json)


def _show(looks: Looks, as_json: bool) -> None:
    if as_json:
        for repos, _rates in looks:
            output.print_json({"time": time.time(), "repos": repos}, in_one_line=True)
    elif output.on_terminal():
        _live(looks)
    else:
        for repos, rates in looks:
            output.table(HEADER, [_row(repo, rates) for repo in repos])
            for line in _readers(repos):
                click.echo(line)


def _looks(name: str | None, interval: float, count: int | None) -> Looks:
    """The status again and again, with requests and bytes a second by name."""
    before: dict[str, tuple[float, int, int]] = {}
    seen = 0
    with daemon() as client:
        while True:
            repos = client.request("status", name=name)
            now = time.monotonic()
            rates = {}
            for repo in repos:
                hydration = repo.get("hydration")
                if not hydration:
                    continue
                then, requests, received = before.get(repo["name"], (now, 0, 0))
                past = now - then
                if past > 0:
                    rates[repo["name"]] = (
                        (hydration["requests"] - requests) / past,
                        (hydration["received_bytes"] - received) / past,
                    )
                before[repo["name"]] = (now, hydration["requests"], hydration["received_bytes"])
            yield repos, rates
            seen += 1
            if count is not None and seen >= count:
                return
            time.sleep(interval)


def _row(repo: Fields, rates: dict[str, tuple[float, float]]) -> list[str]:
    hydration = repo.get("hydration")
    if not hydration:
        return [repo["name"], repo["state"], *[""] * 8]
    requests, received = rates.get(repo["name"], (0.0, 0.0))
    return [
        repo["name"],
        repo["state"],
        f"{hydration['blobs_here']}/{hydration['blobs_total']}",
        _hits(hydration),
        str(sum(hydration["queue"].values())),
        str(hydration["in_flight"]),
        f"{requests:.1f}",
        human_bytes(received),
        str(hydration["failures"]),
        str(repo.get("overlay", {}).get("dirty_files", "")),
    ]


def _hits(hydration: Fields) -> str:
    """The share of contents that were here when a program asked; the kernel's cache not counted."""
    asked = hydration["reads_here"] + hydration["reads_waited"]
    return f"{hydration['reads_here'] * 100 // asked}%" if asked else ""


def _readers(repos: list[Fields]) -> Iterator[str]:
    for repo in repos:
        for reader in (repo.get("hydration") or {}).get("readers", ()):
            path = output.printable(reader["path"])
            waits = f"waits {reader['age_s']:.1f} s for {path}"
            yield f"{repo['name']}: process {reader['pid']} {waits}"


def _live(looks: Looks) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    with Live(auto_refresh=False, screen=False) as live:
        for repos, rates in looks:
            table = Table(*HEADER, box=None)
            for repo in repos:
                table.add_row(*_row(repo, rates))
            lines = [Text(line) for line in _readers(repos)]
            live.update(Group(table, *lines), refresh=True)


@click.command()
@name_argument_or_here_option
@click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl-C.")
@json_option
def trace(name: str, follow: bool, as_json: bool) -> None:
    """Show which process waited for which content, and why it was fetched.

    Reasons: read (a program waited), readahead, prefetch, sweep, sizes. The last 1,024 fetches
    are kept.

    \b
    Examples:
      artifact-fs trace --name hello
      artifact-fs trace --name hello --follow
      artifact-fs trace --name hello --json | jq -r 'select(.reason == "read") | .path'
    """
    since = 0
    with daemon() as client, suppress(KeyboardInterrupt):
        while True:
            args = {"since": since}
            for record in client.request("worker", name=name, request="trace", args=args):
                since = record["number"]
                if as_json:
                    output.print_json(record, in_one_line=True)
                else:
                    click.echo(_trace_line(record))
            if not follow:
                return
            time.sleep(0.5)


def _trace_line(record: Fields) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(record["at"]))
    what = output.printable(record["path"]) or record["oid"][:12]
    if record["count"] > 1:
        what = f"{what} and {record['count'] - 1} more"
    who = f" for process {record['pid']}" if record["pid"] else ""
    failed = f" FAILED: {output.printable(record['error'])}" if record["error"] else ""
    size = human_bytes(record["size"])
    return f"{at} {record['reason']:<9} {record['ms']:8.1f} ms {size:>10}  {what}{who}{failed}"


READY = {
    "mounted": "mounted",
    "hydrated": "hydrated as far as the background goes",
    "history": "there with its whole history",
}


@click.command("wait")
@name_option
@click.option(
    "--for",
    "goal",
    type=click.Choice(list(READY)),
    default="mounted",
    show_default=True,
    help="mounted: the tree can be read; hydrated: the background sweep is done; history: git "
    "log needs the remote no more.",
)
@click.option("--timeout", type=Duration(), help="Give up after so long (exit code 124).")
@json_option
def wait(name: str, goal: str, timeout: float | None, as_json: bool) -> None:
    """Wait until a repository is mounted, hydrated, or has its history.

    \b
    Examples:
      artifact-fs add-repo --name hello --remote URL --async && artifact-fs wait --name hello
      artifact-fs wait --name hello --for hydrated --timeout 5m
    """
    with daemon() as client, output.progress(name, quiet=as_json) as report:
        answer = client.request(
            "wait", on_progress=report, name=name, timeout_s=timeout, **{"for": goal}
        )
    if as_json:
        output.print_json(answer)
    else:
        click.echo(f"{name}: {READY[goal]}")
