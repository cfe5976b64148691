"""Asks the server in this container whether it takes requests; exit code 0 if it does.

It imports only the standard library, because it runs every few seconds. It takes the port from the environment variable
MAE_PORT, so it does not reach a server whose port was set by a flag.
"""

from __future__ import annotations

import http.client
import os
import sys


def main() -> int:
    """Prints the answer, which `docker inspect` shows, and returns the exit code."""
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("MAE_PORT") or 8000), timeout=4)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        print(response.status, response.read().decode())
    except (OSError, http.client.HTTPException) as error:
        print(f"{type(error).__name__}: {error}")
        return 1
    return 0 if response.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
