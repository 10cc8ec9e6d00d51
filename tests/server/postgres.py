"""A PostgreSQL of our own for the tests: in memory, without syncing, gone with the process."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

import psycopg

_PLACES = ("/usr/lib/postgresql",)
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "listen_addresses": "''",
    "shared_buffers": "16MB",
    "max_connections": "200",
    "autovacuum": "off",
    "timezone": "UTC",
}


def programs() -> Path | None:
    """Where ``initdb`` and ``pg_ctl`` are; None where PostgreSQL is not installed."""
    found = [path.parent for place in _PLACES for path in Path(place).glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda path: int(path.parent.name))
    plain = shutil.which("initdb")
    return Path(plain).resolve().parent if plain else None


class PostgresServer:
    """One cluster of databases on a Unix socket."""

    def __init__(self) -> None:
        there = programs()
        assert there is not None
        self._programs = there
        room = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.root = Path(tempfile.mkdtemp(prefix="artifacts-postgres.", dir=room))
        self.data = self.root / "data"
        # As root it refuses to run: somebody else has to.
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user is not None:
            entry = pwd.getpwnam(self._user)
            os.chown(self.root, entry.pw_uid, entry.pw_gid)
        self._run("initdb", "--auth=trust", "--no-sync", "--username=artifacts", "--locale=C.UTF-8")
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in _SETTINGS.items())
            file.write(f"unix_socket_directories = '{self.root}'\n")
        self.start()

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [self._programs / program, "-D", self.data, *words],
            user=self._user,
            group=self._user,
            extra_groups=[] if self._user else None,
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=(self.root.parent / f"{self.root.name}.out").open("a"),
            stderr=subprocess.STDOUT,
            check=False,
        )
        assert done.returncode == 0, f"{program} ended with {done.returncode}"

    def start(self) -> None:
        self._run("pg_ctl", "-w", "-l", str(self.root / "log"), "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    def url(self, name: str) -> str:
        return f"postgresql://artifacts@/{name}?host={self.root}"

    def connect(self, name: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(self.url(name), autocommit=True)

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"t{uuid.uuid4().hex}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.root, ignore_errors=True)
        (self.root.parent / f"{self.root.name}.out").unlink(missing_ok=True)
