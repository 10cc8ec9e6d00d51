"""Request forgery: which addresses the server may be made to talk to.

A name is resolved here, every address is checked, and the connection is pinned to a checked one:
a name that answers differently the second time gains nothing.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

import trio

_LOOKUP_S = 10.0
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            "168.63.129.16/32",  # Azure: the host of a virtual machine
            "192.88.99.0/24",  # 6to4 relays
            "fec0::/10",  # site-local, as private networks were once called
            "3fff::/20",  # for documentation
        ),
    )
)
"""What `is_global` of Python 3.11 takes for public."""


class Forbidden(Exception):
    """The URL is malformed, or leads to where the server must not go."""


class Unresolvable(Exception):
    """The host name has no address."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL whose host was resolved and checked. `address` is the one to connect to."""

    url: str
    scheme: str
    host: str
    port: int
    address: str

    @property
    def curl_resolve(self) -> str:
        """For curl's RESOLVE option (``http.curloptResolve``); empty if the host is an address."""
        if ":" in self.host:
            return ""
        shown = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.host}:{self.port}:{shown}"


def is_public(address: str) -> bool:
    """True for an address of the public internet; also looks inside mapped IPv6 addresses."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    if any(ip in network for network in _NOT_PUBLIC):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


async def check_url(url: str, *, allow_private: bool) -> Target:
    """Check a URL and resolve its host; the URL in the answer is the one to use.

    https only, unless `allow_private` (then http too, and any address). Credentials in it are
    refused, because they would end up in logs and lists. Raises: Forbidden, Unresolvable.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Forbidden("the URL is malformed") from None
    allowed = ("https", "http") if allow_private else ("https",)
    if parts.scheme not in allowed:
        raise Forbidden("the URL must begin with https://")
    if not parts.hostname or any(c <= " " or c == "\x7f" for c in url) or "\\" in url:
        raise Forbidden("the URL is malformed")
    # curl may write other names in another way than we do, and would then look them up itself.
    if not parts.hostname.isascii() or parts.hostname.endswith("."):
        raise Forbidden("the host of the URL must be ASCII (xn--…) and not end with a dot")
    if parts.fragment:
        raise Forbidden("the URL must not have a fragment")
    if parts.username is not None or parts.password is not None:
        raise Forbidden("the URL must not contain credentials")
    if port is None:
        port = 443 if parts.scheme == "https" else 80
    addresses = await _resolve(parts.hostname, port)
    if not allow_private and not all(is_public(address) for address in addresses):
        raise Forbidden("the URL leads to a private network")
    clean = parts._replace(netloc=parts.netloc.lower(), fragment="").geturl()
    return Target(clean, parts.scheme, parts.hostname, port, addresses[0])


async def _resolve(host: str, port: int) -> list[str]:
    try:
        with trio.fail_after(_LOOKUP_S):
            found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    except (OSError, trio.TooSlowError, UnicodeError):
        raise Unresolvable(f"the host {host} cannot be found") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses:
        raise Unresolvable(f"the host {host} cannot be found")
    # IPv4 first: an IPv6 address without a route would only cost time.
    return sorted(dict.fromkeys(addresses), key=lambda address: ":" in address)
