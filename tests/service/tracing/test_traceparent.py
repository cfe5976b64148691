"""Which headers are a `traceparent`: examples of https://www.w3.org/TR/trace-context/ and of its test suite."""

import pytest

from service.tracing.traceparent import parse_traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize("header", [VALID, f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-ff", f"cc-{TRACE}-{SPAN}-01"])
def test_valid_headers_are_kept(header: str) -> None:
    assert parse_traceparent(header) == header


@pytest.mark.parametrize("rest", ["-", "-what-the-future-will-be-like", "-<script>"])
def test_fields_of_later_versions_are_left_out(rest: str) -> None:
    assert parse_traceparent(f"cc-{TRACE}-{SPAN}-01{rest}") == f"cc-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    "header",
    [
        "",
        VALID[:-1],
        VALID + "0",
        VALID + "-what-the-future-will-be-like",  # version 00 has four fields
        f"cc-{TRACE}-{SPAN}-01.what",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        VALID.upper(),
        f"0.-{TRACE}-{SPAN}-01",
        f"00-.{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0x",
        f" {VALID}",
        f"{VALID}\n",
        f"00-{TRACE}{SPAN}--01",
        f"{VALID}\nlevel=critical",
        "00-" + "\uff14" * 32 + f"-{SPAN}-01",  # digits that are not ASCII
    ],
)
def test_all_else_is_dropped(header: str) -> None:
    assert parse_traceparent(header) == ""
