"""Making and hashing secrets: repository tokens, API tokens and ids.

Only hashes of secrets are ever stored.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
from base64 import b64decode
from binascii import Error as Base64Error
from dataclasses import dataclass

_ID_ALPHABET = string.digits + string.ascii_lowercase
_SECRET = re.compile(r"art_v1_[0-9a-f]{40}")
_PREFIX_HEX = 16
"""Hex digits of the hash by which a token is found; the rest is compared in constant time."""


def new_id() -> str:
    """16 random characters of ``[0-9a-z]``: 82 bits."""
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(16))


@dataclass(frozen=True, slots=True)
class NewSecret:
    """A secret that was just made: shown once as `plaintext`, stored as `digest`."""

    plaintext: str
    digest: str


def new_repo_token(expires_at_s: int) -> NewSecret:
    """``art_v1_<40 hex>?expires=<unix seconds>``; the digest covers the part before ``?``."""
    secret = f"art_v1_{secrets.token_hex(20)}"
    return NewSecret(f"{secret}?expires={expires_at_s}", digest(secret))


def new_api_token() -> NewSecret:
    """``aft_<40 hex>``."""
    secret = f"aft_{secrets.token_hex(20)}"
    return NewSecret(secret, digest(secret))


def digest(secret: str) -> str:
    """SHA-256 of a secret, hex. The secrets have 160 random bits, so no salt is needed."""
    return hashlib.sha256(secret.encode()).hexdigest()


def digest_prefix(value: str) -> str:
    """The part of a digest that the database looks up."""
    return value[:_PREFIX_HEX]


def same_digest(left: str, right: str) -> bool:
    """Compare in a time that does not depend on where the two differ."""
    return hmac.compare_digest(left, right)


def repo_secret(presented: str) -> str | None:
    """The secret part of a repository token as a client sent it, None if it is not one."""
    secret = presented.partition("?")[0]
    return secret if _SECRET.fullmatch(secret) else None


def credential_from_header(value: str | None) -> str | None:
    """The token in an Authorization header: Bearer, or the password of Basic.

    None if there is no header at all; an empty string if there is one without a usable token.
    """
    if value is None:
        return None
    scheme, _, rest = value.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        try:
            userinfo = b64decode(rest.strip(), validate=True).decode()
        except (Base64Error, UnicodeDecodeError):
            return ""
        return userinfo.partition(":")[2]
    return ""
