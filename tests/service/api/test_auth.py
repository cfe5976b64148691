import hmac

import pytest
from fastapi import FastAPI
from starlette.requests import Request

from service.api import auth
from service.api.auth import check_key
from service.errors import Unauthorized
from service.service import LocalService
from service.settings import Settings

KEYS = ("first", "second", "schlüssel", "ключ", "voilà")


def request(keys: tuple[str, ...], *more: tuple[bytes, bytes], **headers: str | bytes) -> Request:
    app = FastAPI()
    app.state.service = LocalService(Settings(api_keys=keys))
    pairs = [
        (name.replace("_", "-").encode(), value if isinstance(value, bytes) else value.encode())
        for name, value in headers.items()
    ]
    return Request({"type": "http", "app": app, "headers": [*pairs, *more]})


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer first"},
        {"authorization": "Bearer second"},
        {"authorization": "bearer first"},
        {"authorization": "BEARER first"},
        {"x_api_key": "first"},
        {"x_api_key": "second"},
        {"x_api_key": "second", "authorization": "Bearer wrong"},
        {"x_api_key": "", "authorization": "Bearer second"},
        {"x_api_key": "wrong", "authorization": "Bearer first"},
        {"authorization": "bEaReR  first"},
        {"authorization": "Bearer\tfirst"},
        {"authorization": " Bearer first \t"},
        {"x_api_key": " first\t"},
        {"authorization": "Bearer schlüssel"},
        {"authorization": "Bearer schlüssel".encode("latin-1")},
        {"x_api_key": "ключ"},
        {"x_api_key": "voilà"},  # its last byte in UTF-8 is a blank in Latin-1
    ],
)
def test_every_valid_key_passes(headers: dict[str, str | bytes]) -> None:
    check_key(request(KEYS, **headers))


def test_a_header_may_come_twice() -> None:
    basic, bearer = (b"authorization", b"Basic Zmlyc3Q6eA=="), (b"authorization", b"Bearer first")
    check_key(request(KEYS, basic, bearer))
    check_key(request(KEYS, bearer, basic))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer "},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic first"},
        {"authorization": "Bearer first,second"},
        {"x_api_key": "firs"},
        {"x_api_key": "Bearer first"},
        {"x_api_key": "\x00ä"},
        {"x_api_key": "wrong", "authorization": "Bearer other"},
        {"authorization": "Bearerfirst"},
        {"authorization": "first"},
        {"authorization": "Bearer"},
        {"x_api_key": "клюс"},
        {"x_api_key": "voil\u00c3"},
    ],
)
def test_no_other_key_passes(headers: dict[str, str]) -> None:
    with pytest.raises(Unauthorized, match="a valid key is needed") as refusal:
        check_key(request(KEYS, **headers))
    assert "first" not in refusal.value.message


def test_without_keys_every_request_passes() -> None:
    check_key(request(()))
    check_key(request((), x_api_key="any"))


def test_all_keys_are_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(key: bytes, valid_key: bytes) -> bool:
        compared.append(valid_key)
        return hmac.compare_digest(key, valid_key)

    monkeypatch.setattr(auth, "hmac", type("hmac", (), {"compare_digest": staticmethod(compare)}))
    check_key(request(KEYS, x_api_key="first"))
    assert compared == [
        form
        for key in KEYS
        for form in ([key.encode(), key.encode("latin-1")] if key in ("schlüssel", "voilà") else [key.encode()])
    ]
