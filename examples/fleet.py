"""Twenty tasks on forks of one baseline: each edits, tests and commits; what passed is merged.

python fleet.py        # after repo_per_agent.py or `git push` have made a repository `baseline`
"""

import os

import artifactfs
from artifactfs.client import Artifacts, ArtifactsError


def work(ws: artifactfs.Workspace, number: int) -> None:
    ws.write(f"notes/{number}.md", f"# Task {number}\n")
    ws.run(f"test {number} != 13 && grep -q Task notes/{number}.md", show=False)
    ws.commit(f"Task {number}")


names = ("ARTIFACTS_URL", "ARTIFACTS_ACCOUNT", "ARTIFACTS_API_TOKEN")
with Artifacts(*(os.environ[name] for name in names), namespace="tasks") as artifacts:
    baseline = artifacts.repo("baseline")
    results = artifactfs.fanout(baseline, work, n=20)
    for result in results.passed:
        try:
            baseline.merge(result.branch, head_repo=result.fork)
        except ArtifactsError as error:
            print(result.fork, error)
    print(results)
