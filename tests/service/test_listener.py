"""Where the service listens. Sockets are real; no process is started."""

import logging
import socket
import sys

import pytest

from service.listener import listen, stop_handshakes
from service.settings import InvalidSettings


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")


def close(sockets: list[socket.socket]) -> None:
    for opened in sockets:
        opened.close()


def test_an_address_and_a_free_port(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    [listener] = sockets = listen("127.0.0.2", 0)
    host, port = listener.getsockname()
    assert host == "127.0.0.2" and port
    assert f"running on http://127.0.0.2:{port} " in caplog.text
    socket.create_connection((host, port), 5).close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), 5).close()
    close(sockets)


@needs_ipv6
@pytest.mark.parametrize("first_only", [False, True])
def test_two_colons_take_ipv4_too(caplog: pytest.LogCaptureFixture, first_only: bool) -> None:
    caplog.set_level(logging.INFO)
    [listener] = sockets = listen("::", 0, first_only)
    port = listener.getsockname()[1]
    for host in ("127.0.0.1", "::1"):
        socket.create_connection((host, port), 5).close()
    assert f"running on http://[::]:{port} " in caplog.text
    close(sockets)


@needs_ipv6
def test_an_address_of_ipv6_takes_no_ipv4() -> None:
    [listener] = sockets = listen("::1", 0)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", listener.getsockname()[1]), 5).close()
    close(sockets)


def name_with(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Makes the name "service" have these addresses of IPv4."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: found)


def test_a_name_with_several_addresses_has_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    name_with(monkeypatch, "127.0.0.2", "127.0.0.1", "127.0.0.2")
    sockets = listen("service", 0)
    assert [opened.getsockname()[0] for opened in sockets] == ["127.0.0.2", "127.0.0.1"]
    assert len({opened.getsockname()[1] for opened in sockets}) == 1
    close(sockets)
    [first] = listen("service", 0, first_only=True)
    assert first.getsockname()[0] == "127.0.0.2"
    first.close()


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidSettings, match=rf"^PORT: cannot listen on http://127.0.0.1:{port}: Address already"):
            listen("127.0.0.1", port)


def test_of_several_addresses_none_is_kept_when_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    name_with(monkeypatch, "127.0.0.1", "127.0.0.2")
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidSettings, match=r"^PORT: "):
            listen("service", port)
        socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.parametrize("host", ["192.0.2.1", "256.1.1.1", "no such name", "", "a..b", "x" * 300])
def test_an_address_of_another_machine_is_named(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *arguments: object, **options: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    if not host[:1].isdigit():
        monkeypatch.setattr(socket, "getaddrinfo", refuse)  # or a test would ask a name server
    with pytest.raises(InvalidSettings, match=r"^HOST: "):
        listen(host, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such filter")
def test_connections_in_the_queue_outlive_the_end_of_handshakes() -> None:
    [listener] = listen("127.0.0.1", 0)
    address = listener.getsockname()
    early = [socket.create_connection(address, 5) for _ in range(3)]
    stop_handshakes(listener)
    with pytest.raises(TimeoutError):  # dropped, not reset: nobody has answered yet
        socket.create_connection(address, 0.1)
    for client in early:
        accepted, _ = listener.accept()
        accepted.sendall(b"answer")
        accepted.close()
        assert client.recv(10) == b"answer"
        client.close()
    with pytest.raises(BlockingIOError):
        listener.accept()
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 5)
