"""The sockets on which the service listens."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import logging
import os
import socket
import struct
import sys

from service.settings import InvalidSettings

log = logging.getLogger(__name__)
BACKLOG = 2048
SO_ATTACH_FILTER = 26
"""The option of Linux for a filter on a socket; Python's module socket has no name for it."""


def listen(host: str, port: int, first_only: bool = False) -> list[socket.socket]:
    """Listens on `host`, and logs the URL: one socket for each address of a name, IPv4 first.

    The address `::` also takes IPv4.

    Args:
        host: an IP address, or a name.
        port: 0 takes a free one, the same for all addresses.
        first_only: listen on the first address alone.

    Raises:
        InvalidSettings: nobody can listen there; the message names the setting.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InvalidSettings(f"HOST: {host!r} is no address of this machine: {error}") from None
    addresses = sorted(dict.fromkeys((family, address) for family, *_, address in found), key=lambda pair: pair[0])
    sockets: list[socket.socket] = []
    try:
        for family, address in addresses[:1] if first_only else addresses:
            sockets.append(_listen_on(family, (address[0], port, *address[2:])))
            port = sockets[0].getsockname()[1]
    except OSError as error:
        for opened in sockets:
            opened.close()
        setting = "HOST" if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) else "PORT"
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InvalidSettings(f"{setting}: cannot listen on {_url(host, port)}: {reason}") from None
    log.info("running on %s (press CTRL+C to quit)", _url(host, port))
    return sockets


def stop_handshakes(listener: socket.socket) -> None:
    """Lets `listener` take no new connection from now on, while those that wait in its queue can still be accepted.

    Closing it resets the connections in its queue. So a filter of the kernel drops what would begin a connection, and
    clients that try it are refused once the listener is closed. Only Linux has this filter; elsewhere, and where the
    kernel has none, nothing changes.
    """
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF_RET | BPF_K: keep 0 bytes
    program = struct.pack("HP", 1, ctypes.addressof(drop_all))
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def _listen_on(family: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Linux makes IPv6 sockets take IPv4 too, unless the machine is set otherwise; libraries set otherwise.
            only_ipv6 = not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_unspecified
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only_ipv6))
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
