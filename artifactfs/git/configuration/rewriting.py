"""``url.<base>.insteadOf``: the URL that git asks in place of the one that was given."""

from __future__ import annotations

from artifactfs.errors import InvalidInput
from artifactfs.git.configuration.entries import Configuration
from artifactfs.git.wire.url import RemoteURL, parse_remote


def rewritten(url: str, configuration: Configuration) -> str:
    """`url` with the longest prefix of ``insteadOf`` replaced; the first of equals wins."""
    best, base = "", ""
    for entry in configuration.section("url"):
        prefix = entry.value or ""
        if entry.variable == "insteadof" and url.startswith(prefix) and len(prefix) > len(best):
            best, base = prefix, entry.subsection or ""
    return base + url[len(best) :] if best else url


def effective_remote(url: str, configuration: Configuration) -> RemoteURL:
    """What is reached where a user names `url`. Raises: InvalidInput."""
    return parse_remote(rewritten(url, configuration))


def without_secret(url: str, configuration: Configuration) -> str:
    """What is kept of a remote: as it was given, so that git rewrites it, without credentials.

    Raises: InvalidInput for what is no remote and does not become one.
    """
    effective_remote(url, configuration)
    try:
        return parse_remote(url).url
    except InvalidInput:
        return url
