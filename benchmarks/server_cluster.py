"""Several servers under load while one after another gets SIGKILL; and one process beside them.

    scripts/cluster --root DIR && python benchmarks/server_cluster.py --cluster DIR
    python benchmarks/server_cluster.py --alone DIR           # one process with SQLite in DIR
    python benchmarks/server_cluster.py --cluster DIR --away 30   # PostgreSQL stopped for 30 s

Phases, one after another: creates, pushers to one branch (all from the same commit: one may win
each round), forks, clones. What fails is tried again, as clients do, and counted. At the end every
commit whose push was acknowledged must be in the branch, and `fsck` looks at all. The full size
(--creates 10000 --rounds 30 --forks 200 --clones 500) takes about half an hour on two cores. Start
the servers with CLUSTER_SERVE_OPTIONS="--max-requests 1000000 --max-git-requests 1000000", so that
their limits are not what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.server.running import SERVER, git_environment, with_token

_GIVE_UP_S = 120.0


@dataclass
class Target:
    """Servers behind one address. `pids`: files with the processes that may be killed."""

    url: str
    token: str
    pids: list[Path]
    healths: list[str]
    fsck: list[str]
    environment: dict[str, str]


@dataclass
class Killer:
    """Kills one server after another; notes when each is ready again. `recovered`: seconds."""

    target: Target
    every_s: float
    recovered: list[float] = field(default_factory=list)
    kills: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self._stop.wait(self.every_s):
            number = self.kills % len(self.target.pids)
            with suppress(OSError, ValueError):
                os.kill(int(self.target.pids[number].read_text()), signal.SIGKILL)
            self.kills += 1
            started = time.monotonic()
            while not self._stop.wait(0.1):
                if _ready(self.target.healths[number]):
                    self.recovered.append(time.monotonic() - started)
                    break

    def stop(self) -> None:
        self._stop.set()


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz/ready", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


class Load:
    """The clients."""

    def __init__(self, target: Target, work: Path, at_once: int) -> None:
        self.target = target
        self.work = work
        self.failed: Counter[str] = Counter()
        self.waits: list[float] = []
        self._pool = ThreadPoolExecutor(at_once)
        self._at_once = at_once
        self.http = httpx.Client(
            base_url=f"{target.url}/v1/api/namespaces/load",
            headers={"Authorization": f"Bearer {target.token}"},
            timeout=30,
        )
        self.environment = git_environment(work / "home")

    def many(self, count: int, what: Callable[[int], None]) -> float:
        """Do it `count` times, some at once; the seconds of all."""
        started = time.monotonic()
        for done in [self._pool.submit(what, number) for number in range(count)]:
            done.result()
        return time.monotonic() - started

    def insist(self, phase: str, attempt: Callable[[], bool]) -> None:
        """Try until it is done; each failure counts."""
        started = time.monotonic()
        while not attempt():
            self.failed[phase] += 1
            if time.monotonic() - started > _GIVE_UP_S:
                raise RuntimeError(f"{phase}: nothing for {_GIVE_UP_S} s")
            time.sleep(0.5)
        self.waits.append(time.monotonic() - started)

    def post(self, phase: str, path: str, body: dict[str, object]) -> dict[str, object]:
        """The result; {} where an earlier attempt had been taken without an answer."""
        found: dict[str, object] = {}

        def attempt() -> bool:
            try:
                answer = self.http.post(path, json=body)
            except httpx.HTTPError:
                return False
            if answer.status_code == 409 and "already exists" in answer.text:
                return True
            if answer.is_success:
                found.update(answer.json()["result"])
            return answer.is_success

        self.insist(phase, attempt)
        return found

    def git(self, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", *words],
            cwd=cwd or self.work,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def token_of(self, name: str) -> str:
        return str(self.post("token", "/tokens", {"repo": name, "scope": "write"})["plaintext"])

    def remote(self, name: str) -> str:
        return with_token(f"{self.target.url}/git/load/{name}.git", self.token_of(name))


def seed(load: Load, name: str) -> str:
    """A repository with one commit and a few megabytes; its remote."""
    load.post("seed", "/repos", {"name": name})
    tree = load.work / name
    load.git("init", "-q", "-b", "main", str(tree))
    for number in range(40):
        (tree / f"file{number}").write_bytes(os.urandom(50_000))
    load.git("add", "-A", cwd=tree)
    load.git("commit", "-q", "-m", "Seed", cwd=tree)
    remote = load.remote(name)
    load.insist("seed", lambda: load.git("push", "-q", remote, "main", cwd=tree).returncode == 0)
    return remote


def race(load: Load, remote: str, name: str, pushers: int, rounds: int) -> dict[str, object]:
    """All push a commit on the same parent; at most one is told that it won."""
    trees = [load.work / f"pusher{number}" for number in range(pushers)]
    for tree in trees:
        load.git("clone", "-q", str(load.work / name), str(tree))
    acknowledged: list[str] = []
    double = nobody = 0
    refused = ("non-fast-forward", "fetch first", "[rejected]", "failed to update", "cannot lock")

    def tip() -> str:
        lines = [""]

        def ask() -> bool:
            done = load.git("ls-remote", remote, "refs/heads/main")
            lines[0] = done.stdout
            return done.returncode == 0

        load.insist("ls-remote", ask)
        return lines[0].split("\t")[0]

    def push(worker: int, number: int, base: str) -> str | None:
        tree = trees[worker]
        load.insist(
            "fetch", lambda: load.git("fetch", "-q", remote, "main", cwd=tree).returncode == 0
        )
        load.git("reset", "-q", "--hard", base, cwd=tree)
        load.git("commit", "-q", "--allow-empty", "-m", f"{number}.{worker}", cwd=tree)
        done = load.git("push", "-q", remote, "HEAD:main", cwd=tree)
        if done.returncode == 0:
            return load.git("rev-parse", "HEAD", cwd=tree).stdout.strip()
        if not any(text in done.stderr for text in refused):
            load.failed["push"] += 1
            print(done.stderr.strip()[-300:], file=sys.stderr)
        return None

    for number in range(rounds):
        base = tip()
        with ThreadPoolExecutor(pushers) as pool:
            jobs = [pool.submit(push, worker, number, base) for worker in range(pushers)]
            winners = [won for job in jobs if (won := job.result())]
        acknowledged += winners
        double += len(winners) > 1
        nobody += not winners
    final = load.work / "final"
    load.insist(
        "clone", lambda: load.git("clone", "-q", "--bare", remote, str(final)).returncode == 0
    )
    lost = [
        commit
        for commit in acknowledged
        if load.git("merge-base", "--is-ancestor", commit, "main", cwd=final).returncode != 0
    ]
    return {
        "rounds": rounds,
        "acknowledged": len(acknowledged),
        "lost": len(lost),
        "rounds_with_two_winners": double,
        "rounds_without_winner": nobody,
    }


def measure(target: Target, work: Path, options: argparse.Namespace) -> dict[str, object]:
    load = Load(target, work, options.at_once)
    remote = seed(load, "source")
    killer = Killer(target, options.kill_every)
    thread = threading.Thread(target=killer.run)
    if options.kill_every:
        thread.start()
    found: dict[str, object] = {}
    try:
        seconds = load.many(
            options.creates, lambda n: void(load.post("create", "/repos", {"name": f"repo-{n:05}"}))
        )
        found["creates"] = {"count": options.creates, "seconds": round(seconds, 1)}
        print(json.dumps(found), file=sys.stderr)
        found["pushes"] = race(load, remote, "source", options.pushers, options.rounds)
        print(json.dumps(found), file=sys.stderr)
        seconds = load.many(
            options.forks,
            lambda n: void(load.post("fork", "/repos/source/fork", {"name": f"fork-{n:05}"})),
        )
        found["forks"] = {"count": options.forks, "seconds": round(seconds, 1)}

        def clone(number: int) -> None:
            place = str(work / f"clone{number}")
            load.insist(
                "clone", lambda: load.git("clone", "-q", "--bare", remote, place).returncode == 0
            )
            subprocess.run(["rm", "-rf", place], check=False)

        seconds = load.many(options.clones, clone)
        found["clones"] = {"count": options.clones, "seconds": round(seconds, 1)}
    finally:
        killer.stop()
        if options.kill_every:
            thread.join()
    time.sleep(3 if options.kill_every == 0 else 20)  # what killed servers left is taken over
    found["failed_requests"] = dict(load.failed)
    found["longest_wait_s"] = round(max(load.waits), 1)
    found["kills"] = killer.kills
    if killer.recovered:
        found["ready_again_s"] = {
            "median": round(statistics.median(killer.recovered), 1),
            "most": round(max(killer.recovered), 1),
        }
    done = subprocess.run(
        target.fsck, env=target.environment, capture_output=True, text=True, check=False
    )
    found["fsck"] = done.stdout.strip().splitlines()[-1:] + done.stderr.splitlines()[:5]
    return found


def void(_: object) -> None:
    pass


def away(root: Path, target: Target, work: Path, seconds: float) -> dict[str, object]:
    """PostgreSQL is stopped while clients ask, and started."""
    load = Load(target, work, 4)
    remote = seed(load, f"away-{os.getpid()}")
    answers: Counter[str] = Counter()

    def ask() -> bool:
        try:
            answer = load.http.get("/repos", timeout=10)
        except httpx.HTTPError as error:
            answers[type(error).__name__] += 1
            return False
        shaped = "retry-after" in answer.headers and '"errors"' in answer.text
        answers[f"{answer.status_code}{' as the API says it' if shaped else ''}"] += 1
        return answer.is_success

    _postgres(root, "stop", "-m", "immediate")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ask()
        time.sleep(0.5)
    refused = load.git("ls-remote", remote).returncode
    _postgres(root, "start", "-l", str(root / "postgres" / "log"))
    started = time.monotonic()
    while not (ask() and load.git("ls-remote", remote).returncode == 0):
        time.sleep(0.1)
    back = time.monotonic() - started
    while not all(_ready(url) for url in target.healths):
        time.sleep(0.1)
    every = time.monotonic() - started
    return {
        "answers": dict(answers),
        "git_refused": refused != 0,
        "served_again_s": round(back, 1),
        "all_ready_s": round(every, 1),
    }


def _postgres(root: Path, *words: str) -> None:
    program = max(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    user = "postgres" if os.geteuid() == 0 else None
    subprocess.run(
        [program, "-D", root / "postgres" / "data", "-w", *words],
        user=user,
        group=user,
        extra_groups=[] if user else None,
        cwd="/",
        stdout=subprocess.DEVNULL,
        check=True,
    )


def cluster(root: Path) -> Target:
    config = (root / "haproxy.cfg").read_text()
    port = config.partition("bind ")[2].split()[0]
    servers = sorted(root.glob("server*.pid"))
    addresses = [f"http://{line.split()[2]}" for line in config.splitlines() if " server s" in line]
    environment = {
        **os.environ,
        "ARTIFACTS_DATABASE": f"postgresql://artifacts@/artifacts?host={root}/postgres",
    }
    return Target(
        f"http://{port}",
        (root / "token").read_text().strip(),
        servers,
        addresses,
        [*SERVER, "fsck", "--data", str(root / "mnt1" / "data")],
        environment,
    )


class Keeper:
    """Starts one server again when it was killed, as a service manager does."""

    def __init__(self, root: Path, port: int) -> None:
        self.root = root
        self._words = [
            *[*SERVER, "serve", "--data", str(root / "data"), "--listen", f"127.0.0.1:{port}"],
            *["--max-requests", "1000000", "--max-git-requests", "1000000"],
        ]
        self.ended = False
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        while not self.ended:
            with (self.root / "server.log").open("a") as log:
                self._process = subprocess.Popen(self._words, stdout=log, stderr=log)
            (self.root / "server.pid").write_text(str(self._process.pid))
            self._process.wait()
            time.sleep(1)

    def stop(self) -> None:
        self.ended = True
        self._process.terminate()
        self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cluster", type=Path, help="the folder of scripts/cluster")
    parser.add_argument("--alone", type=Path, help="an empty folder for one server")
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/artifacts-load"))
    parser.add_argument("--creates", type=int, default=10_000)
    parser.add_argument("--pushers", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--forks", type=int, default=200)
    parser.add_argument("--clones", type=int, default=500)
    parser.add_argument("--at-once", type=int, default=20)
    parser.add_argument("--kill-every", type=float, default=10.0, help="seconds; 0: never")
    parser.add_argument("--away", type=float, help="stop PostgreSQL for so many seconds")
    options = parser.parse_args()
    if (options.cluster is None) == (options.alone is None):
        parser.error("--cluster or --alone")
    work = options.work / str(os.getpid())
    (work / "home").mkdir(parents=True)
    try:
        if options.cluster is not None and options.away:
            root = options.cluster.resolve()
            found = away(root, cluster(root), work, options.away)
        elif options.cluster is not None:
            found = measure(cluster(options.cluster.resolve()), work, options)
        else:
            found = alone(options.alone.resolve(), work, options)
    finally:
        subprocess.run(["rm", "-rf", str(work)], check=False)
    print(json.dumps(found, indent=2))


def alone(root: Path, work: Path, options: argparse.Namespace) -> dict[str, object]:
    root.mkdir(parents=True, exist_ok=True)
    port = 8190
    data = ["--data", str(root / "data")]
    token = subprocess.run(
        [*SERVER, "token", "create", "-q", *data], capture_output=True, text=True, check=True
    ).stdout.strip()
    keeper = Keeper(root, port)
    url = f"http://127.0.0.1:{port}"
    try:
        while not _ready(url):
            time.sleep(0.2)
        target = Target(
            url, token, [root / "server.pid"], [url], [*SERVER, "fsck", *data], dict(os.environ)
        )
        return measure(target, work, options)
    finally:
        keeper.stop()


if __name__ == "__main__":
    main()
