"""Nothing that users rely on changes unseen: settings, flags, routes, JSON keys, error codes, metrics, exit codes.

Whoever changes one of them on purpose writes the file anew with the command that the failure names, in the same commit,
with a line in CHANGELOG.md.
"""

from difflib import unified_diff

import pytest

from tests.support.public_contract import COMMAND, PINNED, public_contract


@pytest.fixture(scope="module")
def computed() -> str:
    return public_contract()


def test_nothing_public_has_changed(computed: str) -> None:
    pinned = PINNED.read_text().splitlines()
    changes = "\n".join(unified_diff(pinned, computed.splitlines(), "pinned", "computed", lineterm="", n=0))
    assert not changes, (
        f"what users see has changed; if it should, run `{COMMAND}` and say it in CHANGELOG.md\n{changes}"
    )


@pytest.mark.parametrize(
    "line",
    [
        "MAE_PORT = 8000",
        "MAE_DECODE_THREADS = (depends on the machine)",
        "mae serve --max-body-mb <float> = 32",
        "mae embed -o, --output <path> (required)",
        "mae embed exits with 0, 1, 2, 130",
        "POST /embed ?pool mean|cls|tokens = 'mean'",
        "POST /embed takes multipart/form-data",
        "POST /reconstruct answers 200 image/png, application/json, application/zip",
        "POST /reconstruct: reconstructions[].png",
        "GET /info: engine.config.image_size",
        "GET /readyz: state",
        "queue_full 429 retry-after: 1",
        "not_found 404",
        "mae_requests_total counter by endpoint, code",
        "mae_gpu_power_watts gauge by gpu",
    ],
)
def test_every_kind_of_fact_is_seen(computed: str, line: str) -> None:
    """Written by hand: a kind that the computation no longer sees would drop out of the file with the next change."""
    assert line in computed.splitlines()


def test_settings_of_whoever_runs_the_tests_play_no_part(computed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_PORT", "9")
    monkeypatch.setenv("MAE_MAX_IMAGES", "3")
    assert public_contract() == computed
