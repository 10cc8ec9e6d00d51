"""A commit as the API and the webhooks show it."""

from __future__ import annotations

import pygit2
from pydantic import BaseModel

from artifactfs.server.metadata.clock import iso


class Person(BaseModel):
    name: str
    email: str


class CommitInfo(BaseModel):
    hash: str
    treeHash: str
    message: str
    author: Person
    committer: Person
    parents: list[str]
    authoredAt: str
    committedAt: str


def commit_info(commit: pygit2.Commit) -> CommitInfo:
    """A commit as the API shows it; one trailing newline of the message is removed."""
    message = commit.raw_message.decode("utf-8", "replace")
    return CommitInfo(
        hash=str(commit.id),
        treeHash=str(commit.tree_id),
        message=message.removesuffix("\n"),
        author=_person(commit.author),
        committer=_person(commit.committer),
        parents=[str(parent) for parent in commit.parent_ids],
        authoredAt=_time(commit.author.time),
        committedAt=_time(commit.committer.time),
    )


def _person(signature: pygit2.Signature) -> Person:
    return Person(
        name=signature.raw_name.decode("utf-8", "replace"),
        email=signature.raw_email.decode("utf-8", "replace"),
    )


def _time(seconds: int) -> str:
    try:
        return iso(seconds * 1000)
    except (ValueError, OverflowError, OSError):
        return iso(0)
