"""A repository for each agent: create it, hand out a short-lived token, read what it did.

python repo_per_agent.py alice bob
"""

from __future__ import annotations

import os
import sys

from artifactfs.client import Artifacts, ArtifactsError


def main(agents: list[str]) -> None:
    with Artifacts(
        os.environ["ARTIFACTS_URL"],
        os.environ["ARTIFACTS_ACCOUNT"],
        os.environ["ARTIFACTS_API_TOKEN"],
        namespace="agents",
    ) as artifacts:
        for agent in agents:
            name = f"agent-{agent}"
            try:
                made = artifacts.create(name, description=f"Workspace of {agent}")
                print(f"{name}: created, remote {made.remote}")
            except ArtifactsError as error:
                if error.code != "ALREADY_EXISTS":
                    raise
                print(f"{name}: is there already")
            # The create call returned a token for a day; an agent gets one for an hour.
            token = artifacts.repo(name).create_token("write", ttl=3_600)
            print(f"  token {token.id} until {token.expires_at:%H:%M} UTC")
            # … start the agent with the remote and token.plaintext in its environment …
            for commit in artifacts.repo(name).log(limit=3):
                print(f"  {commit.hash[:10]} {commit.message.splitlines()[0]}")
            artifacts.repo(name).revoke_token(token)


if __name__ == "__main__":
    main(sys.argv[1:] or ["alice", "bob"])
