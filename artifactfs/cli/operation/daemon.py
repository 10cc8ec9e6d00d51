"""``artifact-fs daemon``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from artifactfs.cli.terminal.context import Duration, Size, state
from artifactfs.cli.terminal.remote_argument import TOKEN_VARIABLE
from artifactfs.features import VARIABLE, disabled_features
from artifactfs.paths import default_mount_root


@click.command()
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
    "--exit-when-idle",
    type=Duration(),
    help="End after so long without a mount and without a command. [default: never]",
)
def daemon(
    mount_root: Path | None,
    log_level: str,
    cache_limit: int | None,
    metrics: str | None,
    keep_cpus_awake: bool,
    disable: str | None,
    exit_when_idle: float | None,
) -> None:
    """Mount all registered repositories and keep them mounted.

    Serves until SIGTERM, SIGINT or SIGHUP, then unmounts cleanly; under nohup(1) it outlives its
    terminal. Logs JSON lines on stderr. Under
    systemd (Type=notify) it reports readiness and feeds the watchdog. One daemon serves one state
    root; several state roots can each have their own.

    \b
    Examples:
      artifact-fs daemon
      artifact-fs daemon --root /srv/trees --log-level debug
      artifact-fs daemon --cache-limit 5G --metrics 127.0.0.1:9469
      artifact-fs --state-root /srv/state daemon 2>daemon.log &
    """
    import trio

    from artifactfs.daemon.host import logs
    from artifactfs.daemon.supervisor.supervisor import Supervisor

    os.environ.pop(TOKEN_VARIABLE, None)  # of add-repo: no program that we start needs it
    logs.configure(log_level)
    if disable is not None:
        os.environ[VARIABLE] = ",".join(sorted(disabled_features(disable)))  # for the workers
    if keep_cpus_awake:
        _check_latency_device()
    root = (mount_root or default_mount_root()).absolute()
    address = None
    if metrics:
        from artifactfs.daemon.supervisor.metrics import parse_address

        address = parse_address(metrics)
    supervisor = Supervisor(
        state(),
        root,
        log_level,
        metrics=address,
        cache_limit=cache_limit,
        idle_s=exit_when_idle,
        keep_cpus_awake=keep_cpus_awake,
    )
    trio.run(supervisor.run)


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
