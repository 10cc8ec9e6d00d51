"""What happens behind a mount, and what can be asked of it, put together from its parts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from artifactfs.config import RepoSettings
from artifactfs.daemon.background.checkouts import Checkouts
from artifactfs.daemon.background.following import Following
from artifactfs.daemon.background.jobs import Jobs
from artifactfs.daemon.background.old_versions import OldVersions
from artifactfs.daemon.background.primer import Primer
from artifactfs.daemon.background.priming import Priming
from artifactfs.daemon.background.tasks import Background
from artifactfs.daemon.repositories.remotes import RemoteConnection
from artifactfs.daemon.switch.switching import Switching
from artifactfs.daemon.switch.target import Commits
from artifactfs.daemon.worker.content import ContentRequests
from artifactfs.daemon.worker.copies import Copies
from artifactfs.daemon.worker.requests import Requests
from artifactfs.daemon.writes.kinds import Kind
from artifactfs.fs.gitview.callers import GitCommand
from artifactfs.fs.gitview.gate import LAZY_FETCH, HistoryGate
from artifactfs.fs.mount.filesystem import FileSystem
from artifactfs.git.objects.database import ObjectDatabase
from artifactfs.git.remote.arriving import ArrivingHistory
from artifactfs.git.repository.gitdir import history_complete
from artifactfs.hydration.background.attention import Attention
from artifactfs.hydration.hydrator import Hydrator
from artifactfs.paths import RepoLayout, StateLayout


def compose(
    state: StateLayout,
    layout: RepoLayout,
    settings: RepoSettings,
    *,
    remotes: RemoteConnection,
    odb: ObjectDatabase,
    filesystem: FileSystem,
    hydrator: Hydrator,
    background: Background,
    unmount: Callable[[], Awaitable[None]],
    writes: Kind,
    primer: Primer,
) -> tuple[OldVersions, Jobs, Requests]:
    """What happens behind the mount, and what can be asked of it."""
    history = ArrivingHistory(layout.gitdir, odb, complete=history_complete(layout.gitdir))
    checkouts = Checkouts(
        layout.gitdir,
        odb=odb,
        filesystem=filesystem,
        hydrator=hydrator,
        deadline_s=settings.deadline_s,
        start=background.start,
    )
    hydrator.attention.changes = filesystem.count_of_changes
    hydrator.read_tree = filesystem.read_tree
    if filesystem.offered is not None:
        filesystem.offered.gate = HistoryGate(history, checkouts.before_tree)
        filesystem.offered.on_work = partial(_note_work, hydrator.attention, checkouts)
        filesystem.offered.before_folder = checkouts.before_folder
        filesystem.offered.before_read = checkouts.before_read
    commits = Commits(layout.gitdir, odb, remotes)
    old_versions = OldVersions(
        layout.gitdir,
        settings.mount_point,
        odb=odb,
        filesystem=filesystem,
        hydrator=hydrator,
        history=history,
        checkouts=checkouts,
    )
    if filesystem.offered is not None:
        filesystem.offered.copying = Copies(
            layout.gitdir, odb=odb, hydrator=hydrator, history_done=history.done
        )
    switching = Switching(
        layout,
        commits=commits,
        filesystem=filesystem,
        hydrator=hydrator,
        start=background.start,
        offer_objects=old_versions.offer_objects,
    )
    jobs = Jobs(
        state,
        layout,
        settings,
        remotes=remotes,
        odb=odb,
        hydrator=hydrator,
        filesystem=filesystem,
        background=background,
        following=Following(layout.gitdir, commits, filesystem, switching),
        history=history,
        priming=Priming(
            state, layout, settings, hydrator=hydrator, filesystem=filesystem, primer=primer
        ),
    )
    content = ContentRequests(
        layout,
        odb=odb,
        filesystem=filesystem,
        hydrator=hydrator,
        background=background,
        history_done=history.done,
    )
    requests = Requests(
        layout=layout,
        remotes=remotes,
        commits=commits,
        filesystem=filesystem,
        hydrator=hydrator,
        jobs=jobs,
        switching=switching,
        content=content,
        unmount=unmount,
        writes=writes,
    )
    return old_versions, jobs, requests


def _note_work(attention: Attention, checkouts: Checkouts, command: GitCommand) -> None:
    """`command` looks for objects; of a fetch or a checkout, somebody waits for the end."""
    if checkouts.note(command) or LAZY_FETCH in command.arguments:
        attention.note_process(command.pid)
    else:
        attention.note()
