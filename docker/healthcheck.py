"""Asks the server in this container whether it takes requests; exit code 0 if it does.

Imports nothing but the standard library, because it runs every few seconds. It asks the port of MAE_PORT: a server that
is told its port by a flag cannot be found.
"""

from __future__ import annotations

import http.client
import os
import sys


def main() -> int:
    """The exit code, with a line that `docker inspect` shows."""
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("MAE_PORT") or 8000), timeout=4)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        print(answer.status, answer.read().decode())
    except (OSError, http.client.HTTPException) as error:
        print(f"{type(error).__name__}: {error}")
        return 1
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
