"""``artifacts-server``: serve, and administrate a data folder."""

from __future__ import annotations

import logging
import os
import resource
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import click
import trio

from artifactfs.errors import ArtifactFSError, InvalidInput, StateError
from artifactfs.redact import redact
from artifactfs.server.commands.admin import COMMANDS
from artifactfs.server.commands.options import Size, data_option, database_option, layout_of
from artifactfs.server.commands.tokens import token
from artifactfs.server.storage.settings import Limits, NameRule, ServerSettings
from artifactfs.streams import leave, open_standard_streams

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

log = logging.getLogger(__name__)


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


_HELP: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""No command, of click 8.2 and later: that is no error."""

_EXTRA = "the server has requirements of its own: pip install 'artifactfs[server]'"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "-V", "--version", package_name="artifactfs")
def cli() -> None:
    """A Git server for agents: thousands of small repositories, forks, short-lived tokens."""


def main() -> NoReturn:
    """The console command. Errors are ``error: …`` and ``hint: …``, one line each."""
    open_standard_streams()
    leave(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit status."""
    try:
        cli.main(arguments, "artifacts-server", standalone_mode=False)
    except ArtifactFSError as error:
        return _report(error.message, error.hint, error.exit_code)
    except click.UsageError as error:
        if isinstance(error, _HELP):
            click.echo(error.format_message())
            return 0
        path = error.ctx.command_path if error.ctx else "artifacts-server"
        return _report(error.format_message(), f"see {path} --help", 2)
    except click.ClickException as error:
        return _report(error.format_message(), None, error.exit_code)
    except ModuleNotFoundError as error:
        return _report(f"{error.name} is not installed", _EXTRA, StateError.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _report("interrupted", None, 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody reads: not worth a message
        return 141
    except OSError as error:
        what = error.strerror or str(error)
        return _report(f"{error.filename}: {what}" if error.filename else what, None, 1)
    return 0


def _report(message: str, hint: str | None, exit_code: int) -> int:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)
    return exit_code


F = TypeVar("F", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_COUNT = click.IntRange(min=1)
_SECONDS = click.FloatRange(min=0, min_open=True)


_LIMITS = Limits()


def _bound(
    name: str, kind: click.ParamType[Any], default: float | str | None, text: str
) -> Callable[[F], F]:
    return click.option(name, type=kind, default=default, show_default=True, help=text)


def parse_listen(text: str) -> tuple[str, int]:
    """HOST:PORT, [IPv6]:PORT or :PORT. Raises: InvalidInput."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535:
        raise InvalidInput(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def check_origin(url: str) -> str:
    """An origin such as https://host:port, with a path if a proxy has one. Raises: InvalidInput."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise InvalidInput(f"{url!r} is not an origin such as https://git.example.org")
    return url


def check_cors_origin(text: str) -> str:
    """``*``, or an origin without a path: it is compared as it is. Raises: InvalidInput."""
    parts = urlsplit(text)
    if text != "*" and (not parts.scheme or not parts.netloc or parts.path.strip("/")):
        raise InvalidInput(f"{text!r} is not an origin such as https://app.example.org, nor '*'")
    return text


def _allow_many_files() -> None:
    """A connection is a file or more: the usual 1,024 would be few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except OSError:
        log.warning("setrlimit is not permitted: the memory of git processes is not bounded")


@cli.command()
@data_option
@database_option
@click.option("--listen", default="127.0.0.1:8080", show_default=True, help="HOST:PORT.")
@click.option("--public-url", help="Origin in the remotes handed out, e.g. behind a proxy.")
@click.option("--tls-cert", type=_FILE, help="PEM file: the certificate, and those above it.")
@click.option("--tls-key", type=_FILE, help="PEM file: its key.")
@click.option(
    "--names",
    type=click.Choice([rule.value for rule in NameRule]),
    default=NameRule.DEFAULT.value,
    show_default=True,
    help="Which names repositories and namespaces may have.",
)
@click.option("--access-log", type=click.Path(path_type=Path), help="One JSON line a request.")
@click.option("--log-oids", is_flag=True, help="List the wanted oids in the access log.")
@click.option("--log-level", default="info", type=click.Choice(["debug", "info", "warning"]))
@click.option("--allow-private-networks", is_flag=True, help="Import from private addresses.")
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    metavar="ORIGIN",
    help="Pages of that origin may use the REST and Git routes; '*': all. Can be repeated.",
)
@_bound("--stop-timeout", _SECONDS, 30.0, "Seconds that transfers may go on after SIGTERM.")
@_bound("--drain-time", click.FloatRange(min=0), 0.0, "Seconds of requests after SIGTERM.")
@_bound("--max-requests", _COUNT, _LIMITS.control_requests, "Control plane requests in 10 s.")
@_bound("--max-git-requests", _COUNT, _LIMITS.git_requests, "Git requests in 10 s and namespace.")
@_bound(
    "--max-repo-bytes", Size(), f"{_LIMITS.repo_bytes >> 30}G", "Size of a repository, such as 10G."
)
@_bound("--max-account-bytes", Size(), f"{_LIMITS.account_bytes >> 30}G", "Size of an account.")
@_bound("--max-git-processes", _COUNT, None, "At the same time.  [8 for each core]")
@_bound("--max-git-memory", Size(), f"{_LIMITS.git_memory_bytes >> 30}G", "Of one git process.")
@_bound("--git-time-limit", _SECONDS, _LIMITS.git_time_s, "Seconds for one Git request.")
@_bound("--client-timeout", _SECONDS, _LIMITS.client_idle_s, "Seconds a silent client has.")
def serve(
    data: Path,
    database: URL | None,
    listen: str,
    public_url: str | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    names: str,
    access_log: Path | None,
    log_oids: bool,
    log_level: str,
    allow_private_networks: bool,
    cors_origins: tuple[str, ...],
    stop_timeout: float,
    drain_time: float,
    max_requests: int,
    max_git_requests: int,
    max_repo_bytes: int,
    max_account_bytes: int,
    max_git_processes: int | None,
    max_git_memory: int,
    git_time_limit: float,
    client_timeout: float,
) -> None:
    """Serve the data folder until SIGTERM.

    \b
    artifacts-server serve --data ./data --listen 127.0.0.1:8080
    """
    from artifactfs.server.connections import listen as open_sockets
    from artifactfs.server.connections import tls_context
    from artifactfs.server.service import run_server
    from artifactfs.server.storage.open_marks import locked

    if (tls_cert is None) != (tls_key is None):
        raise InvalidInput("--tls-cert and --tls-key go together")
    handler = logging.StreamHandler()
    handler.setFormatter(_Redacting("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=log_level.upper(), handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)
    _allow_many_files()
    host, port = parse_listen(listen)
    layout = layout_of(data)
    settings = ServerSettings(
        layout=layout,
        database=database,
        public_url=None if public_url is None else check_origin(public_url),
        names=NameRule(names),
        limits=Limits(
            control_requests=max_requests,
            git_requests=max_git_requests,
            repo_bytes=max_repo_bytes,
            account_bytes=max_account_bytes,
            git_processes=max_git_processes or _LIMITS.git_processes,
            git_memory_bytes=max_git_memory,
            git_time_s=git_time_limit,
            client_idle_s=client_timeout,
        ),
        allow_private_networks=allow_private_networks,
        access_log=access_log,
        log_oids=log_oids,
        cors_origins=tuple(check_cors_origin(origin) for origin in cors_origins),
        drain_s=drain_time,
        stop_s=stop_timeout,
        secure_cookies=tls_cert is not None or (public_url or "").startswith("https://"),
    )
    with nullcontext() if database is not None else locked(layout):
        try:
            sockets = open_sockets(host, port)
        except OSError as error:
            raise StateError(f"cannot listen on {listen}: {error.strerror or error}") from error
        tls = tls_context(tls_cert, tls_key) if tls_cert and tls_key else None
        scheme = "http" if tls is None else "https"

        def ready(has_tokens: bool) -> None:
            for sock in sockets:
                address = sock.getsockname()
                shown = f"[{address[0]}]" if ":" in address[0] else address[0]
                click.echo(f"listening on {scheme}://{shown}:{address[1]}")
            if not has_tokens:
                click.echo("no API token yet; make the first one with:")
                click.echo(f"  artifacts-server token create --data {data}")
            sys.stdout.flush()

        trio.run(partial(run_server, settings, sockets, tls=tls, ready=ready))


for _command in (token, *COMMANDS):
    cli.add_command(_command)


if __name__ == "__main__":
    main()
