"""Python client of the Artifacts interface: repositories for agents, over REST.

>>> from artifactfs.client import Artifacts
>>> with Artifacts("http://127.0.0.1:8080", account_id, api_token, "agents") as artifacts:
...     made = artifacts.create("task-1", description="first try")
...     made.remote, made.token                # for git, or for `artifact-fs add-repo`
...     fork = artifacts.get("task-1").fork("task-1-retry")
...     for repo in artifacts.repos():         # all pages
...         print(repo.name)

`AsyncArtifacts` is the same with ``await``; it runs under trio and asyncio.
"""

from artifactfs.client.asynchronous import AsyncArtifacts, AsyncFoundRepo, AsyncRepo
from artifactfs.client.models import (
    ArtifactsError,
    Commit,
    Comparison,
    Conflict,
    CreatedRepo,
    CreatedToken,
    MergeResult,
    Namespace,
    Ref,
    RefUpdate,
    RepoInfo,
    RepoPage,
    SyncResult,
    TokenInfo,
    TokenList,
    TreeEntry,
    Usage,
    UsageReport,
    Webhook,
)
from artifactfs.client.synchronous import Artifacts, FoundRepo, Repo

__all__ = [
    "Artifacts",
    "ArtifactsError",
    "AsyncArtifacts",
    "AsyncFoundRepo",
    "AsyncRepo",
    "Commit",
    "Comparison",
    "Conflict",
    "CreatedRepo",
    "CreatedToken",
    "FoundRepo",
    "MergeResult",
    "Namespace",
    "Ref",
    "RefUpdate",
    "Repo",
    "RepoInfo",
    "RepoPage",
    "SyncResult",
    "TokenInfo",
    "TokenList",
    "TreeEntry",
    "Usage",
    "UsageReport",
    "Webhook",
]
