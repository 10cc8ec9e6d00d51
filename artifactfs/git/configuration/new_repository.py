"""What the user's settings make of a new repository, as `git clone` would have made it."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from artifactfs.git.configuration.entries import Configuration, as_bool, as_path
from artifactfs.git.configuration.listing import read_configuration
from artifactfs.git.surroundings import variable
from artifactfs.paths import leads_into

_TEMPLATES = "share/git-core/templates"
"""Git's own, below the folder that has ``bin/git``."""


@dataclass(frozen=True, slots=True)
class NewRepository:
    """`template` is copied into the gitdir (``init.templateDir``). `committer` is who signs the
    first entries of the reflogs, with the time; None: there are to be none. `logs_refs` is whether
    ``core.logAllRefUpdates`` is to be set, since nobody has; `rebases` whether the branch has
    ``rebase`` set (``branch.autoSetupRebase``)."""

    template: Path | None = None
    committer: str | None = None
    logs_refs: bool = True
    rebases: bool = False


async def new_repository(mount_point: str) -> NewRepository:
    """For a repository at `mount_point`, which nobody asks for anything. Raises: InvalidInput."""
    configuration = await read_configuration()
    template = template_folder(configuration)
    if template is not None and leads_into(str(template), mount_point):
        template = None
    if template is not None and (template / "config").is_file():
        more = (("include.path", str(template / "config")),)
        configuration = await read_configuration(more=more)
    logs = configuration.last("core.logallrefupdates")
    logged = logs is None or logs.lower() == "always" or as_bool(logs) is not False
    return NewRepository(
        template,
        committer(configuration) if logged else None,
        logs_refs=logs is None,
        rebases=configuration.last("branch.autosetuprebase") in ("always", "remote"),
    )


def template_folder(configuration: Configuration) -> Path | None:
    """``GIT_TEMPLATE_DIR``, ``init.templateDir``, or else git's own; None where there is none."""
    named = variable("GIT_TEMPLATE_DIR")
    if named is None and (value := configuration.last("init.templatedir")) is not None:
        named = as_path(value)
    if named is None:
        git = shutil.which("git")
        named = str(Path(git).resolve().parent.parent / _TEMPLATES) if git is not None else ""
    folder = Path(named)
    return folder if os.path.isabs(named) and folder.is_dir() else None


def committer(configuration: Configuration) -> str:
    """``NAME <EMAIL> SECONDS ZONE``, as git writes it into a reflog: of somebody whom git does not
    know, what the machine does."""
    values = {}
    for part in ("name", "email"):
        values[part] = (
            variable(f"GIT_COMMITTER_{part.upper()}")
            or configuration.last(f"committer.{part}")
            or configuration.last(f"user.{part}")
        )
    name, email = values["name"], values["email"] or variable("EMAIL")
    if not name or not email:
        user, real_name = _user()
        name, email = name or real_name or user, email or f"{user}@{socket.gethostname()}"
    seconds = int(time.time())
    zone = time.strftime("%z", time.localtime(seconds))
    return f"{_plain(name)} <{_plain(email)}> {seconds} {zone}"


def _user() -> tuple[str, str]:
    try:
        entry = pwd.getpwuid(os.geteuid())
    except KeyError:
        return str(os.geteuid()), ""
    return entry.pw_name, entry.pw_gecos.partition(",")[0].replace("&", entry.pw_name.capitalize())


def _plain(text: str) -> str:
    """Without what ends a field, and what git strips off both ends (ident.c)."""
    return text.translate({ord(char): None for char in "<>\n"}).strip(" .,:;\"\\'")
