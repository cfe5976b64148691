"""Which code graphs are made by, for the names of entries in the engine cache."""

from __future__ import annotations

import hashlib
from pathlib import Path


def code_digest() -> str:
    """Over the source of the model and of the engines: graphs made by other code are other graphs."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
