"""schemathesis over the OpenAPI document: no 5xx, no answer outside the schema."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.running import ACCOUNT, Git, ServerFactory, with_token

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance"
CONFIGURATION = """\
[parameters]
account_id = "{account}"
namespace = "team"
name = "demo"
hash = ["{head}", "{blob}", "zz"]
ref = ["main", "HEAD", "nope"]
"""


def run_schemathesis(url: str, token: str, folder: Path, *options: str) -> tuple[int, str]:
    """How many generated cases passed, all of them or the test fails; and the report."""
    pytest.importorskip("schemathesis")
    done = subprocess.run(
        [
            *[sys.executable, "-m", "schemathesis.cli"],
            *["--config-file", str(folder / "schemathesis.toml"), "run", f"{url}/openapi.json"],
            *["-H", f"Authorization: Bearer {token}", "--no-color", "-w", "1"],
            *["--checks", f"{CHECKS},response_schema_conformance", *options],
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    summary = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert summary is not None, done.stdout + done.stderr
    assert summary[1] == summary[2] and done.returncode == 0, done.stdout
    return int(summary[1]), done.stdout


def prepare(start_server: ServerFactory, git: Git, work: Path, folder: Path) -> tuple[str, str]:
    server = start_server("--max-requests", "1000000")
    made = server.create("demo")
    git("push", "-q", with_token(made["remote"], made["token"]), "main", cwd=work)
    configuration = CONFIGURATION.format(
        account=ACCOUNT,
        head=git("rev-parse", "main", cwd=work).strip(),
        blob=git("rev-parse", "main:README.md", cwd=work).strip(),
    )
    (folder / "schemathesis.toml").write_text(configuration)
    return server.url, server.api_token


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("options", [["--exclude-method", "DELETE"], []], ids=["keeping", "all"])
def test_every_answer_is_as_documented(
    start_server: ServerFactory, git: Git, work: Path, tmp_path: Path, options: list[str]
) -> None:
    url, token = prepare(start_server, git, work, tmp_path)
    phases = ["--phases", "coverage,fuzzing", "--max-examples", "60"]
    cases, _ = run_schemathesis(url, token, tmp_path, *phases, *options)
    print(f"{cases} cases")
    assert cases > 1_000
