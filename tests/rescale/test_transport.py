"""`rescale/transport.py` against odd replies over real HTTP: what is repeated, what is refused, and in which words."""

from __future__ import annotations

import logging
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from persistent_runner.errors import PlatformRefused, PlatformUnavailable
from persistent_runner.lease.platform import LeaseRequest
from persistent_runner.recovery import Backoff
from persistent_runner.rescale.api import Endpoints
from persistent_runner.rescale.client import RescalePlatform
from persistent_runner.rescale.transport import Transport

from .scripted import KEY, Said, Script

if TYPE_CHECKING:
    from pathlib import Path

ME = "GET users/me/"
JOB = "GET jobs/AbCdEf/statuses/"
USER = Said(body={"email": "a@b"})


def test_the_token_goes_with_every_call(script: Script, client: RescalePlatform) -> None:
    """The documented header is sent."""
    script.says(ME, USER)
    assert client.me().email == "a@b"
    assert script.asked[0][1]["Authorization"] == f"Token {KEY}"


def test_netrc_does_not_replace_the_token(
    script: Script, client: RescalePlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine entry for the same host is left alone, which `requests` by itself would prefer."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    script.says(ME, USER)
    client.me()
    # Where the session trusts the environment, as it does for a platform that is not on this machine.
    client._http._session.trust_env = True
    client.me()
    assert {headers["Authorization"] for _, headers, _ in script.asked} == {f"Token {KEY}"}


def test_a_proxy_is_not_asked_for_this_machine(
    script: Script, client: RescalePlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A company's proxy in the environment neither breaks the local platform nor sees its key."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    script.says(ME, USER)
    assert client.me().email == "a@b"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_get_is_repeated_on_passing_faults(status: int, script: Script, client: RescalePlatform) -> None:
    """A gateway's hiccup, web page or not, is ordinary while polling."""
    script.says(ME, Said(status, "<html>gateway</html>", {"Content-Type": "text/html"}), Said(status, "no"), USER)
    assert client.me().email == "a@b"
    assert len(script.asked) == 3


def test_retry_after_is_kept_and_capped(script: Script) -> None:
    """The wait that the platform asks for is handed on in seconds, as a number or as a date, five minutes at most."""
    platform = RescalePlatform(script.url, KEY, backoff=Backoff(total=0))
    dates = {"Date": "Mon, 01 Jan 2024 00:00:00 GMT", "Retry-After": "Mon, 01 Jan 2024 00:00:37 GMT"}
    for headers, seconds in [({"Retry-After": "12"}, 12), ({"Retry-After": "99999"}, 300), (dates, 37), ({}, None)]:
        script.says(ME, Said(429, {"detail": "Request was throttled."}, dict(headers)))
        with pytest.raises(PlatformUnavailable, match="Request was throttled") as caught:
            platform.me()
        assert caught.value.retry_after == seconds
    platform.close()


def test_a_set_stop_ends_the_repeats(script: Script) -> None:
    """An interrupted user does not wait for a platform that is away."""
    stop = threading.Event()
    stop.set()
    script.says(ME, Said(503))
    platform = RescalePlatform(script.url, KEY, stop=stop)
    with pytest.raises(PlatformUnavailable):
        platform.me()
    platform.close()
    assert len(script.asked) == 1


def test_a_broken_body_is_repeated_and_never_half_read(script: Script, client: RescalePlatform) -> None:
    """A truncated answer, or one that is not whole JSON, counts as no answer."""
    script.says(JOB, Said(body=[{"status": "Executing"}], cut=True), Said(body=[{"status": "Pending"}]))
    assert client.state("AbCdEf").status == "Pending"


def test_nobody_listens() -> None:
    """A platform that is away is unavailable, not a traceback of another library."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        platform = RescalePlatform(f"http://127.0.0.1:{taken.getsockname()[1]}", KEY, backoff=Backoff(total=0))
        with pytest.raises(PlatformUnavailable, match="the connection failed"):
            platform.me()


@pytest.mark.parametrize("status", [429, 500, 504])
def test_create_submit_stop_and_delete_are_sent_once(status: int, script: Script, client: RescalePlatform) -> None:
    """A second create or submit could be a second cluster: whoever holds the lease decides, not the transport."""
    request = LeaseRequest(name="n", command="c", core_type="emerald", cores=1, walltime="PT1H")
    for call in ("POST jobs/", "POST jobs/x/submit/", "POST jobs/x/stop/", "POST jobs/x/force_stop/", "DELETE jobs/x/"):
        script.says(call, Said(status))
    for action in (
        lambda: client.create(request),
        lambda: client.submit("x"),
        lambda: client.stop("x"),
        lambda: client.stop("x", force=True),
        lambda: client.delete("x"),
    ):
        with pytest.raises(PlatformUnavailable):
            action()
    assert len(script.asked) == 5


def test_a_web_page_is_not_the_api(script: Script, client: RescalePlatform) -> None:
    """A login page with status 200 is named as what it is, and not asked again."""
    script.says(ME, Said(200, "<!doctype html><h1>Sign in</h1>", {"Content-Type": "text/html"}))
    with pytest.raises(PlatformRefused, match=r"127\.0\.0\.1:\d+ answered with a web page, not the API"):
        client.me()
    assert len(script.asked) == 1


@pytest.mark.parametrize("call", ["GET", "POST"])
def test_a_redirect_is_an_error_that_names_the_base_url(call: str, script: Script, client: RescalePlatform) -> None:
    """Following it would send the key elsewhere, or turn a submit into a look."""
    elsewhere = Said(302, "", {"Location": "https://eu.rescale.com/api/v2/users/me/"})
    script.says(ME, elsewhere)
    script.says("POST jobs/x/submit/", elsewhere)
    with pytest.raises(PlatformRefused) as caught:
        client.me() if call == "GET" else client.submit("x")
    assert "The base URL may have to be https://eu.rescale.com" in caught.value.remedy
    assert len(script.asked) == 1


def test_a_refused_key_says_so(script: Script, client: RescalePlatform) -> None:
    """The message names the host and the server's own words, and never the key; run-study ends with 3."""
    script.says(ME, Said(401, {"detail": f"Invalid token {KEY}."}))
    with pytest.raises(PlatformRefused, match="refused the API key") as caught:
        client.me()
    assert "127.0.0.1" in str(caught.value)
    assert KEY not in str(caught.value)
    assert (caught.value.status, caught.value.exit_code) == (401, 3)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"detail": "You do not have permission."}, "You do not have permission."),
        (
            {"jobanalyses": [{"hardware": {"coresPerSlot": ["1 is not offered."]}}]},
            "jobanalyses.0.hardware.coresPerSlot: 1 is not offered.",
        ),
        (
            {"projectId": ["invalid project id"], "name": ["too long", "odd"]},
            "projectId: invalid project id; name: too long",
        ),
        (["plain"], "plain"),
        ("no JSON\x1b[2J at all", "no JSON[2J at all"),
        ("<html>x</html>", "(a web page)"),
        ({}, "{}"),
    ],
)
def test_errors_carry_the_servers_own_words(body: object, words: str, script: Script, client: RescalePlatform) -> None:
    """What the platform says of a refusal reaches the user, without terminal codes."""
    script.says(ME, Said(400, body))
    with pytest.raises(PlatformRefused) as caught:
        client.me()
    assert words in caught.value.message
    assert "\x1b" not in caught.value.message


