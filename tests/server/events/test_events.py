"""Events, the GraphQL dataset, usage, webhooks, metrics, health."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from artifactfs.server.events.analytics import GroupQuery, groups
from artifactfs.server.metadata.database import Database, insertion
from artifactfs.server.metadata.limits import RateLimiter
from tests.git.http_backend import http_backend
from tests.server.running import ACCOUNT, Git, Server, ServerFactory, with_token

GROUPS = """
query ($account: string!, $limit: uint64!, $filter: Filter) {
  viewer { accounts(filter: {accountTag: $account}) {
    artifactsEventsAdaptiveGroups(limit: $limit, filter: $filter, orderBy: [count_DESC]) {
      count
      sum { durationMs }
      avg { durationMs }
      quantiles { durationMsP25 durationMsP50 durationMsP75 durationMsP90 durationMsP95
                  durationMsP99 durationMsP999 }
      dimensions { repository repositoryNamespace repositoryName eventKind eventType
                   errorMessage date }
    }
  } }
}
""".replace("Filter)", "AccountArtifactsEventsAdaptiveGroupsFilter_InputObject)")


def graphql(server: Server, query: str, **variables: Any) -> dict[str, Any]:
    with server.client() as client:
        answer = client.post("/client/v4/graphql", json={"query": query, "variables": variables})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_operations_show_in_the_dataset(
    server: Server, git: Git, work: Path, name: str, tmp_path: Path
) -> None:
    made = server.create(name)
    remote = with_token(made["remote"], made["token"])
    git("push", "-q", remote, "main", cwd=work)
    git("clone", "-q", remote, tmp_path / "copy")
    server.result("POST", f"/namespaces/team/repos/{name}/fork", {"name": f"{name}-f"})
    git("ls-remote", with_token(made["remote"], "art_v1_" + "0" * 40), fails=True)
    server.result("DELETE", f"/namespaces/team/repos/{name}")
    body = graphql(
        server,
        GROUPS,
        account=ACCOUNT,
        limit=100,
        filter={"repositoryNamespace": "team", "repositoryName_in": [name, f"{name}-f"]},
    )
    assert body["errors"] is None
    rows = body["data"]["viewer"]["accounts"][0]["artifactsEventsAdaptiveGroups"]
    found = {(r["dimensions"]["repositoryName"], r["dimensions"]["eventType"]) for r in rows}
    assert found == {
        *((name, kind) for kind in ("create", "push", "pull", "delete", "clientError")),
        (f"{name}-f", "fork"),
    }
    for row in rows:
        quantiles = list(row["quantiles"].values())
        assert quantiles == sorted(quantiles) and quantiles[-1] > 0
        assert row["sum"]["durationMs"] == pytest.approx(row["avg"]["durationMs"] * row["count"])
    failed = next(r for r in rows if r["dimensions"]["eventType"] == "clientError")
    assert failed["dimensions"]["eventKind"] == "error"
    assert failed["dimensions"]["errorMessage"] == "Invalid or expired token"
    assert failed["dimensions"]["repository"] == f"team/{name}"


def test_graphql_refuses_what_it_should(server: Server) -> None:
    foreign = graphql(server, GROUPS, account="somebody-else", limit=1)
    assert "not authorized" in foreign["errors"][0]["message"]
    assert graphql(server, "{ nonsense")["errors"]
    inner = "artifactsEventsAdaptiveGroups { count }"
    many = " ".join(f"a{number}: {inner}" for number in range(30))
    assert "at most" in graphql(server, f"{{viewer{{accounts{{{many}}}}}}}")["errors"][0]["message"]
    for arguments in ("limit: 0", "limit: 10001", 'filter: {datetime_gt: "soon"}'):
        query = f"{{viewer{{accounts{{artifactsEventsAdaptiveGroups({arguments}){{count}}}}}}}}"
        assert graphql(server, query)["errors"]
    with server.client("aft_" + "0" * 40) as client:
        assert client.post("/client/v4/graphql", json={"query": "{viewer}"}).status_code == 403


def test_time_dimensions_filters_and_order(database: Database) -> None:
    start = 1_767_323_045_678  # 2026-01-02T03:04:05.678Z
    rows = [
        {
            "at": start + minute * 60_000,
            "account_id": "acc",
            "namespace": "ns",
            "repository": "repo",
            "kind": "action",
            "type": "push",
            "error_message": "",
            "duration_ms": float(minute),
        }
        for minute in range(100)
    ]
    database.write(lambda tx: tx.run(insertion("events", rows[0]), rows))

    def ask(dimension: str, **options: Any) -> list[dict[str, Any]]:
        settings = {"filter": {}, "order_by": [f"{dimension}_ASC"], "quantiles": True, **options}
        query = GroupQuery("acc", (dimension,), 1_000, **settings)
        return database.read(lambda tx: groups(tx, query))

    firsts = {
        "datetime": "2026-01-02T03:04:05Z",
        "datetimeMinute": "2026-01-02T03:04:00Z",
        "datetimeFiveMinutes": "2026-01-02T03:00:00Z",
        "datetimeFifteenMinutes": "2026-01-02T03:00:00Z",
        "datetimeHour": "2026-01-02T03:00:00Z",
        "datetimeSixHours": "2026-01-02T00:00:00Z",
        "date": "2026-01-02",
    }
    for dimension, first in firsts.items():
        assert ask(dimension)[0]["dimensions"] == {dimension: first}
    hours = ask("datetimeHour", order_by=["count_DESC"])
    assert [row["count"] for row in hours] == [56, 44]
    assert hours[0]["quantiles"]["durationMsP50"] == 27.5
    late = ask("datetimeHour", filter={"datetime_geq": "2026-01-02T04:00:00Z"})
    assert [row["count"] for row in late] == [44]
    either = {"OR": [{"datetimeMinute": "2026-01-02T03:04:00Z"}, {"eventType": "pull"}]}
    assert sum(row["count"] for row in ask("datetimeMinute", filter=either)) == 1
    assert ask("eventType", filter={"eventType_neq": "push"}) == []


def test_usage(server: Server, git: Git, work: Path, name: str) -> None:
    made = server.create(name, namespace="metered")
    git("push", "-q", with_token(made["remote"], made["token"]), "main", cwd=work)
    report = server.result("GET", "/usage")
    row = next(r for r in report["namespaces"] if r["namespace"] == "metered")
    assert row["operations"] == 2
    assert report["account"]["operations"] >= row["operations"]
    assert "metered" in server.command("usage")


def test_metrics_and_health_need_no_token(server: Server, name: str) -> None:
    server.create(name)
    with server.client() as client:
        del client.headers["Authorization"]
        assert client.get("/healthz").json()["status"] == "ok"
        text = client.get("/metrics").text
    assert 'artifacts_operation_seconds_count{event_type="create"}' in text
    assert "artifacts_repos " in text and name not in text


@dataclass
class Subscriber:
    """An endpoint that records deliveries; the first `failures` are answered 500."""

    url: str = ""
    failures: int = 0
    seen: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    def wait_for(self, count: int) -> list[dict[str, Any]]:
        deadline = time.monotonic() + 90
        while len(self.seen) < count:
            assert time.monotonic() < deadline, f"{len(self.seen)} of {count} deliveries"
            time.sleep(0.05)
        return [json.loads(body) for _, body in self.seen]


@pytest.fixture
def subscriber() -> Iterator[Subscriber]:
    found = Subscriber()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            failing = found.failures > 0
            found.failures -= failing
            self.send_response(500 if failing else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()
            headers = {key.lower(): value for key, value in self.headers.items()}
            if not failing:
                found.seen.append((headers, body))

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{http.server_address[1]}/hook"
    thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield found
    http.shutdown()
    http.server_close()
    thread.join()


def test_webhooks_tell_of_all_nine_events(
    server: Server, git: Git, work: Path, name: str, tmp_path: Path, subscriber: Subscriber
) -> None:
    space = f"hooks-{name[-6:]}"
    hook = server.result("POST", "/webhooks", {"url": subscriber.url, "namespace": space})
    base = f"/namespaces/{space}"
    made = server.create("first", namespace=space)
    remote = with_token(made["remote"], made["token"])
    git("push", "-q", remote, "main", cwd=work)
    git("clone", "-q", "--depth", "1", "--no-single-branch", remote, tmp_path / "copy")
    git("clone", "-q", remote, tmp_path / "full")
    git("commit", "-q", "--allow-empty", "-m", "Third", cwd=work)
    git("push", "-q", remote, "main", cwd=work)
    git("fetch", "-q", cwd=tmp_path / "full")
    git("clone", "-q", "--bare", work, tmp_path / "elsewhere" / "demo.git")
    with http_backend(tmp_path / "elsewhere") as elsewhere:
        url = f"{elsewhere.url}/demo.git"
        server.result("POST", f"{base}/repos/third/import", {"url": url})
        server.wait_ready("third", namespace=space)
    server.result("POST", f"{base}/repos/first/fork", {"name": "second"})
    token = server.result("POST", f"{base}/tokens", {"repo": "second"})
    server.result("DELETE", f"{base}/tokens/{token['id']}")
    server.result("DELETE", f"{base}/repos/second")
    bodies = subscriber.wait_for(11)
    kinds = {body["type"].removeprefix("cf.artifacts.repo.") for body in bodies}
    assert kinds == {
        *("created", "pushed", "cloned", "fetched", "forked", "imported", "deleted"),
        *("token.created", "token.revoked"),
    }
    push = [b for b in bodies if b["type"].endswith(".pushed")]
    second = next(b for b in push if b["payload"]["before"] != "0" * 40)
    assert second["payload"]["ref"] == "refs/heads/main"
    assert [c["message"] for c in second["payload"]["commits"]] == ["Third"]
    assert second["payload"]["totalCommitsCount"] == 1
    assert second["payload"]["commitsTruncated"] is False
    assert second["source"] == {"type": "artifacts.repo", "namespace": space, "repoName": "first"}
    assert second["metadata"]["accountId"] == ACCOUNT
    assert second["metadata"]["eventSubscriptionId"] == hook["id"]

    headers, body = subscriber.seen[0]
    key = b64decode(hook["secret"].removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"

    assert "secret" not in server.result("GET", "/webhooks")[0]
    server.result("DELETE", f"/webhooks/{hook['id']}")
    assert server.api("DELETE", f"/webhooks/{hook['id']}").status_code == 404


def test_a_failed_delivery_is_tried_again(
    server: Server, name: str, subscriber: Subscriber
) -> None:
    space = f"again-{name[-6:]}"
    subscriber.failures = 1
    body = {"url": subscriber.url, "namespace": space, "events": ["cf.artifacts.repo.created"]}
    hook = server.result("POST", "/webhooks", body)
    server.create("repo", namespace=space)
    assert subscriber.wait_for(1)[0]["source"]["repoName"] == "repo"
    server.result("DELETE", f"/webhooks/{hook['id']}")


def test_webhooks_cannot_reach_the_private_network(start_server: ServerFactory) -> None:
    server = start_server()
    answer = server.api("POST", "/webhooks", {"url": "https://127.0.0.1/x"})
    assert answer.status_code == 400 and answer.json()["errors"][0]["code"] == 10104
    answer = server.api("POST", "/webhooks", {"url": "https://[::1]/", "events": ["other"]})
    assert answer.json()["errors"][0]["source"] == {"pointer": "/events"}


def test_rate_limits_answer_429(start_server: ServerFactory, git: Git) -> None:
    server = start_server("--max-requests", "5", "--max-git-requests", "3")
    made = server.create("limited")
    remote = with_token(made["remote"], made["token"])
    git("ls-remote", remote)
    told = ""
    while "429" not in told:  # at once, unless the machine takes seconds for each
        with contextlib.suppress(AssertionError):
            told = git("ls-remote", remote, fails=True)
    with server.client() as client:
        refused = client.get(f"{server.base}/namespaces")
        while refused.status_code == 200:
            refused = client.get(f"{server.base}/namespaces")
    assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["errors"][0]["code"] == 10429


def test_the_window_slides() -> None:
    now = 0.0
    limiter = RateLimiter(10, 10.0, clock=lambda: now)
    assert all(limiter.take("a") is None for _ in range(10))
    assert limiter.take("a") == 10
    assert limiter.take("b") is None
    now = 15.0
    passed = sum(limiter.take("a") is None for _ in range(10))
    assert passed == 5
    now = 40.0
    assert all(limiter.take("a") is None for _ in range(10))
