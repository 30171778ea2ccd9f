"""Faults of answers and of what is shown, and how they are ordered."""

from __future__ import annotations

import hashlib
import json
import threading
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import requests
import urllib3
from plain_client import Client, eventually

from persistent_runner.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistent_runner.local_platform.local import LocalRescale


@pytest.fixture(autouse=True)
def _no_order_stays(platform: LocalRescale) -> Iterator[None]:
    yield
    platform.faults.clear()


def names(client: Client) -> list[str]:
    return [row["name"] for row in client.rows("jobs/?page_size=100")]


def test_a_lost_answer_is_of_a_deed_that_was_done(client: Client, platform: LocalRescale) -> None:
    """`lost` creates the job and drops the connection, `dropped` drops it and creates none, each once (rows A8, A9)."""
    platform.faults.add("lost", endpoints=["create_job"], times=1)
    with pytest.raises(requests.ConnectionError):
        client.create("true", name="lost answer")
    assert names(client).count("lost answer") == 1
    platform.faults.add("dropped", endpoints=["create_job"], times=1)
    with pytest.raises(requests.ConnectionError):
        client.create("true", name="dropped request")
    assert "dropped request" not in names(client)
    client.create("true", name="dropped request")
    assert platform.faults.listed() == []


def test_a_status_is_answered_as_ordered(client: Client, platform: LocalRescale) -> None:
    """4xx and 5xx with Retry-After and body, without the deed or after it (rows A3, A5, A6, A7)."""
    job_id = client.create("true")
    platform.faults.add("status", endpoints="submit_job", status=429, retry_after=7, times=1)
    reply = client.post(f"jobs/{job_id}/submit/")
    assert (reply.status_code, reply.headers["Retry-After"], client.statuses(job_id)) == (429, "7", [])
    platform.faults.add("status", endpoints="submit_job", status=409, body={"detail": "Twice."}, done=True, times=1)
    reply = client.post(f"jobs/{job_id}/submit/")
    assert (reply.status_code, reply.json(), bool(client.statuses(job_id))) == (409, {"detail": "Twice."}, True)
    platform.faults.add("status", status=502, body="<html>Bad gateway</html>", times=1)
    reply = client.get("users/me/")
    assert (reply.status_code, reply.text) == (502, "<html>Bad gateway</html>")
    assert client.get("users/me/").ok


def test_pages_redirects_and_cut_bodies(client: Client, platform: LocalRescale) -> None:
    """A web page with 200, a 302 elsewhere, half a body (rows A12, A13, A14)."""
    platform.faults.add("html", endpoints="me", times=1)
    reply = client.get("users/me/")
    assert (reply.status_code, reply.headers["Content-Type"].partition(";")[0]) == (200, "text/html")
    platform.faults.add("redirect", endpoints="create_job", to="https://elsewhere.example/x", times=1)
    reply = client.post("jobs/", json=client.body("true"), allow_redirects=False)
    assert (reply.status_code, reply.headers["Location"]) == (302, "https://elsewhere.example/x")
    platform.faults.add("truncated", endpoints="me", times=1)
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        client.get("users/me/")


def test_content_is_cut_where_it_was_ordered_and_ranges_are_ignored(client: Client, platform: LocalRescale) -> None:
    """So many bytes of a file's content or of a range of it, or all of it in place of a range; then as always."""
    content = hashlib.shake_128(b"seed").digest(2 << 20)  # two pieces of the server's
    url = f"files/{client.upload('content.dat', content)}/contents/"
    for headers, whole in (({}, content), ({"Range": "bytes=100-1999999"}, content[100:2_000_000])):
        for count in (0, 1, 1_500_000):
            platform.faults.add("truncated", endpoints="file_contents", bytes=count, times=1)
            reply = client.get(url, headers=headers, stream=True)
            assert reply.headers["Content-Length"] == str(len(whole))
            came: list[bytes] = []
            with pytest.raises(urllib3.exceptions.ProtocolError):
                came.extend(iter(partial(reply.raw.read1, 1 << 16), b""))
            assert hashlib.sha512(b"".join(came)).digest() == hashlib.sha512(whole[:count]).digest()
    platform.faults.add("no_range", endpoints="file_contents", times=1)
    reply = client.get(url, headers={"Range": "bytes=5-9"})
    assert (reply.status_code, len(reply.content)) == (200, len(content))
    assert "Content-Range" not in reply.headers
    reply = client.get(url, headers={"Range": "bytes=5-9"})
    assert (reply.status_code, reply.content) == (206, content[5:10])


