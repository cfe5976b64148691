"""The lock file holds what the project asks for, and images of others are found and pinned."""

import re
import runpy
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "docker" / "lock.txt").read_text()
PIN = runpy.run_path(str(ROOT / "docker" / "pin_images.py"))
DIGEST = "sha256:" + "0123456789abcdef" * 4


def locked() -> dict[str, tuple[str, list[str]]]:
    """Name to version and hashes."""
    entries = re.findall(r"^([\w.-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", LOCK, re.MULTILINE)
    return {name: (version, hashes.split("--hash=")[1:]) for name, version, hashes in entries}


def test_the_lock_file_holds_nothing_but_releases_and_hashes() -> None:
    lines = [line for line in LOCK.splitlines() if line and not line.startswith("#")]
    assert len(lines) == sum(1 + len(hashes) for _, hashes in locked().values())
    assert "://" not in LOCK


def test_every_dependency_but_torch_is_locked_to_a_release_that_fits() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    releases = {name: version for name, (version, _) in locked().items()}
    for requirement in map(Requirement, asked):
        name = canonicalize_name(requirement.name)
        if name == "torch":
            assert name not in releases
        else:
            assert requirement.specifier.contains(releases[name]), f"{requirement}: run docker/lock.sh"


def test_both_images_install_the_lock_file_by_its_hashes() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert text.count("pip install --require-hashes --no-deps --requirement /requirements/lock.txt") == 2
    assert len(re.findall(r"^COPY .*docker/lock.txt", text, re.MULTILINE)) == 2
    assert "!docker/lock.txt" in (ROOT / ".dockerignore").read_text().splitlines()


def test_an_image_without_a_digest_is_named_and_gets_one() -> None:
    text = f"ARG BASE=docker.io/library/python:3.11\n  image: a/b:v1\n  image: mae-serve:cpu\n  image: c/d:2@{DIGEST}\n"
    assert PIN["unpinned"](text) == ["docker.io/library/python:3.11", "a/b:v1"]
    newer = DIGEST.replace("0", "1")
    pinned = PIN["pin"](text, lambda image: {"c/d:2": newer}.get(image, DIGEST))
    assert pinned == (
        f"ARG BASE=docker.io/library/python:3.11@{DIGEST}\n  image: a/b:v1@{DIGEST}\n  image: mae-serve:cpu\n"
        f"  image: c/d:2@{newer}\n"
    )
    assert PIN["unpinned"](pinned) == []


def test_every_image_of_others_is_found() -> None:
    """All that the files name, digest or not: the parser of YAML knows those of compose.yaml, too."""

    def found(path: str) -> set[str]:
        return {match["name"] for match in PIN["IMAGE"].finditer((ROOT / path).read_text())}

    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"].values()
    images = {service["image"].partition("@")[0] for service in services if "build" not in service}
    assert found("docker/compose.yaml") == images
    assert found("Dockerfile") == found("docker/README.md") == {"docker.io/library/python:3.11.14-slim-bookworm"}