def test_an_answer_that_drips(script: Script) -> None:
    """An answer that never ends, a byte now and then, ends at a deadline and counts as no answer."""
    script.says(JOB, Said(body=[{"status": "Executing"}] * 1000, drip=0.02))
    transport = Transport(script.url, KEY, stop=None, backoff=Backoff(total=0), deadline=0.2)
    with pytest.raises(PlatformUnavailable, match="no answer in time"):
        transport.call(Endpoints.statuses, job_id="AbCdEf")
    transport.close()


def test_long_words_are_cut(script: Script, client: RescalePlatform) -> None:
    """A server's debug page does not fill the terminal."""
    script.says(ME, Said(400, "x" * 100_000))
    with pytest.raises(PlatformRefused) as caught:
        client.me()
    assert len(caught.value.message) < 1000


def test_an_answer_of_another_shape_names_the_field(script: Script, client: RescalePlatform) -> None:
    """A changed API is told apart from a wrong input, without the values of the answer."""
    script.says(ME, Said(body={"fullName": "canary"}))
    with pytest.raises(PlatformRefused, match="another shape: email") as caught:
        client.me()
    assert "canary" not in str(caught.value)


def test_bare_lists_and_pages_are_read_alike(script: Script, client: RescalePlatform) -> None:
    """A list may come bare, or in pages whose `next` may be absent, null, or without its slash."""
    script.says("GET users/me/projects/", Said(body=[{"id": "a"}, {"id": "b"}]))
    assert [project.id for project in client.projects()] == ["a", "b"]
    script.says(
        "GET users/me/projects/",
        Said(body={"count": 3, "next": f"{script.url}/api/v2/users/me/projects?page=2", "results": [{"id": "a"}]}),
    )
    script.says("GET users/me/projects/?page=2", Said(body={"next": "?page=3", "results": [{"id": "b"}, {"id": "a"}]}))
    script.says("GET users/me/projects/?page=3", Said(body={"results": [{"id": "c"}]}))
    assert [project.id for project in client.projects()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "there",
    [
        "http://127.0.0.2:{port}/x",
        "http://localhost:{port}/x",
        "https://127.0.0.1:{port}/x",
        "http://127.0.0.1:1/x",
        "//evil.example/x",
    ],
)
def test_a_next_page_elsewhere_is_refused(there: str, script: Script, client: RescalePlatform) -> None:
    """The key goes to the scheme, host and port that the user named, and nowhere else."""
    script.says("GET jobs/", Said(body={"next": there.format(port=script.url.rsplit(":")[-1]), "results": []}))
    with pytest.raises(PlatformRefused, match="lead to another host"):
        client.find("x")
    assert len(script.asked) == 1


