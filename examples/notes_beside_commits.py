"""Keep the prompt and the result of a change beside its commit, as Git notes.

Notes are refs like any other (``refs/notes/*``): they travel by push and fetch, and they do not
change the commit.

    python notes_beside_commits.py
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import quote

from artifactfs.client import Artifacts


def git(*words: str | Path) -> str:
    identity = ["-c", "user.name=Agent", "-c", "user.email=agent@example.org"]
    done = subprocess.run(
        ["git", *identity, *map(str, words)], check=True, capture_output=True, text=True
    )
    return done.stdout


def main() -> None:
    with (
        Artifacts(
            os.environ["ARTIFACTS_URL"],
            os.environ["ARTIFACTS_ACCOUNT"],
            os.environ["ARTIFACTS_API_TOKEN"],
            namespace="notes",
        ) as artifacts,
        tempfile.TemporaryDirectory() as folder,
    ):
        made = artifacts.create(f"with-notes-{os.getpid()}")
        remote = made.remote.replace("://", f"://x:{quote(made.token, safe='')}@", 1)
        tree = Path(folder) / "tree"
        git("init", "-q", "-b", "main", tree)
        (tree / "answer.txt").write_text("42\n")
        git("-C", tree, "add", "answer.txt")
        git("-C", tree, "commit", "-q", "-m", "Answer the question")

        prompt = {"prompt": "What is six times seven?", "model": "example"}
        git("-C", tree, "notes", "--ref=prompt", "add", "-m", json.dumps(prompt))
        git("-C", tree, "notes", "--ref=result", "add", "-m", "tests passed")
        git("-C", tree, "push", "-q", remote, "main", "refs/notes/*")

        # Somebody else, later:
        copy = Path(folder) / "copy"
        git("clone", "-q", remote, copy)
        git("-C", copy, "fetch", "-q", "origin", "refs/notes/*:refs/notes/*")
        for ref in ("prompt", "result"):
            print(f"{ref}: {git('-C', copy, 'notes', f'--ref={ref}', 'show').strip()}")


if __name__ == "__main__":
    main()
