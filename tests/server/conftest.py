"""Fixtures: the server that most tests share, servers of one's own, git, a working tree."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from artifactfs.server.metadata.database import Database
from artifactfs.server.metadata.migrations import event_migrations, metadata_migrations
from artifactfs.server.metadata.postgres import Postgres
from artifactfs.server.metadata.sqlite import SQLite
from tests.git.sample_repository import no_detached_maintenance
from tests.server.postgres import PostgresServer, programs
from tests.server.running import Git, Server, ServerFactory, git_environment


def _git(home: Path, cwd: Path, words: list[str], *, fails: bool) -> str:
    done = subprocess.run(
        words, cwd=cwd, env=git_environment(home), capture_output=True, text=True, check=False
    )
    assert (done.returncode != 0) is fails, (words, done.stdout, done.stderr)
    return done.stderr if fails else done.stdout


@pytest.fixture
def git(tmp_path: Path) -> Git:
    """Run git; its stdout. With ``fails=True`` it must fail, and its stderr is returned."""
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)

    def run(*arguments: str | Path, cwd: Path | None = None, fails: bool = False) -> str:
        return _git(home, cwd or tmp_path, ["git", *map(str, arguments)], fails=fails)

    return run


@pytest.fixture(scope="session")
def _work_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("model") / "work"
    (tree / "src").mkdir(parents=True)
    (tree / "README.md").write_text("# Demo\n")
    (tree / "src" / "app.py").write_text("print('one')\n")
    (tree / "run.sh").write_text("#!/bin/sh\necho hi\n")
    (tree / "run.sh").chmod(0o755)
    (tree / "link").symlink_to("README.md")

    def git(*words: str) -> None:
        _git(tree.parent, tree, ["git", *words], fails=False)

    git("init", "-q", "-b", "main")
    no_detached_maintenance(tree)
    git("add", "-A")
    git("commit", "-q", "-m", "First")
    (tree / "src" / "app.py").write_text("print('two')\n")
    git("commit", "-q", "-a", "-m", "Second\n\nWith a body.")
    return tree


@pytest.fixture
def work(tmp_path: Path, _work_model: Path) -> Path:
    """A working tree with two commits on main."""
    shutil.copytree(_work_model, tmp_path / "work", symlinks=True)
    return tmp_path / "work"


@pytest.fixture
def start_server(
    tmp_path: Path, engine: str, request: pytest.FixtureRequest
) -> Iterator[ServerFactory]:
    """Start servers of one's own, with options; all are stopped at the end."""
    started: list[Server] = []

    def start(*options: str) -> Server:
        root = tmp_path / f"server{len(started)}"
        root.mkdir(exist_ok=True)
        server = Server(root, list(options), database=_new_database(engine, request))
        started.append(server)
        if server.database is not None:
            server.command("migrate")
        return server.start()

    yield start
    for server in started:
        if server.process is not None:
            server.kill()


def _new_database(engine: str, request: pytest.FixtureRequest) -> str | None:
    if engine == "sqlite":
        return None
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture(scope="session")
def _shared_servers() -> Iterator[dict[str, Server]]:
    servers: dict[str, Server] = {}
    yield servers
    for server in servers.values():
        if server.process is not None:
            server.kill()


def _balanced(root: Path, folder: Path) -> Server:
    """The servers of ``scripts/cluster --root root`` as one."""
    config = (root / "haproxy.cfg").read_text()
    made = Server(folder, database=f"postgresql://artifacts@/artifacts?host={root}/postgres")
    made.shared_data = root / "mnt1" / "data"
    made.url = f"http://{config.partition('bind ')[2].split()[0]}"
    made.api_token = made.make_token()
    return made


@pytest.fixture
def server(
    _shared_servers: dict[str, Server],
    engine: str,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Server:
    """The server that most tests share, one of each engine; each test uses names of its own."""
    if engine not in _shared_servers:
        root = tmp_path_factory.mktemp("server")
        if engine == "cluster":
            _shared_servers[engine] = _balanced(Path(os.environ[CLUSTER]), root)
            return _shared_servers[engine]
        database = _new_database(engine, request)
        made = Server(root, ["--allow-private-networks"], database=database)
        if database is not None:
            made.command("migrate")
        _shared_servers[engine] = made.start()
    return _shared_servers[engine]


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A repository name that no other test uses."""
    text = request.node.name.removeprefix("test_").lower()
    cleaned = "".join(c if c.isalnum() else "-" for c in text).strip("-")
    return f"{cleaned[:40]}-{os.urandom(3).hex()}"


@pytest.fixture(scope="session")
def _postgres_or_none() -> Iterator[PostgresServer | None]:
    if programs() is None:
        yield None
        return
    server = PostgresServer()
    yield server
    server.remove()


@pytest.fixture
def postgres(_postgres_or_none: PostgresServer | None) -> PostgresServer:
    """A running PostgreSQL that the tests of this process share."""
    if _postgres_or_none is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    return _postgres_or_none


ON_BOTH = ("jobs", "storage", "events", "metadata", "cluster")
"""Rooms whose tests are run on both engines each time; those of others with ``-m long``."""
CLUSTER = "ARTIFACTS_TEST_CLUSTER"
"""Where it names the folder of a running ``scripts/cluster``, tests that need a server run on that
alone: for what clients see, not for tests that look into its log or its data."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" not in metafunc.fixturenames:
        return
    if metafunc.definition.get_closest_marker("files") is not None:
        metafunc.parametrize("engine", ["sqlite"], indirect=True)
        return
    if CLUSTER in os.environ:
        metafunc.parametrize("engine", ["cluster"], indirect=True)
        return
    often = metafunc.definition.path.parent.name in ON_BOTH
    marks = () if often else (pytest.mark.long,)
    engines = ["sqlite", pytest.param("postgresql", marks=marks)]
    metafunc.parametrize("engine", engines, indirect=True)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> str:
    """Where a test with databases runs: on each engine that is to be had."""
    return str(request.param)


@pytest.fixture
def database(engine: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Database]:
    """An empty database with all tables, once of each engine."""
    made: Database
    if engine == "sqlite":
        made = SQLite(tmp_path / "all.db", metadata_migrations)
        made.write(event_migrations.apply)
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        url = make_url(server.new_database())
        made = Postgres(url, metadata_migrations, event_migrations, migrate=True)
    yield made
    made.close()
