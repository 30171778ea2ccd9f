"""The transport against what a network does to it: silence, foreign certificates, interception, a wrong clock."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import socket
import ssl
import subprocess
import sys
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from persistent_runner.errors import ConnectionLost, PlatformRefused, PlatformUnavailable
from persistent_runner.recovery import Backoff
from persistent_runner.rescale import transport
from persistent_runner.rescale.client import RescalePlatform

from .scripted import KEY, QUICK, Said, Script, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ME = "GET users/me/"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Write a self-signed certificate of 127.0.0.1 with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "both.pem"
    path.write_bytes(
        made.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return path


@pytest.fixture
def https(certificate: Path) -> Iterator[Script]:
    """Run a server that follows a script, behind TLS with the self-signed certificate."""
    script = Script()
    server = serve(script)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    script.url = script.url.replace("http:", "https:")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield script
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_certificate_that_nobody_signed_is_refused_before_the_key_goes_out(https: Script) -> None:
    """A proxy that opens TLS, or an expired authority: said as what it is, once, and nothing was sent (row A21)."""
    https.says(ME, Said(body={"email": "a@b"}))
    platform = RescalePlatform(https.url, KEY, backoff=QUICK)
    with pytest.raises(PlatformRefused, match="certificate is not trusted") as caught:
        platform.me()
    platform.close()
    assert "REQUESTS_CA_BUNDLE" in caught.value.remedy
    assert https.asked == []


def test_a_company_s_own_authority_is_believed_where_the_user_says_so(https: Script, certificate: Path) -> None:
    """REQUESTS_CA_BUNDLE works, as the message promises; a proxy of the environment is another process's matter."""
    https.says(ME, Said(body={"email": "a@b"}))
    code = (
        "import sys; from persistent_runner.rescale.client import RescalePlatform as R\n"
        "p = R(sys.argv[1], 'k' * 40)\n"
        "p._http._session.trust_env = True  # as for a host that is not this machine\n"
        "print(p.me().email)"
    )
    environment = os.environ | {"REQUESTS_CA_BUNDLE": str(certificate), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", code, https.url], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "a@b\n"


@pytest.mark.parametrize("speaks", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"])
def test_a_server_that_falls_silent_is_no_answer(speaks: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blackhole behind an open connection, before or within an answer, ends at the time-out (row A11)."""
    monkeypatch.setattr(transport, "_TIMEOUT", (5.0, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        held: list[socket.socket] = []

        def accept() -> None:
            held.append(listening.accept()[0])
            held[0].sendall(speaks)

        thread = threading.Thread(target=accept)
        thread.start()
        platform = RescalePlatform(f"http://127.0.0.1:{listening.getsockname()[1]}", KEY, backoff=Backoff(total=0))
        with pytest.raises(PlatformUnavailable, match="no answer in time"):
            platform.me()
        thread.join()
        held[0].close()
        platform.close()


def test_every_call_has_a_time_out() -> None:
    """Without one a call of requests may hang for ever: connect and read each have theirs, and so has the whole."""
    connect, read = transport._TIMEOUT
    assert 0 < connect <= 10
    assert 0 < read <= 60
    assert 0 < transport._TOTAL <= 180


@pytest.mark.parametrize(
    "body",
    [
        "<!DOCTYPE html><title>Sign in</title>",
        "  \n<html>captive portal</html>",
    ],
)
def test_a_login_page_in_place_of_a_create_is_no_job(body: str, script: Script, client: RescalePlatform) -> None:
    """A captive portal answers 200 to everything: nothing was saved, nothing submitted, and it says so (row A13)."""
    for content_type in ("text/html", "application/json"):
        script.says("GET jobs/x/statuses/", Said(200, body, {"Content-Type": content_type}))
        with pytest.raises(PlatformRefused, match="answered with a web page"):
            client.state("x")


def test_a_login_page_in_place_of_a_deed_is_none(script: Script, client: RescalePlatform) -> None:
    """Of a submit, a stop or a delete nothing but the status counts, and a captive portal's counts for nothing."""
    page = Said(200, "<!DOCTYPE html>\n<html>Sign in</html>", {"Content-Type": "text/html"})
    for asked, deed in (("POST jobs/x/submit/", client.submit), ("DELETE jobs/x/", client.delete)):
        script.says(asked, page)
        with pytest.raises(PlatformRefused, match="answered with a web page"):
            deed("x")


def test_what_else_went_wrong_is_no_cause(client: RescalePlatform, script: Script) -> None:
    """A look at the platform while another fault is handled says what became of the look."""
    script.says("GET jobs/x/statuses/", Said(200, [], cut=True))

    def look() -> None:
        lost: Future[None] = Future()
        lost.set_exception(ConnectionLost("the agent did not start"))
        try:
            lost.result()
        except ConnectionLost:
            client.state("x")

    with pytest.raises(PlatformUnavailable) as caught:
        look()
    assert "agent" not in str(caught.value)


def test_a_cut_answer_to_a_create_is_not_asked_again(script: Script, client: RescalePlatform) -> None:
    """Half an answer may belong to a whole job: whoever holds the lease looks for it by name (rows A8, A12)."""
    from .test_client import asking

    script.says("POST jobs/", Said(201, {"id": "AbCdEf"}, cut=True))
    with pytest.raises(PlatformUnavailable):
        client.create(asking())
    assert len(script.asked) == 1


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(code: int, script: Script, client: RescalePlatform) -> None:
    """Not even one on the same host: a POST would become a GET, a key would go where nobody looked (row A14)."""
    script.says("POST jobs/x/submit/", Said(code, "", {"Location": "/api/v2/jobs/x/"}))
    script.says("GET jobs/x/", Said(body={"id": "x"}))
    with pytest.raises(PlatformRefused, match="redirected to"):
        client.submit("x")
    assert len(script.asked) == 1


def test_a_wait_does_not_look_at_our_clock(script: Script) -> None:
    """`Retry-After` as a date is compared with the server's own date, a century away from ours (rows A6, A20)."""
    platform = RescalePlatform(script.url, KEY, backoff=Backoff(total=0))
    dates = {"Date": "Mon, 01 Jan 1996 00:00:00 GMT", "Retry-After": "Mon, 01 Jan 1996 00:01:40 GMT"}
    script.says(ME, Said(429, {"detail": "busy"}, dates))
    with pytest.raises(PlatformUnavailable) as caught:
        platform.me()
    assert caught.value.retry_after == 100
    script.says(ME, Said(429, {"detail": "busy"}, {"Retry-After": dates["Retry-After"]}))
    with pytest.raises(PlatformUnavailable) as caught:
        platform.me()
    assert caught.value.retry_after is None
    platform.close()
