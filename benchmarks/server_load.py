"""The server under load, on the loopback: many repositories, many forks, many clones at once.

    python benchmarks/server_load.py [--repos 1000] [--forks 200] [--clones 50] [--nginx]

With ``--nginx`` the same clones also run against ``git http-backend`` behind nginx and fcgiwrap
(Debian packages nginx-light and fcgiwrap), for the ratio.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.server.running import Server, git_environment, with_token

NGINX = """\
worker_processes 2; pid {root}/nginx.pid; error_log {root}/error.log; daemon off;
events {{ worker_connections 512; }}
http {{
  access_log off; client_max_body_size 0;
  client_body_temp_path {root}/body; fastcgi_temp_path {root}/fcgi;
  proxy_temp_path {root}/proxy; uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      fastcgi_pass unix:{root}/fcgi.sock;
      fastcgi_param SCRIPT_FILENAME /usr/lib/git-core/git-http-backend;
      fastcgi_param GIT_HTTP_EXPORT_ALL 1;
      fastcgi_param GIT_PROJECT_ROOT {root}/repos;
      fastcgi_param GIT_PROTOCOL $http_git_protocol;
      fastcgi_param PATH_INFO $uri;
      fastcgi_param QUERY_STRING $query_string;
      fastcgi_param REQUEST_METHOD $request_method;
      fastcgi_param CONTENT_TYPE $content_type;
      fastcgi_param CONTENT_LENGTH $content_length;
      fastcgi_param HTTP_CONTENT_ENCODING $http_content_encoding;
    }}
  }}
}}
"""


class PeakMemory:
    """The highest sum of RSS of a process and everything below it, in MiB, while it runs."""

    def __init__(self, *roots: int) -> None:
        self._roots = roots
        self._stop = threading.Event()
        self.own = 0.0
        self.all = 0.0
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            own = sum(_rss(pid) for pid in self._roots)
            self.own = max(self.own, own)
            self.all = max(self.all, own + sum(_rss(pid) for pid in _below(set(self._roots))))


def _rss(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20
    except (OSError, IndexError):
        return 0.0


def _below(roots: set[int]) -> set[int]:
    parents: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                stat = Path(entry.path, "stat").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found: set[int] = set()
    while True:
        more = {p for p, parent in parents.items() if parent in roots | found} - found
        if not more:
            return found
        found |= more


def disk_bytes(data: Path) -> int:
    """Bytes on disk below repos and pools, each inode once."""
    seen = {}
    for folder, _, files in itertools.chain(*(os.walk(data / part) for part in ("repos", "pools"))):
        for file in files:
            status = os.stat(os.path.join(folder, file))
            seen[status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def create_and_list(server: Server, count: int) -> None:
    assert server.process is not None
    with PeakMemory(server.process.pid) as memory, server.client() as client:
        url = f"{server.base}/namespaces/many/repos"

        def create_all() -> None:
            for number in range(count):
                client.post(url, json={"name": f"repo-{number:05}"}).raise_for_status()

        def list_all() -> None:
            seen, cursor = 0, None
            while True:
                params = {"limit": 200, **({"cursor": cursor} if cursor else {})}
                page = client.get(url, params=params).raise_for_status().json()
                seen += len(page["result"])
                cursor = page["result_info"]["cursor"]
                if not cursor:
                    break
            assert seen == count

        print(f"create {count} repositories: {timed(create_all):.2f} s")
        print(f"list them in pages of 200: {timed(list_all):.3f} s")
    print(f"  peak memory of the server: {memory.own:.0f} MiB")


def make_big(root: Path, environment: dict[str, str], mib: int) -> Path:
    """A repository with `mib` MiB of random data, and a tree of small files with history."""
    work = root / "big"
    git = ["git", "-C", str(work)]
    subprocess.run(["git", "init", "-q", "-b", "main", str(work)], check=True, env=environment)
    for number in range(mib):
        (work / f"data{number:03}.bin").write_bytes(os.urandom(2**20))
    for folder in range(60):
        (work / f"dir{folder}").mkdir()
        for file in range(30):
            (work / f"dir{folder}" / f"file{file}.txt").write_text(f"{folder} {file}\n" * 40)
    for commit in range(200):
        (work / f"dir{commit % 60}" / "file0.txt").write_text(f"commit {commit}\n" * 50)
        subprocess.run([*git, "add", "-A"], check=True, env=environment)
        words = [*git, "commit", "-q", "-m", f"Commit {commit}"]
        subprocess.run(words, check=True, env=environment)
    return work


def fork_many(server: Server, parent: str, count: int) -> None:
    assert server.process is not None
    before = disk_bytes(server.data)
    with PeakMemory(server.process.pid) as memory, server.client() as client:
        url = f"{server.base}/namespaces/team/repos/{parent}/fork"

        def fork_all() -> None:
            for number in range(count):
                client.post(url, json={"name": f"fork-{number:04}"}).raise_for_status()

        seconds = timed(fork_all)
    grown = (disk_bytes(server.data) - before) / 1e6
    print(f"{count} forks of {before / 1e6:.0f} MB: {seconds:.2f} s, {grown:.1f} MB of new disk")
    print(f"  peak memory: server {memory.own:.0f} MiB, with git {memory.all:.0f} MiB")


def clone_many(remote: str, root: Path, environment: dict[str, str], count: int) -> float:
    """`count` blobless clones at once; seconds until the last is done."""

    def clone(number: int) -> None:
        words = ["git", "clone", "-q", "--filter=blob:none", "--no-checkout"]
        subprocess.run([*words, remote, root / f"c{number}"], check=True, env=environment)

    root.mkdir()
    try:
        with ThreadPoolExecutor(count) as pool:
            return timed(lambda: list(pool.map(clone, range(count))))
    finally:
        shutil.rmtree(root)


@contextmanager
def nginx(root: Path, source: Path, port: int) -> Iterator[tuple[str, int, int]]:
    """``git http-backend`` behind nginx: the remote, and the two process ids."""
    (root / "repos").mkdir(parents=True)
    bare = root / "repos" / "big.git"
    shutil.copytree(source, bare)
    settings = {"uploadpack.allowFilter": "true", "uploadpack.allowAnySHA1InWant": "true"}
    for key, value in settings.items():
        subprocess.run(["git", "-C", bare, "config", key, value], check=True)
    (root / "nginx.conf").write_text(NGINX.format(root=root, port=port))
    for directory in (root.parent, root):
        directory.chmod(0o755)
    wrapper = subprocess.Popen(
        ["fcgiwrap", "-c", "16", "-s", f"unix:{root / 'fcgi.sock'}"],
        env={"PATH": os.environ["PATH"], "HOME": "/root", "GIT_CONFIG_COUNT": "1"}
        | {"GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not (root / "fcgi.sock").exists():
        time.sleep(0.02)
    (root / "fcgi.sock").chmod(0o777)
    front = subprocess.Popen(["nginx", "-c", root / "nginx.conf"], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/big.git"
    try:
        while True:
            try:
                httpx.get(f"{url}/info/refs?service=git-upload-pack").raise_for_status()
                break
            except httpx.ConnectError:
                time.sleep(0.05)
        yield url, front.pid, wrapper.pid
    finally:
        front.terminate()
        front.wait()
        os.killpg(wrapper.pid, signal.SIGTERM)  # its workers do not end with it
        wrapper.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repos", type=int, default=1_000)
    parser.add_argument("--forks", type=int, default=200)
    parser.add_argument("--clones", type=int, default=50)
    parser.add_argument("--mib", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nginx", action="store_true")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="server-load-"))
    environment = git_environment(root)
    server = Server(root, ["--max-requests", "10000000", "--max-git-requests", "10000000"]).start()
    try:
        create_and_list(server, options.repos)
        work = make_big(root, environment, options.mib)
        made = server.create("big")
        remote = with_token(made["remote"], made["token"])
        subprocess.run(["git", "push", "-q", remote, "main"], cwd=work, check=True, env=environment)
        fork_many(server, "big", options.forks)
        assert server.process is not None
        with PeakMemory(server.process.pid) as memory:
            rounds = [
                clone_many(remote, root / "clones", environment, options.clones)
                for _ in range(options.rounds)
            ]
        ours = min(rounds)
        print(f"{options.clones} blobless clones at once: {ours:.2f} s")
        print(f"  peak memory: server {memory.own:.0f} MiB, with git {memory.all:.0f} MiB")
        if options.nginx:
            repo_id = server.result("GET", "/namespaces/team/repos/big")["id"]
            source = server.data / "repos" / repo_id[:2] / f"{repo_id}.git"
            alternates = source / "objects" / "info" / "alternates"
            alternates.rename(alternates.with_name("put-aside"))
            with (
                nginx(root / "nginx", source, 18_444) as (url, front, wrapper),
                PeakMemory(front, wrapper) as memory,
            ):
                rounds = [
                    clone_many(url, root / "clones", environment, options.clones)
                    for _ in range(options.rounds)
                ]
            print(f"  the same by git http-backend behind nginx: {min(rounds):.2f} s")
            print(f"  peak memory: {memory.all:.0f} MiB; ratio {ours / min(rounds):.2f}")
    finally:
        server.kill()
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
