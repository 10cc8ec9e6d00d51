"""``artifact-fs list-repos`` and ``status``."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import click

from artifactfs.cli.operation.porcelain import repo_line, status_line
from artifactfs.cli.terminal import output
from artifactfs.cli.terminal.context import Duration, connect, json_option, state
from artifactfs.cli.terminal.known import known_repos, registered
from artifactfs.cli.terminal.names import optional_name_option
from artifactfs.cli.terminal.output import human_bytes, human_seconds
from artifactfs.system.probing import silent

Fields = dict[str, Any]

PROBE_S = 3.0
"""A mount that has not answered by then hangs."""


porcelain_option = click.option(
    "--porcelain/--no-porcelain",
    default=None,
    help="Stable lines for programs, or text for people. [default: text on a terminal]",
)


@click.command("list-repos")
@porcelain_option
@json_option
def list_repos(porcelain: bool | None, as_json: bool) -> None:
    """List the registered repositories.

    Where the output is no terminal: a line for each, of its name, branch or ref, mount point and
    remote, with tabs between them.

    \b
    Examples:
      artifact-fs list-repos
      artifact-fs list-repos --json | jq -r '.[].name'
      artifact-fs list-repos | cut -f 3
    """
    repos = known_repos()
    if as_json:
        output.print_json(repos)
        return
    if _for_programs(porcelain):
        for repo in repos:
            click.echo(repo_line(repo))
        return
    if not repos:
        click.echo("no repositories; add one: artifact-fs add-repo --name N --remote URL")
        return
    rows = [[r["name"], r["state"], r["mount_point"], r["remote"]] for r in repos]
    output.table(("NAME", "STATE", "MOUNT POINT", "REMOTE"), rows)


@click.command()
@optional_name_option
@click.option("--verbose", "-v", is_flag=True, help="Show which features each mount has.")
@click.option("--watch", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option("--interval", type=Duration(), default=1.0, help="With --watch. [default: 1s]")
@click.option("--count", type=click.IntRange(min=1), help="With --watch: end after so many looks.")
@porcelain_option
@json_option
def status(
    name: str | None,
    verbose: bool,
    watch: bool,
    interval: float,
    count: int | None,
    porcelain: bool | None,
    as_json: bool,
) -> None:
    """Show what every mount is doing.

    State, head and how far it is ahead of or behind its upstream, the last fetch, how much
    content is here, what is on its way, local changes, and what the remote cannot do.

    Where the output is no terminal, and with --porcelain: a line for each repository, of key=value
    pairs, to which later versions only add.

    \b
    Examples:
      artifact-fs status
      artifact-fs status hello | tr ' ' '\\n' | grep ^overlay_dirty=
      artifact-fs status --name hello --json
      artifact-fs status --watch --interval 5s
    """
    lines = _for_programs(porcelain) and not verbose and not as_json
    if not watch:
        _show_once(name, as_json, verbose, lines=lines, watch=False)
        return
    looks = range(count) if count is not None else itertools.count()
    with suppress(KeyboardInterrupt):
        for look in looks:
            if look:
                time.sleep(interval)
            _show_once(name, as_json, verbose, lines=lines, watch=True)


def _for_programs(porcelain: bool | None) -> bool:
    return not output.on_terminal() if porcelain is None else porcelain


def _show_once(name: str | None, as_json: bool, verbose: bool, *, lines: bool, watch: bool) -> None:
    repos, running = _look(name)
    if as_json:
        output.print_json(repos, in_one_line=watch)
    elif lines:
        _say_what_is_missing(repos, running)
        for repo in repos:
            click.echo(status_line(repo))
    else:
        _show(repos, running, verbose, afresh=watch and output.on_terminal())


def _look(name: str | None) -> tuple[list[Fields], bool]:
    """What is known, and whether a daemon told it."""
    client = connect()
    if client is None:
        return [_offline(repo) for repo in registered(name)], False
    with client:
        repos: list[Fields] = client.request("status", name=name)
    _probe(repos)
    return repos, True


def _probe(repos: list[Fields]) -> None:
    """Ask each mount itself: the daemon does not look into what it serves."""
    mounted = [repo for repo in repos if repo["state"] == "mounted"]
    places = [place for repo in mounted for place in _places(repo)]
    hung = silent(places, PROBE_S)
    for repo in mounted:
        if any(place in hung for place in _places(repo)):
            repo["state"] = "not answering"
            repo["error"] = {
                "message": f"nothing answers in {repo['mount_point']}",
                "hint": f"artifact-fs remount --name {repo['name']} --restart --force",
            }


def _places(repo: Fields) -> set[str]:
    """Where it is mounted: programs may see another file system above ours."""
    return {repo["mount_point"], repo.get("served_at") or repo["mount_point"]}


def _say_what_is_missing(repos: list[Fields], running: bool) -> None:
    if not running:
        click.echo("no daemon runs; start one: artifact-fs daemon", err=True)
    if not repos:
        click.echo("no repositories; add one: artifact-fs add-repo --name N --remote URL", err=True)


def _show(repos: list[Fields], running: bool, verbose: bool, *, afresh: bool) -> None:
    _say_what_is_missing(repos, running)
    lines = [line for repo in repos for line in describe(repo, verbose)]
    if afresh:
        click.clear()
    click.echo("\n".join(lines), nl=bool(lines))


def _offline(repo: Fields) -> Fields:
    """Adds what the gitdir says by itself."""
    from artifactfs.daemon.repositories.heads import offline_fields

    return {**repo, **offline_fields(state().repo(repo["name"]).gitdir)}


def describe(repo: Fields, verbose: bool = False) -> Iterator[str]:
    """The lines of one repository; a field that is not known has no line."""
    yield f"{repo['name']}: {repo['state']} at {output.printable(repo['mount_point'])}"
    yield _line("remote", repo["remote"])
    if repo.get("require_commit"):
        yield _line("verified", f"was mounted at the required commit {repo['require_commit']}")
    if repo.get("follow"):
        yield _line("follows", f"origin/{repo['follow']}")
    if repo.get("git_dir"):
        yield _line("gitdir", repo["git_dir"])
    if repo.get("error"):
        yield _line("error", repo["error"]["message"])
        if repo["error"].get("hint"):
            yield _line("hint", repo["error"]["hint"])
    for damage in repo.get("damage") or ():
        label, more = ("mended", "") if damage["mended"] else ("damage", "hint")
        yield _line(label, f"{damage['file']} {damage['what']}")
        yield _line(more, damage["mend"])
    if repo.get("restarts"):
        yield _line("restarts", str(repo["restarts"]))
    if repo.get("head") or repo.get("ref"):
        yield _line("head", _head(repo))
    if "last_fetch" in repo:
        yield _line("fetched", _last_fetch(repo))
    if repo.get("hydration"):
        yield from _hydration(repo["hydration"])
    if repo.get("writes"):
        who = {"kernel": "by the kernel, on the disk", "fuse": "through our process"}
        writes = repo["writes"]
        yield _line("writes", f"{who[writes['kind']]} ({writes['why']})")
    if repo.get("overlay"):
        overlay = repo["overlay"]
        size = human_bytes(overlay["dirty_bytes"])
        yield _line("overlay", f"{overlay['dirty_files']} dirty files, {size}")
    if "history_complete" in repo:
        history = _history(repo)
        index = "primed" if repo.get("index_primed") else "being prepared"
        yield _line("git", f"history {history}; index {index}")
    yield from _features(repo.get("features") or {}, verbose)


def _features(features: Fields, verbose: bool) -> Iterator[str]:
    """Always what is missing and why, but not what only builds on that."""
    for name, found in features.items():
        builds_on_missing = any(not features[need]["on"] for need in found["needs"])
        if verbose and found["on"]:
            yield _line("on", f"{name}: {found['gives']}")
        elif verbose or not (found["on"] or found["expected"] or builds_on_missing):
            yield _line("off", f"{name}: {found['why']}")


def _line(label: str, text: str) -> str:
    return f"  {label:<10}{output.printable(text)}"


def _head(repo: Fields) -> str:
    ref = repo.get("ref")
    if repo["head"] is None:
        return f"{ref or 'detached'} (no commits yet)"
    text = f"{ref or 'detached'} {repo['head'][:12]}"
    if repo.get("upstream") is None:
        return text
    ahead, behind = repo.get("ahead"), repo.get("behind")
    if ahead is None or behind is None:
        return f"{text} (compared to {repo['upstream']} once history is here)"
    if not ahead and not behind:
        return f"{text} (up to date with {repo['upstream']})"
    return f"{text} ({ahead} ahead, {behind} behind {repo['upstream']})"


def _history(repo: Fields) -> str:
    if not repo["history_complete"]:
        return "loading in the background"
    return f"cut off after {repo['depth']} (--depth)" if repo.get("depth") else "complete"


def _last_fetch(repo: Fields) -> str:
    every = repo.get("refresh_s")
    refresh = f"every {human_seconds(every)}" if every else "never by itself"
    last = repo["last_fetch"]
    if last is None:
        return f"not since the mount; {refresh}"
    ago = max(0.0, time.time() - last["time"])
    return f"{human_seconds(round(ago))} ago: {last['result']}; {refresh}"


def _hydration(hydration: Fields) -> Iterator[str]:
    here, total = hydration["blobs_here"], hydration["blobs_total"]
    size = human_bytes(hydration["bytes_here"])
    if hydration["sizes_known"] >= total:
        size = f"{size} of {human_bytes(hydration['bytes_total'])}"
    yield _line("hydrated", f"{here} of {total} blobs, {size} {_bar(here, total)}".rstrip())
    stage = f" ({hydration['sweep_stage']})" if hydration["sweep_stage"] else ""
    yield _line("sweep", f"{hydration['sweep_state']}{stage}")
    waiting = sum(hydration["queue"].values())
    readers = len(hydration["readers"])
    yield _line("queue", f"{waiting} blobs waiting, {readers} readers")
    remote = hydration["remote"]
    if hydration["outage_since"]:
        ago = human_seconds(round(max(0.0, time.time() - hydration["outage_since"])))
        remote = f"{remote} since {ago} ({hydration['outage_cause']})"
    received = human_bytes(hydration["received_bytes"])
    yield _line("link", f"{remote}; {hydration['requests']} requests, {received} received")
    if hydration.get("git_because"):
        yield _line("transport", f"git asks the remote for us: {hydration['git_because']}")
    for limit in hydration["limits"]:
        yield _line("limit", limit)


def _bar(done: int, total: int, width: int = 20) -> str:
    """``[#####---------------]``; nothing where there is nothing to show."""
    if not total:
        return ""
    filled = done * width // total
    return f"[{'#' * filled}{'-' * (width - filled)}]"
