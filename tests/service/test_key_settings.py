"""The settings of keys: from a variable and a file, never shown, and refused where they would protect nothing."""

import os
from pathlib import Path

import pytest

from service.settings import InvalidSettings, Settings, load_settings

pytestmark = pytest.mark.usefixtures("bare_environment")


def test_keys_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_API_KEYS", "hush-hush")
    assert "hush" not in repr(load_settings())
    for wrong in ({"port": "http"}, {"max_body_mb": 1000}, {"preprocess": "{"}):
        with pytest.raises(InvalidSettings) as refusal:
            load_settings(**wrong)
        assert "hush" not in str(refusal.value)
    with pytest.raises(InvalidSettings, match=r"^API_KEYS: ") as refusal:
        load_settings(api_keys={"hush-hush": 1})
    assert "hush" not in str(refusal.value)


@pytest.mark.parametrize("keys", [",", " ", " , ,"])
def test_keys_that_hold_no_key_do_not_leave_the_service_open(keys: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_API_KEYS", keys)
    with pytest.raises(InvalidSettings, match="API_KEYS: there is no key in it"):
        load_settings()


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (b"one,t\xffo", "key 2 has a character that no header can hold"),
        (b"one\nhush", "key 1 has a character that no header can hold"),
    ],
)
def test_keys_that_nobody_could_send_stop_the_start(
    keys: bytes, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MAE_API_KEYS", os.fsdecode(keys))
    with pytest.raises(InvalidSettings, match=f"^API_KEYS: {reason}$"):
        load_settings()


def test_keys_come_from_a_file_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n\n  schl\u00fcssel \r\nwith, a comma\none\n", "utf-8")
    monkeypatch.setenv("MAE_API_KEYS_FILE", str(file))
    assert load_settings().api_keys == ("one", "schl\u00fcssel", "with, a comma")
    assert load_settings(api_keys="zero,one").api_keys == ("zero", "one", "schl\u00fcssel", "with, a comma")
    # A worker is told the keys of its service, though its environment names the file.
    assert Settings(api_keys=("told",), api_keys_file=None).api_keys == ("told",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "there is no key in it"),
        (b"\n \n", "there is no key in it"),
        (b"hush\xff", "is no text in UTF-8"),
        (b"one\nhu\x00sh", "key 2 has a character that no header can hold"),
    ],
)
def test_a_file_without_keys_stops_the_start(content: bytes | None, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidSettings, match=f"^API_KEYS_FILE: .*{reason}$") as refusal:
        load_settings(api_keys_file=str(file), api_keys="other")
    assert "hush" not in str(refusal.value)


@pytest.mark.parametrize(
    "limit", [{"key_max_requests": "1"}, {"key_images_per_s": "1"}, {"keyed_paths": "/metrics"}], ids=str
)
def test_what_concerns_keys_needs_keys(limit: dict[str, str]) -> None:
    with pytest.raises(InvalidSettings, match=f"^{next(iter(limit)).upper()} needs API_KEYS or API_KEYS_FILE$"):
        load_settings(**limit)
    load_settings(**limit, api_keys="one")


@pytest.mark.parametrize("path", ["/metric", "metrics", "/livez", "/readyz", "/v2/health/live", "/embed", "/Docs"])
def test_a_path_that_could_not_be_keyed_stops_the_start(path: str) -> None:
    with pytest.raises(InvalidSettings, match=f"^KEYED_PATHS: {path} is none of / /docs"):
        load_settings(api_keys="one", keyed_paths=f"/metrics,{path}")
    assert load_settings(api_keys="one", keyed_paths=" /metrics, /docs/ ,").keyed_paths == ("/metrics", "/docs")
