"""Fetching one commit with its trees: what a switch to it needs, however long its history is."""

from __future__ import annotations

from pathlib import Path

from artifactfs.errors import CorruptData, ObjectsMissing, RemoteNotFound
from artifactfs.git.command import GitFailed, feed_git
from artifactfs.git.objects.database import Oid
from artifactfs.git.remote.fetch import BLOBLESS
from artifactfs.git.remote.remote import Remote


async def fetch_commit(gitdir: Path, remote: Remote, oid: Oid) -> None:
    """Bring `oid` (a commit, or a tag of one) and its trees, without parents.

    ``shallow`` stays as it is: parents that are not here are promised objects. One round trip.
    Raises: RemoteError (RemoteNotFound where the remote does not have it), CorruptData.
    """
    try:
        async with (
            feed_git("index-pack", "--promisor", "--stdin", gitdir=gitdir) as sink,
            remote.fetch_pack([oid], filter=BLOBLESS, depth=1) as pack,
        ):
            async for chunk in pack:
                await sink.send(chunk)
            await sink.finish()
    except ObjectsMissing as error:
        raise RemoteNotFound(f"the remote has no commit {oid.hex()}") from error
    except GitFailed as error:
        raise CorruptData(f"the pack of {oid.hex()} is not usable: {error.message}") from error