def test_a_server_that_hangs_or_is_slow(client: Client, platform: LocalRescale) -> None:
    """`hang` takes the request and says nothing until it is removed, `slow` answers late (row A11)."""
    order = platform.faults.add("hang", endpoints="me", times=1)
    with pytest.raises(requests.ReadTimeout):
        client.session.get(f"{client.base_url}/api/v2/users/me/", timeout=3)
    assert client.get("users/me/").ok
    assert platform.faults.remove(order)
    slow = platform.faults.add("slow", endpoints="me", seconds=3600)
    replies: list[requests.Response] = []
    thread = threading.Thread(target=lambda: replies.append(Client(client.base_url, client.api_key).get("users/me/")))
    thread.start()
    thread.join(0.3)
    assert replies == []
    platform.faults.remove(slow)
    thread.join(20)
    assert replies[0].json()["email"]


def test_a_key_is_revoked_and_valid_again(client: Client, platform: LocalRescale) -> None:
    """401 while the order is in force (rows A1, A2)."""
    order = platform.faults.add("revoked")
    assert (client.get("users/me/").status_code, client.post("jobs/", json={}).status_code) == (401, 401)
    platform.faults.remove(order)
    assert client.get("users/me/").ok


def test_probability_is_drawn_from_a_seed(client: Client, platform: LocalRescale) -> None:
    """The same seed gives the same answers; a third of them fails (row A7)."""

    def codes(seed: int) -> list[int]:
        order = platform.faults.add("status", endpoints="me", status=503, probability=0.3, seed=seed)
        found = [client.get("users/me/").status_code for _ in range(40)]
        platform.faults.remove(order)
        return found

    first = codes(1)
    assert 0 < first.count(503) < 40
    assert codes(1) == first
    assert codes(2) != first


def test_next_leads_astray(client: Client, platform: LocalRescale) -> None:
    """`next` names another host, or the same page for ever (row A15)."""
    platform.faults.add("next", endpoints="jobs", to="http://evil.example", times=1)
    assert client.get("jobs/").json()["next"] == "http://evil.example/api/v2/jobs/"
    platform.faults.add("next", endpoints="jobs", times=1)
    assert client.get("jobs/?page=1").json()["next"] == f"{client.base_url}/api/v2/jobs/?page=1"


def test_a_list_changes_while_it_is_read(client: Client, platform: LocalRescale) -> None:
    """Rows that come push known ones onto the next page, rows that go pull unseen ones away (row A16)."""
    jobs = [client.create("true", name=f"paged {number}") for number in range(7)][::-1]
    path = "jobs/?page_size=2&search=paged"
    order = platform.faults.add("listing", change="grows")
    found = [row["id"] for row in client.rows(path)]
    assert set(found) == set(jobs)
    assert len(found) > len(set(found))
    platform.faults.remove(order)
    platform.faults.add("listing", change="shrinks")
    assert [row["id"] for row in client.rows(path)] == [*jobs[:2], *jobs[3:5], jobs[6]]


def test_a_new_job_is_hidden_for_a_while(client: Client, platform: LocalRescale) -> None:
    """A created job is a 404 and in no list at first, then it is there (row A4)."""
    order = platform.faults.add("hidden")
    job_id = client.create("true", name="hidden job")
    assert (client.get(f"jobs/{job_id}/").status_code, "hidden job" in names(client)) == (404, False)
    platform.faults.remove(order)
    assert "hidden job" in names(client)
    platform.faults.add("hidden", seconds=2)
    job_id = client.create("true")
    assert client.get(f"jobs/{job_id}/").status_code == 404
    eventually(lambda: client.get(f"jobs/{job_id}/").ok, "the job")


