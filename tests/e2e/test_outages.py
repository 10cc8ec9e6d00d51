"""The remote goes away and comes back; a token expires and is replaced."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.e2e.delay_proxy import DelayProxy
from tests.e2e.odd_repository import OddRepository
from tests.e2e.processes import (
    IMPATIENCE_S,
    ArtifactsProcess,
    DaemonProcess,
    ServedRepository,
    wait_until,
)

GONE = {errno.EIO, errno.ETIMEDOUT}


def read_error(path: Path) -> int:
    """Return the errno that reading `path` fails with; 0 when it does not fail."""
    try:
        path.read_bytes()
    except OSError as error:
        return error.errno or 0
    return 0


def test_remote_killed_and_back(
    impatient: Path, daemon: DaemonProcess, proxy: DelayProxy, odd_repository: OddRepository
) -> None:
    present = (impatient / "README.md").read_bytes()
    list(os.walk(impatient))
    proxy.refuse()
    began = time.monotonic()
    assert read_error(impatient / "src/package1/module1.py") in GONE
    assert time.monotonic() - began < 3 * IMPATIENCE_S
    assert (impatient / "README.md").read_bytes() == present
    listing = subprocess.run(["ls", "-lR", "."], cwd=impatient, capture_output=True, timeout=90)
    assert listing.returncode == 0
    errors = [record for record in daemon.log_records() if "module1.py" in json.dumps(record)]
    assert len(errors) == 1, errors
    proxy.accept()
    # The remote is asked again half a second after the last failure, not with each read.
    wait_until(lambda: read_error(impatient / "src/package1/module1.py") == 0, "recovery")
    content = (impatient / "src/package1/module1.py").read_bytes()
    assert content == odd_repository.files[b"src/package1/module1.py"]


def test_reads_fail_fast_while_the_remote_is_down(impatient: Path, proxy: DelayProxy) -> None:
    proxy.refuse()
    read_error(impatient / "src/package1/module1.py")
    began = time.monotonic()
    for number in range(20):
        assert read_error(impatient / f"many/{number:03}.txt") in GONE
    assert time.monotonic() - began < 20 * IMPATIENCE_S / 4


def test_remote_that_stalls(impatient: Path, proxy: DelayProxy) -> None:
    (impatient / "README.md").read_bytes()
    proxy.stall()
    began = time.monotonic()
    assert read_error(impatient / "src/package2/module2.py") in GONE
    assert time.monotonic() - began < 3 * IMPATIENCE_S
    os.listdir(impatient / "src")
    proxy.resume()
    wait_until(lambda: read_error(impatient / "src/package2/module2.py") == 0, "recovery")


def test_blocked_reader_dies_on_sigint(impatient: Path, proxy: DelayProxy) -> None:
    proxy.stall()
    first = len(proxy.requests)
    reader = subprocess.Popen(
        [
            *(sys.executable, "-c", "import sys; open(sys.argv[1], 'rb').read()"),
            impatient / "src/package2/module12.py",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        while not any(request.wants for request in proxy.requests[first:]):
            time.sleep(0.02)
            assert reader.poll() is None
        reader.terminate()
        assert reader.wait(60)
    finally:
        reader.kill()
        reader.wait()
        proxy.resume()


def test_revoked_token_and_set_remote(
    daemon: DaemonProcess,
    proxy: DelayProxy,
    artifacts_server: ArtifactsProcess,
    remote_repo: Callable[..., ServedRepository],
    odd_repository: OddRepository,
) -> None:
    served = remote_repo()
    token = artifacts_server.token(served.name, scope="read")
    old = ServedRepository(served.name, served.remote, token["plaintext"])
    mount = daemon.add_repo("odd", proxy.url(old.url), "--deadline", str(IMPATIENCE_S))
    daemon.wait_for("odd", "history")
    present = (mount / "README.md").read_bytes()
    artifacts_server.revoke(token["id"])
    proxy.reset_connections()
    assert read_error(mount / "src/package1/module1.py") in GONE | {errno.EACCES}
    assert (mount / "README.md").read_bytes() == present
    daemon.run("set-remote", "--name", "odd", "--remote", proxy.url(served.url))
    content = (mount / "src/package1/module1.py").read_bytes()
    assert content == odd_repository.files[b"src/package1/module1.py"]
    secrets = [token["plaintext"].partition("?")[0], served.token.partition("?")[0]]
    log = daemon.log.read_text()
    config = (daemon.state / "repos/odd/git/config").read_text()
    status = daemon.run("status", "--no-porcelain").stdout + daemon.run("status", "--json").stdout
    assert not [secret for secret in secrets if secret in log + config + status]
    mode = (daemon.state / "repos/odd/credentials").stat().st_mode
    assert mode & 0o077 == 0
