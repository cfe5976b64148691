"""Pins the images of others in the Dockerfile and compose.yaml by their digests.

    python3 docker/pin_images.py            # asks the registries by `docker buildx imagetools`, and changes the files
    python3 docker/pin_images.py --check    # names the images without a digest, and exits with 1 if there are any

A tag may be moved to another image, a digest may not. The tag stays in the name, for readers; run the script again to
take what it stands for by then.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

FILES = ("Dockerfile", "docker/compose.yaml", "docker/README.md")
IMAGE = re.compile(
    r"(?P<before>^ARG BASE=|^ +image: |`BASE` \| `)"
    r"(?P<name>(?:[\w.-]+/)+[\w.-]+:[\w.-]+)"
    r"(?P<digest>@sha256:[0-9a-f]{64})?",
    re.MULTILINE,
)
"""An image with an owner or a registry in its name: those without are built here."""


def unpinned(text: str) -> list[str]:
    """The images in a file that have no digest."""
    return [match["name"] for match in IMAGE.finditer(text) if not match["digest"]]


def pin(text: str, digest_of: Callable[[str], str]) -> str:
    """The file with the present digest after each image's tag."""
    return IMAGE.sub(lambda match: f"{match['before']}{match['name']}@{digest_of(match['name'])}", text)


def ask_registry(image: str) -> str:
    """The digest of what a tag stands for now, of all platforms together.

    Raises:
        SystemExit: docker is missing, or the registry gave none.
    """
    command = ["docker", "buildx", "imagetools", "inspect", image, "--format", "{{.Manifest.Digest}}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise SystemExit("docker is not installed") from error
    digest = done.stdout.strip()
    if not re.fullmatch("sha256:[0-9a-f]{64}", digest):
        raise SystemExit(f"no digest of {image}: {done.stderr.strip() or digest}")
    return digest


def main() -> None:
    """Changes or checks the files of this checkout."""
    root = Path(__file__).parents[1]
    texts = {root / name: (root / name).read_text() for name in FILES}
    if sys.argv[1:] == ["--check"]:
        found = [f"{path.relative_to(root)}: {image}" for path, text in texts.items() for image in unpinned(text)]
        print("\n".join(found) or "All images are pinned by digest.")
        raise SystemExit(bool(found))
    if sys.argv[1:]:
        raise SystemExit(__doc__)
    digests: dict[str, str] = {}

    def digest_of(image: str) -> str:
        if image not in digests:
            digests[image] = ask_registry(image)
            print(f"{image}@{digests[image]}")
        return digests[image]

    pinned = {path: pin(text, digest_of) for path, text in texts.items()}
    for path, text in pinned.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