def test_a_job_is_saved_otherwise_than_asked(client: Client, platform: LocalRescale) -> None:
    """A field is ignored, changed or not echoed (row A17)."""

    def analysis(**changes: Any) -> dict[str, Any]:
        reply = client.get(f"jobs/{client.create('sleep inf', hardware={'walltime': 2}, **changes)}/").json()
        return dict(reply["jobanalyses"][0]) | {"projectId": reply.get("projectId", "absent")}

    assert analysis(projectId="LocalA")["projectId"] == "LocalA"
    platform.faults.add("saves", field="projectId", times=1)
    assert analysis(projectId="LocalA")["projectId"] is None
    platform.faults.add("saves", field="hardware.walltime", times=1)
    assert analysis()["hardware"]["walltime"] is None
    platform.faults.add("saves", field="command", value="true", times=1, job="jo*")
    assert analysis()["command"] == "true"
    platform.faults.add("not_echoed", field="envVars")
    platform.faults.add("not_echoed", field="projectId")
    assert ("envVars" in (found := analysis()), found["projectId"]) == (False, "absent")


def test_statuses_in_odd_forms(client: Client, platform: LocalRescale) -> None:
    """An unknown status is the newest until the end; orders and dates come in every odd form (rows A18, A19)."""
    job_id = client.start("sleep inf")
    path = f"jobs/{job_id}/statuses/"

    def odd(form: str) -> list[dict[str, Any]]:
        order = platform.faults.add("statuses", form=form, seed=3)
        found = client.rows(path)
        platform.faults.remove(order)
        return found

    plain = client.rows(path)
    assert odd("oldest_first") == plain[::-1]
    shuffled = odd("shuffled")
    assert shuffled not in (plain, plain[::-1])
    assert sorted(shuffled, key=lambda row: row["statusDate"]) == plain[::-1]
    same = odd("same_second")
    assert len({row["statusDate"] for row in same}) == 1
    assert [row["status"] for row in same] == [row["status"] for row in plain]
    assert datetime.fromisoformat(odd("no_zone")[0]["statusDate"]).tzinfo is None
    assert odd("z")[0]["statusDate"].endswith("Z")
    platform.faults.add("unknown_status", status="Hibernating")
    assert (client.statuses(job_id)[:2], client.cluster(job_id)[0]) == (["Hibernating", "Executing"], "Hibernating")
    client.post(f"jobs/{job_id}/stop/")
    client.wait_stopped(job_id)
    assert client.statuses(job_id)[0] == "Completed"


def test_machines_in_odd_forms(client: Client, platform: LocalRescale) -> None:
    """Machines come late, as 404, without addresses or user, with odd ports, shuffled, with two masters (rows L6-L9)."""
    job_id = client.start("sleep inf", hardware={"coresPerSlot": 72})
    path = f"jobs/{job_id}/instances/"

    def odd(what: str, **options: Any) -> list[dict[str, Any]]:
        order = platform.faults.add(what, **options)
        found = client.rows(path)
        platform.faults.remove(order)
        return found

    plain = client.rows(path)
    assert odd("instances") == []
    platform.faults.add("instances", form="404", times=1)
    assert client.get(path).status_code == 404
    assert odd("instances", seconds=0) == plain
    row = odd("machines", form="no_public_address")[0]
    assert (row["publicIp"], row["privateIp"]) == (None, "10.0.0.10")
    row = odd("machines", form="no_address")[0]
    assert (row["publicIp"], row["privateIp"], row["privateHostname"]) == (None, None, None)
    assert odd("machines", form="no_user")[0]["username"] is None
    assert odd("machines", form="port")[0]["sshPort"] == "0"
    assert odd("machines", form="port", port="22\n")[0]["sshPort"] == "22\n"
    assert odd("machines", form="shuffled") == plain[::-1]
    assert [row["role"] for row in odd("machines", form="two_masters")] == ["MPI_MASTER"] * 2
    client.stop(job_id)


