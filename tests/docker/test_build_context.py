"""What the Dockerfile copies from this checkout gets past .dockerignore."""

import re
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
COPY = re.compile(r"^COPY (?!--from=)(?:--\S+ )*(.+) \S+$", re.MULTILINE)


def copied() -> list[str]:
    """The files and folders of this checkout that the Dockerfile copies."""
    return sorted({source for match in COPY.finditer((ROOT / "Dockerfile").read_text()) for source in match[1].split()})


def is_ignored(path: str) -> bool:
    """Docker's rule: the last pattern that matches a path or a folder around it decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        names = [str(name) for name in (PurePosixPath(path), *PurePosixPath(path).parents)]
        if any(re.fullmatch(pattern, name) for name in names[:-1]):
            ignored = not line.startswith("!")
    return ignored


@pytest.mark.parametrize("path", copied())
def test_what_is_copied_is_in_the_context(path: str) -> None:
    assert (ROOT / path).exists()
    assert not is_ignored(path)


@pytest.mark.parametrize(
    "path", [".git/config", "tests/conftest.py", "docker/compose.yaml", "service/README.md", "model/__pycache__/x.pyc"]
)
def test_everything_else_stays_out(path: str) -> None:
    assert is_ignored(path)
