"""Whether somebody who waits wants to be interrupted, also where he cannot be seen."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HIDDEN = """
import os, subprocess, sys
from artifactfs.fs.kernel.interrupt import is_interrupted
subprocess.run(["mount", "-t", "proc", "-o", "hidepid=2", "proc", "/proc"], check=True)
gone = subprocess.Popen(["true"])
gone.wait()
pid = int(sys.argv[1])
seen = is_interrupted(pid)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
assert not os.path.exists(f"/proc/{pid}/status")
print(seen, is_interrupted(pid), is_interrupted(gone.pid), is_interrupted(os.getpid()))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts /proc in a namespace of its own")
def test_a_hidden_caller_is_not_taken_for_gone() -> None:
    """`hidepid` of proc(5): as an ordinary user we see nothing of the others' processes."""
    command = ["unshare", "--mount", sys.executable, "-c", HIDDEN, str(os.getpid())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["False", "False", "True", "False"], "")