def test_an_order_can_mean_the_job_that_is_created(client: Client, platform: LocalRescale) -> None:
    """The name in the request counts: somebody else's job is created meanwhile."""
    platform.faults.add("lost", job="mine-*", endpoints=["create_job"], times=1)
    client.create("true", name="theirs-1")
    with pytest.raises(requests.ConnectionError):
        client.create("true", name="mine-1")


def test_an_order_can_mean_one_job(client: Client, platform: LocalRescale) -> None:
    """By id or by a pattern of names; the others are as always."""
    first, second = client.create("true", name="one-a"), client.create("true", name="two-b")
    platform.faults.add("status", endpoints="job", status=500, job=first)
    assert (client.get(f"jobs/{first}/").status_code, client.get(f"jobs/{second}/").status_code) == (500, 200)
    platform.faults.clear()
    platform.faults.add("status", endpoints="job", status=500, job="two-*")
    assert (client.get(f"jobs/{first}/").status_code, client.get(f"jobs/{second}/").status_code) == (200, 500)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ({"what": "lots"}, 'did you mean "lost"'),
        ({"what": "lost", "endpoint": ["me"]}, 'did you mean "endpoints"'),
        ({"what": "lost", "endpoints": ["create_jobs"]}, 'did you mean "create_job"'),
        ({"what": "duration", "status": "queue", "seconds": 1}, 'did you mean "queued"'),
        ({"what": "status", "status": 200}, "status: status: Input should be greater than or equal to 400"),
        ({"what": "stop", "job": "nobody"}, "no job that is meant executes now"),
        (["lost"], "A fault is an object"),
    ],
)
def test_a_wrong_order_is_explained(platform: LocalRescale, order: Any, said: str) -> None:
    """What is misspelled is named with the nearest name, by Python and over HTTP alike."""
    with pytest.raises(ConfigError, match=said):
        platform.faults.order(order)
    headers = {"Authorization": f"Bearer {platform.control_token}"}
    reply = requests.post(platform.control_url, json=order, headers=headers, timeout=20)
    assert reply.status_code == 400
    assert said.replace("\\", "") in reply.json()["detail"]


def test_faults_over_http(client: Client, platform: LocalRescale) -> None:
    """The control endpoint orders, lists and withdraws; the API key does not open it, its token does not open the API."""
    control = requests.Session()
    control.trust_env = False
    control.headers["Authorization"] = f"Bearer {platform.control_token}"
    order = {"what": "status", "endpoints": ["me"], "status": 503, "times": 2}
    order_id = control.post(platform.control_url, data=json.dumps(order), timeout=20).json()["id"]
    assert client.get("users/me/").status_code == 503
    listed = control.get(platform.control_url, timeout=20).json()["faults"]
    assert listed == [{**order, "id": order_id, "left": 1}]
    assert control.delete(f"{platform.control_url}/{order_id}", timeout=20).status_code == 204
    assert control.delete(f"{platform.control_url}/{order_id}", timeout=20).status_code == 404
    assert client.get("users/me/").ok
    control.post(platform.control_url, json={"what": "revoked"}, timeout=20)
    assert control.delete(platform.control_url, timeout=20).status_code == 204
    assert client.get("users/me/").ok
    for scheme in ("Token", "Bearer"):
        headers = {"Authorization": f"{scheme} {platform.api_key}"}
        assert control.get(platform.control_url, headers=headers, timeout=20).status_code == 401
    headers = {"Authorization": f"Token {platform.control_token}"}
    assert control.get(f"{platform.base_url}/api/v2/users/me/", headers=headers, timeout=20).status_code == 401
    control.close()
