"""Asks the server in this container whether it takes requests; exit code 0 if it does.

It imports only the standard library, because it runs every few seconds. It takes the address from the environment
variables MAE_HOST and MAE_PORT, so it does not reach a server whose address was set by flags.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import sys


def main() -> int:
    """Prints the answer, which `docker inspect` shows, and returns the exit code."""
    port = os.environ.get("MAE_PORT", "")
    # Kubernetes may set MAE_PORT=tcp://10.0.0.1:8000 for a service named mae; the server ignores that, too.
    connection = http.client.HTTPConnection(own_address(), int(port) if port.isdecimal() else 8000, timeout=4)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        print(response.status, response.read().decode())
    except (OSError, http.client.HTTPException) as error:
        print(f"{type(error).__name__}: {error}")
        return 1
    return 0 if response.status == 200 else 1


def own_address() -> str:
    """An address at which this container reaches a server that listens on MAE_HOST."""
    host = os.environ.get("MAE_HOST") or "0.0.0.0"
    try:
        listens_everywhere = ipaddress.ip_address(host).is_unspecified  # 0.0.0.0, or :: for IPv6 and IPv4
    except ValueError:  # a name
        return host
    return "127.0.0.1" if listens_everywhere else host


if __name__ == "__main__":
    sys.exit(main())
