"""``artifact-fs daemon``."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from artifactfs.cli.operation import running
from artifactfs.cli.terminal import output
from artifactfs.cli.terminal.context import Duration, Size, json_option, state
from artifactfs.cli.terminal.context import daemon as connect_to_daemon
from artifactfs.daemon.control.client import DaemonNotRunning
from artifactfs.daemon.control.remote_argument import TOKEN_VARIABLES
from artifactfs.errors import DaemonError, NotRegistered
from artifactfs.features import VARIABLE, disabled_features
from artifactfs.paths import default_mount_root

POLL_S = 0.05


@click.group(invoke_without_command=True)
@click.option(
    "--root",
    "mount_root",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where repositories are mounted that were added without --mount-root. "
    "[env: ARTIFACT_FS_MOUNT_ROOT; default: /mnt/artifact-fs, for ordinary users ~/artifact-fs]",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    envvar="ARTIFACT_FS_LOG_LEVEL",
    show_default=True,
    show_envvar=True,
)
@click.option(
    "--cache-limit",
    type=Size(),
    metavar="SIZE",
    help="Contents kept for all repositories; the least recently used are evicted. [default: 20G]",
)
@click.option(
    "--hydration-concurrency",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Requests for contents that each mount has under way at a time: so many of readers (but "
    "at most 5), and so many of the background. [default: 4]",
)
@click.option(
    "--metrics",
    metavar="ADDRESS",
    help="Serve Prometheus metrics at http://ADDRESS/metrics: HOST:PORT, or the path of a Unix "
    "socket. [default: not]",
)
@click.option(
    "--keep-cpus-awake",
    is_flag=True,
    help="While requests come in bursts, let idle CPUs wait in a loop and not halt: in virtual "
    "machines many small operations then take half as long. Costs CPU time; for root only.",
)
@click.option(
    "--disable",
    metavar="FEATURE,FEATURE",
    envvar=VARIABLE,
    show_envvar=True,
    help="Do without these features; 'status -v' and 'doctor -v' list them.",
)
@click.option(
    "--background",
    is_flag=True,
    help="Return when everything is mounted; the daemon goes on, and logs to STATE/daemon.log.",
)
@click.option(
    "--exit-when-idle",
    type=Duration(),
    help="End after so long without a mount and without a command. [default: never]",
)
@click.pass_context
def daemon(
    context: click.Context,
    mount_root: Path | None,
    log_level: str,
    cache_limit: int | None,
    hydration_concurrency: int | None,
    metrics: str | None,
    keep_cpus_awake: bool,
    disable: str | None,
    background: bool,
    exit_when_idle: float | None,
) -> None:
    """Mount all registered repositories and keep them mounted.

    Serves until SIGTERM, SIGINT or SIGHUP, then unmounts cleanly; under nohup(1) it outlives its
    terminal. Logs JSON lines on stderr. Under
    systemd (Type=notify) it reports readiness and feeds the watchdog. One daemon serves one state
    root; several state roots can each have their own. One that `artifact-fs mount` or `add-repo`
    has started is not in the way: it is gone on with, and its mounts stay.

    \b
    Examples:
      artifact-fs daemon
      artifact-fs daemon --background
      artifact-fs daemon --root /srv/trees --log-level debug
      artifact-fs daemon --cache-limit 5G --metrics 127.0.0.1:9469
      artifact-fs --state-root /srv/state daemon 2>daemon.log &
      artifact-fs daemon stop
    """
    if context.invoked_subcommand is not None:
        return
    root = (mount_root or default_mount_root()).absolute()
    command = running.started_for()
    if command is not None and running.can_go_on(command, _only_at_the_start(context)):
        pid = running.take_over(root, log_level, cache_limit)
        running.tell_when_ready() if background else running.stay_with(pid, command)
        return
    if background:
        running.in_background(_options(context, root))
        running.tell_when_ready()
        return
    for name in TOKEN_VARIABLES:  # of add-repo: no program that we start needs them
        os.environ.pop(name, None)
    if disable is not None:
        os.environ[VARIABLE] = ",".join(sorted(disabled_features(disable)))  # for the workers
    if keep_cpus_awake:
        _check_latency_device()
    address = None
    if metrics:
        from artifactfs.daemon.supervisor.metrics import parse_address

        address = parse_address(metrics)
    from artifactfs.daemon.supervisor import forkserver

    started = forkserver.start(log_level)
    try:
        again = _serve(
            root,
            log_level,
            metrics=address,
            cache_limit=cache_limit,
            idle_s=exit_when_idle,
            keep_cpus_awake=keep_cpus_awake,
            hydration_concurrency=hydration_concurrency,
            fork_server=started,
        )
    finally:
        started.end_unless_used()
    if again is not None:
        os.execv(sys.executable, [sys.executable, *again])


def _only_at_the_start(context: click.Context) -> list[str]:
    """The options given here that a daemon that runs cannot take over; what the settings say, it
    was started with."""
    names = ("hydration_concurrency", "metrics", "keep_cpus_awake", "disable", "exit_when_idle")
    given = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    return [
        f"--{name.replace('_', '-')}"
        for name in names
        if context.get_parameter_source(name) in given
    ]


def _options(context: click.Context, root: Path) -> list[str]:
    """What a daemon in the background is started with: wherever a setting came from, it is kept."""
    options = ["--root", str(root)]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.name in ("mount_root", "background") or value in (None, False):
            continue
        options.append(parameter.opts[0])
        if value is not True:
            options.append(str(value))
    return options


def _serve(mount_root: Path, log_level: str, **options: Any) -> list[str] | None:
    """Run the supervisor; the arguments with which the daemon is to be started anew, if it is. What
    it imports is imported here, while the fork server loads its own modules."""
    import trio

    from artifactfs.daemon.host import logs
    from artifactfs.daemon.supervisor.supervisor import Supervisor

    logs.configure(log_level)
    supervisor = Supervisor(state(), mount_root, log_level, **options)
    if not trio.run(supervisor.run):
        return None
    arguments = sys.orig_argv[1:]
    if supervisor.adopted:  # it is the one that was asked for, not any more the one of `mount`
        begin = arguments.index("--exit-when-idle")
        arguments[begin : begin + 2] = ["--root", str(supervisor.mount_root)]
    return arguments


@daemon.command()
@click.option("--deadline", type=Duration(), default=90.0, help="How long to wait. [default: 90s]")
def stop(deadline: float) -> None:
    """Unmount everything and end the daemon; returns when it has ended.

    Under systemd, `systemctl stop artifact-fs` is the better way: it knows that it was meant.

    \b
    Examples:
      artifact-fs daemon stop
    """
    from artifactfs.doctor.liveness import daemon_holds_lock

    try:
        pid = _ask_to_end(again=False)
    except DaemonNotRunning:
        if not _stop_what_it_left(deadline):
            raise
        click.echo("the daemon had ended before; what it had mounted is unmounted")
        return
    _wait_until(lambda: not daemon_holds_lock(state()), deadline, f"the daemon (pid {pid}) ends")
    click.echo(f"the daemon (pid {pid}) has ended")


@daemon.command()
@click.option("--deadline", type=Duration(), default=90.0, help="How long to wait. [default: 90s]")
def restart(deadline: float) -> None:
    """Start the daemon anew with the same options, or the version that is installed now.

    Mounts stay, with the files that programs have open in them (Linux 6.9 and later; else they are
    made again).

    \b
    Examples:
      artifact-fs daemon restart
    """
    pid = _ask_to_end(again=True)
    began = time.monotonic()
    _wait_until(lambda: _uptime_s() < time.monotonic() - began, deadline, "the daemon starts again")
    click.echo(f"the daemon (pid {pid}) runs anew")


@daemon.command()
@json_option
def reload(as_json: bool) -> None:
    """Let the daemon take over log-level and cache-limit from the settings, without a restart.

    \b
    Examples:
      artifact-fs daemon reload
    """
    context = click.get_current_context().parent
    assert context is not None
    with connect_to_daemon() as client:
        answer = client.request(
            "reload",
            log_level=context.params["log_level"],
            cache_limit=context.params["cache_limit"],
        )
    if as_json:
        output.print_json(answer)
    else:
        click.echo(f"log level {answer['log_level']}; {len(answer['repos'])} mounts reached")


@daemon.command()
@click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl-C.")
@click.option("--lines", "-n", type=click.IntRange(min=0), default=50, show_default=True)
def logs(follow: bool, lines: int) -> None:
    """Show the log of a daemon that `artifact-fs mount` started, or that the service manager runs.

    \b
    Examples:
      artifact-fs daemon logs
      artifact-fs daemon logs --follow | jq -r .message
    """
    path = state().root / "daemon.log"
    options = ["-n", str(lines), *(["-f"] if follow else [])]
    if not path.exists() and shutil.which("journalctl") and Path("/run/systemd/system").exists():
        user = [] if os.geteuid() == 0 else ["--user"]
        os.execvp("journalctl", ["journalctl", *user, "-u", "artifact-fs", "-o", "cat", *options])
    if not path.exists():
        raise NotRegistered(
            f"there is no {path}", hint="a daemon that you started yourself logs to its stderr"
        )
    os.execvp("tail", ["tail", *options, str(path)])


def _stop_what_it_left(deadline_s: float) -> bool:
    """Unmount what a daemon that was killed has left to the next one; False where nothing is."""
    from artifactfs.daemon.supervisor.keeper import stop_kept

    path = state().keeper_socket
    if not stop_kept(path):
        return False
    _wait_until(lambda: not stop_kept(path), deadline_s, "its mounts end")
    return True


def _ask_to_end(*, again: bool) -> int:
    """The pid of the daemon that was asked. Raises: DaemonNotRunning."""
    with connect_to_daemon() as client:
        pid = int(client.request("ping")["pid"])
        with contextlib.suppress(DaemonError):  # it ends before it has answered
            client.request("end", again=again)
    return pid


def _uptime_s() -> float:
    """Of the daemon that answers; infinity while none does."""
    try:
        with connect_to_daemon() as client:
            return float(client.request("ping")["uptime_s"])
    except DaemonError:
        return math.inf


def _wait_until(happened: Callable[[], bool], deadline_s: float, what: str) -> None:
    end = time.monotonic() + deadline_s
    while not happened():
        if time.monotonic() > end:
            raise DaemonError(
                f"waited {deadline_s:.0f} s until {what}", hint="artifact-fs doctor looks why"
            )
        time.sleep(POLL_S)


def _check_latency_device() -> None:
    from artifactfs.errors import InvalidInput
    from artifactfs.fs.kernel.wakefulness import DEVICE

    try:
        os.close(os.open(DEVICE, os.O_WRONLY))
    except OSError as error:
        raise InvalidInput(
            f"--keep-cpus-awake: {DEVICE}: {error.strerror}",
            hint="run as root; under systemd, with DeviceAllow=/dev/cpu_dma_latency w",
        ) from None