def test_pages_without_an_end_are_refused(script: Script, client: RescalePlatform) -> None:
    """A `next` that leads back to a page that was read does not hang the program."""
    script.says("GET jobs/", Said(body={"next": f"{script.url}/api/v2/jobs/?page=2", "results": []}))
    with pytest.raises(PlatformRefused, match="did not end"):
        client.find("x")
    assert len(script.asked) == 2


def test_a_row_that_cannot_be_read_is_left_out_with_one_warning(
    script: Script, client: RescalePlatform, caplog: pytest.LogCaptureFixture
) -> None:
    """One odd core type does not lock the user out of all the others, and a poll does not repeat the warning."""
    script.says("GET coretypes/", Said(body=[{"name": "odd"}, {"code": "emerald"}]))
    with caplog.at_level(logging.WARNING):
        assert [kind.code for kind in client.core_types()] == ["emerald"]
        client.core_types()
    assert len([record for record in caplog.records if "left out" in record.message]) == 1


def test_a_reply_that_is_no_list_is_refused(script: Script, client: RescalePlatform) -> None:
    """An object in place of a list is not an empty list: an empty status list would mean `not submitted`."""
    script.says(JOB, Said(body={"detail": "fine"}))
    with pytest.raises(PlatformRefused, match="not a list"):
        client.state("AbCdEf")


def test_a_job_id_cannot_leave_its_place_in_the_path(script: Script, client: RescalePlatform) -> None:
    """Foreign text in an id stays text."""
    with pytest.raises(PlatformRefused):
        client.submit("x?y#z")
    assert script.calls("POST") == ["POST /api/v2/jobs/x%3Fy%23z/submit/"]


@pytest.mark.parametrize("there", ["http://127.0.0.1:99999/x", "http://[abc/x", "http://[::1"])
def test_an_address_that_is_none_is_refused(there: str, script: Script, client: RescalePlatform) -> None:
    """Neither a `next` nor a redirect that cannot be read ends in anything but our own error."""
    script.says("GET jobs/", Said(body={"next": there, "results": []}))
    with pytest.raises(PlatformRefused, match="lead to another host"):
        client.find("x")
    script.says("GET users/me/", Said(302, "", {"Location": there}))
    with pytest.raises(PlatformRefused, match="redirected to an address that is none"):
        client.me()


def test_who_cannot_wait_asks_once(script: Script) -> None:
    """A 503 is told at once to whoever has beats to send, and repeated for all others."""
    client = RescalePlatform(script.url, "key", backoff=Backoff(first=0.01, most=0.02, total=60))
    script.says("GET jobs/aBcDe/statuses/", Said(503, ""))
    with pytest.raises(PlatformUnavailable):
        client.state("aBcDe", patient=False)
    assert len(script.asked) == 1
    client.close()
