"""Connections to public addresses alone.

A job's address comes from a form, and the machine that fetches it stands inside a network: whatever
a name leads to is looked at as the IP address that is connected to, once per connection. How the
name was spelled (127.1, 0x7f000001, ::ffff:127.0.0.1, a name of one's own server whose answer
changes) makes no difference then.
"""

import socket
import time
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import httpcore

from masklet.settings import Network

Address = IPv4Address | IPv6Address

# From IANA's registries of special-purpose addresses. Python's own `is_global` differs from one
# release to the next.
_NOT_PUBLIC = [
    ip_network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local, and the clouds' metadata
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
        "2001::/23",  # Teredo and other protocols
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
    )
]
_PUBLIC_IPV6 = ip_network("2000::/3")
_MAPPED, _NAT64 = ip_network("::ffff:0:0/96"), ip_network("64:ff9b::/96")


class NotPublic(Exception):
    """A name leads to an address that is not connected to."""


def is_allowed(address: Address, allowed: Sequence[Network] = ()) -> bool:
    """Whether an address is a public one, or in one of the networks that are allowed.

    An IPv6 address that stands for an IPv4 one (IPv4-mapped, NAT64) is judged as that.
    """
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            address = IPv6Address(int(address))
        if address in _MAPPED or address in _NAT64:
            address = IPv4Address(int(address) & 0xFFFFFFFF)
    if any(address in network for network in allowed):
        return True
    if address.version == 6 and address not in _PUBLIC_IPV6:
        return False
    return not any(address in network for network in _NOT_PUBLIC)


class GuardedBackend(httpcore.NetworkBackend):
    """Connects to public or allowed addresses alone, and ends everything at one moment.

    ends: in seconds of `time.monotonic`.
    """

    def __init__(self, allowed: Sequence[Network], ends: float) -> None:
        self._allowed, self._ends = allowed, ends
        self._tcp = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = _resolve(host, port)
        # all of them: a name with a private address beside a public one is not to be trusted
        if not all(is_allowed(one, self._allowed) for one in addresses):
            raise NotPublic
        for at, address in enumerate(addresses, 1):
            try:
                stream = self._tcp.connect_tcp(
                    str(address), port, within(timeout, self._ends), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if at == len(addresses):
                    raise
            else:
                return _EndingStream(stream, self._ends)
        raise httpcore.ConnectError(f"{host} has no address")


class _EndingStream(httpcore.NetworkStream):
    """A stream that a peer cannot keep open by sending a byte now and then."""

    def __init__(self, stream: httpcore.NetworkStream, ends: float) -> None:
        self._stream, self._ends = stream, ends

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, within(timeout, self._ends))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, within(timeout, self._ends))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = within(timeout, self._ends)
        return _EndingStream(self._stream.start_tls(ssl_context, server_hostname, left), self._ends)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def within(timeout: float | None, ends: float) -> float:
    """The timeout, cut so that it is over when everything is; raises ReadTimeout after that."""
    left = ends - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout
    return left if timeout is None else min(timeout, left)


def _resolve(host: str, port: int) -> list[Address]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        raise httpcore.ConnectError(f"the name cannot be resolved ({error})") from error
    return list(dict.fromkeys(ip_address(place[0]) for *_, place in found))
