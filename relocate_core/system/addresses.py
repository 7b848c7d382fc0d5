"""Whether a server is on this machine, by its name or address."""

from __future__ import annotations

import ipaddress
import socket


def is_elsewhere(server: str) -> bool:
    """Whether a database's server is visibly on another machine.

    Args:
        server: as a connection has it: names or addresses with commas between them, a socket's
            path, or "" where none is known.
    """
    return any(_is_elsewhere(one.strip()) for one in server.split(","))


def _is_elsewhere(server: str) -> bool:
    if not server or server.startswith(("/", "@")):  # a socket, in a directory or abstract
        return False
    if server.strip("[]").lower() in ("localhost", socket.gethostname().lower()):
        return False
    try:
        found = socket.getaddrinfo(server.strip("[]"), None, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):  # a name that only the driver can look up
        return True
    return not all(_is_own(family, address) for family, _, _, _, address in found)


def _is_own(family: int, address: tuple[object, ...]) -> bool:
    """Whether an address is one of this machine's: what is sent to one comes from the same one.

    Nothing is sent. That a socket can be bound to an address shows nothing where the kernel allows
    any (ip_nonlocal_bind), as machines do that can take over the address of another one.
    """
    host = str(address[0]).partition("%")[0]
    known = ipaddress.ip_address(host)
    if known.is_loopback or known.is_unspecified:
        return True
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        try:
            one.connect((host, 9, *address[2:]))
            return str(one.getsockname()[0]).partition("%")[0] == host
        except OSError:
            return False
