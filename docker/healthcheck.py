"""Asks the server in this container whether it takes requests; exit code 0 if it does.

It imports only the standard library, because it runs every few seconds. It takes the address from MAE_HOST and the port
from the environment by the rule of service/settings.py, so it does not reach a server whose address was set by flags.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import sys
from pathlib import Path

PORT_VARIABLES = ("MAE_PORT", "AIP_HTTP_PORT", "PORT")
DEFAULT_PORT = 8000
SAGEMAKER_PORT = 8080


def main() -> int:
    """Prints the answer, which `docker inspect` shows, and returns the exit code."""
    connection = http.client.HTTPConnection(own_address(), own_port(), timeout=4)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        print(response.status, response.read().decode())
    except (OSError, http.client.HTTPException) as error:
        print(f"{type(error).__name__}: {error}")
        return 1
    return 0 if response.status == 200 else 1


def own_port() -> int:
    """The port of the server: that of the first of PORT_VARIABLES that is set, else the default of its command.

    Kubernetes may set MAE_PORT=tcp://10.0.0.1:8000 for a service named mae; the server ignores that, too.
    """
    for variable in PORT_VARIABLES:
        if (port := os.environ.get(variable, "")).isdecimal():
            return int(port)
    return SAGEMAKER_PORT if runs_for_sagemaker(Path("/proc/1/cmdline").read_bytes()) else DEFAULT_PORT


def runs_for_sagemaker(command: bytes) -> bool:
    """Whether the container was started with the argument `serve`, which makes docker/serve.sh the server.

    `command` is that of its first process, `tini -- serve …`, with a NUL behind each word.
    """
    _, found, behind = command.rpartition(b"\0--\0")
    return bool(found) and behind.split(b"\0")[0] == b"serve"


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
