"""The REST API as plain client programs use it; the traps are those of the real service."""

from __future__ import annotations

import hashlib
import io
import re
import threading
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
import requests
from plain_client import Client, eventually

from persistent_runner.local_platform import files as stored_files
from persistent_runner.local_platform.server import Api, make_app
from persistent_runner.rescale.api import ENDPOINTS, CoreType, Endpoints, File, Instance, Job, JobSummary, Status, User

if TYPE_CHECKING:
    from pathlib import Path

    from persistent_runner.local_platform.local import LocalRescale

Z_DATE = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"


def test_serves_the_table_and_nothing_else(tmp_path: Path) -> None:
    """Every endpoint that a client may call is served, and no call works here that the real service lacks."""
    store = stored_files.FileStore(tmp_path, datetime.now)
    app = make_app(Api(None, store, None), "key", store)  # type: ignore[arg-type]
    served = {
        (method, re.sub(r"<(?:path:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD"}
    }
    assert served == {(endpoint.method, f"/api/v2/{endpoint.path}") for endpoint in ENDPOINTS.values()}


def test_needs_the_token(client: Client) -> None:
    """Without a key, or with a wrong one, every call is a 401 with words."""
    url = f"{client.base_url}/api/v2/users/me/"
    missing = requests.get(url, timeout=20)
    wrong = requests.get(url, headers={"Authorization": "Token 0123"}, timeout=20)
    assert (missing.status_code, missing.json()["detail"]) == (401, "Authentication credentials were not provided.")
    assert (wrong.status_code, wrong.json()["detail"]) == (401, "Invalid token.")
    assert wrong.headers["WWW-Authenticate"] == "Token"


def test_who_and_what(client: Client) -> None:
    """User, projects, prices and software are there, in the shapes of the real catalogue."""
    assert User.model_validate(client.get("users/me/").json()).email
    assert {row["id"] for row in client.rows("users/me/projects/")}
    prices = client.get("billing/computeprices/").json()
    assert {row["coreType"] for row in prices} == {row["code"] for row in client.rows("coretypes/")}
    assert all(isinstance(row["value"]["amount"], str) for row in prices)
    tiles = {row["code"]: [v["versionCode"] for v in row["versions"]] for row in client.rows("analyses/")}
    assert tiles["user_included"] == ["0"]
    assert "2019r1" in tiles["ansys_fluent"]


def test_core_types_fill_more_than_one_page(client: Client) -> None:
    """A client that reads one page misses some: `next` leads on, at the host that was asked, with its query kept."""
    first = client.get("coretypes/", params={"isActive": "true"}).json()
    assert (len(first["results"]), first["previous"]) == (10, None)
    assert first["count"] > 10
    assert first["next"].startswith(f"{client.base_url}/api/v2/coretypes/?")
    assert "isActive=true" in first["next"]
    by_name = first["next"].replace("127.0.0.1", "localhost")
    assert client.session.get(by_name, timeout=20).json()["previous"].startswith("http://localhost:")
    assert client.get("coretypes/", params={"page": "9"}).json() == {"detail": "Invalid page."}
    cores = {row["code"]: CoreType.model_validate(row).cores for row in client.rows("coretypes/")}
    assert (cores["granite"][0], cores["emerald"], cores["emerald_max"][0]) == (2, [1, 2, 4, 8, 18, 36], 4)
    assert len(client.get("coretypes/", params={"page_size": "9999"}).json()["results"]) == len(cores)


def test_a_get_without_slash_is_redirected_and_a_post_is_not(client: Client) -> None:
    """GETs of older clients work with Authorization and Range kept; a POST cannot turn into a list by accident."""
    file_id = client.upload("x.txt", b"0123456789")
    part = client.get(f"files/{file_id}/contents", headers={"Range": "bytes=2-4"})
    assert ([reply.status_code for reply in part.history], part.status_code, part.content) == ([301], 206, b"234")
    assert client.get("jobs?page_size=1", allow_redirects=False).headers["Location"] == "/api/v2/jobs/?page_size=1"
    assert client.get(f"files/{file_id}/lines").json() == {"lines": ["0123456789"]}
    assert client.post("jobs", json={}).status_code == 404


@pytest.mark.parametrize("path", ["jobs/nOsuch/", "files/nOsuch/", "jobs/nOsuch/statuses/", "nothing/"])
def test_what_is_not_there_is_a_404(client: Client, path: str) -> None:
    """A wrong id or path is answered in JSON."""
    reply = client.get(path)
    assert (reply.status_code, reply.json()) == (404, {"detail": "Not found."})


def test_other_methods_are_refused(client: Client) -> None:
    """A method that an endpoint lacks is a 405 with words."""
    reply = client.call("DELETE", "users/me/")
    assert (reply.status_code, reply.json()) == (405, {"detail": 'Method "DELETE" not allowed.'})


def test_a_file_comes_back_as_it_went_up(client: Client) -> None:
    """Upload, metadata, SHA-512, whole and ranged download, search, change, delete."""
    content = bytes(range(256)) * 5000
    sent = client.post("files/contents/", files={"file": ("data ü.bin", io.BytesIO(content))})
    stored = File.model_validate(sent.json())
    assert (sent.status_code, stored.name, stored.type_id, stored.decrypted_size) == (
        201,
        "data ü.bin",
        1,
        len(content),
    )
    assert stored.file_checksums[0].file_hash == hashlib.sha512(content).hexdigest()
    assert re.fullmatch(Z_DATE, sent.json()["dateUploaded"])
    assert client.session.get(stored.download_url, timeout=20).content == content
    assert [row["id"] for row in client.rows("files/?search=DATA")] == [stored.id]
    changed = client.call("PATCH", f"files/{stored.id}/", json={"name": "other.bin"})
    assert (changed.status_code, changed.json()["name"]) == (200, "other.bin")
    assert client.call("DELETE", f"files/{stored.id}/").status_code == 204
    assert client.get(f"files/{stored.id}/").status_code == 404
    assert client.rows("files/?search=other.bin") == []


@pytest.mark.parametrize(
    ("header", "status", "content", "content_range"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=8-10", 206, b"89", "bytes 8-9/10"),
        ("bytes=4-", 206, b"456789", "bytes 4-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=10-12", 416, None, None),
        ("lines=1-2", 200, b"0123456789", None),
    ],
)
def test_ranges(client: Client, header: str, status: int, content: bytes | None, content_range: str | None) -> None:
    """Parts of a file can be had; an end past the file's is clamped."""
    file_id = client.upload("range.bin", b"0123456789")
    reply = client.get(f"files/{file_id}/contents/", headers={"Range": header})
    assert (reply.status_code, reply.headers.get("Content-Range")) == (status, content_range)
    assert content is None or (reply.content == content and reply.headers["Content-Length"] == str(len(content)))


def test_ranges_elsewhere_are_ignored(client: Client) -> None:
    """Some clients send Range with every call; only contents heed it."""
    file_id = client.upload("some.txt", b"a\nb\r\nc")
    reply = client.get(f"files/{file_id}/lines/", headers={"Range": "bytes=0-1"})
    assert (reply.status_code, reply.json()) == (200, {"lines": ["a\n", "b\r\n", "c"]})


def test_many_ranges_and_uploads_at_once(client: Client) -> None:
    """Ten parallel uploads of some MB and ten parallel ranges of one file all arrive whole."""
    content = hashlib.shake_128(b"seed").digest(4 << 20)
    ids: list[str] = []
    parts: dict[int, bytes] = {}

    def at_once(work: Any) -> None:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def up(number: int) -> None:
        files = {"file": (f"big{number}", content)}
        headers = dict(client.session.headers)
        url = f"{client.base_url}/api/v2/files/contents/"
        ids.append(requests.post(url, files=files, headers=headers, timeout=60).json()["id"])

    def down(number: int) -> None:
        size = -(-len(content) // 10)
        span = {**client.session.headers, "Range": f"bytes={number * size}-{(number + 1) * size - 1}"}
        parts[number] = requests.get(
            f"{client.base_url}/api/v2/files/{ids[0]}/contents/", headers=span, timeout=60
        ).content

    at_once(up)
    at_once(down)
    sums = {client.get(f"files/{file_id}/").json()["fileChecksums"][0]["fileHash"] for file_id in ids}
    assert (len(ids), sums) == (10, {hashlib.sha512(content).hexdigest()})
    assert b"".join(parts[number] for number in range(10)) == content


def test_an_upload_in_chunks_is_refused(client: Client) -> None:
    """The real service refuses chunked transfers: a client that streams from a generator learns it here."""
    reply = client.post(
        "files/contents/", data=iter([b"abc"]), headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert reply.status_code == 411
    assert "Content-Length" in reply.json()["detail"]
    assert client.post("files/contents/", files={"other": ("x", b"")}).json() == {"file": ["No file was submitted."]}


def test_a_draft_is_saved_echoed_and_deleted(client: Client) -> None:
    """Create only saves: no status yet, an empty one in the list; unknown keys are swallowed; null is allowed."""
    body = client.body(
        "# ", name="draft", projectId=None, project_id="x", publicKey="ssh-ed25519 AAAA", envVars={"A": "1"}
    )
    reply = client.post("jobs/", json=body)
    job = Job.model_validate(reply.json())
    assert reply.status_code == 201
    assert (job.name, job.public_key, job.cidr_rule, job.ssh_port) == ("draft", "ssh-ed25519 AAAA", "0.0.0.0/0", 22)
    assert (job.jobanalyses[0].command, job.jobanalyses[0].env_vars) == ("# ", {"A": "1"})
    assert job.jobanalyses[0].hardware.core_type == "emerald"
    assert "status" not in client.get(f"jobs/{job.id}/").json()
    assert re.fullmatch(Z_DATE, reply.json()["dateInserted"])
    assert client.statuses(job.id) == []
    assert client.get(f"jobs/{job.id}/cluster_statuses/").status_code == 404
    row = JobSummary.model_validate(client.get("jobs/", params={"search": "DRAFT"}).json()["results"][0])
    assert (row.id, row.job_status.content if row.job_status else None) == (job.id, "")
    assert client.post(f"jobs/{job.id}/stop/").status_code == 400
    changed = client.call("PATCH", f"jobs/{job.id}/", json={"name": "renamed"})
    assert (changed.status_code, client.get(f"jobs/{job.id}/").json()["name"]) == (200, "renamed")
    assert client.call("DELETE", f"jobs/{job.id}/").status_code == 204
    assert client.get(f"jobs/{job.id}/").status_code == 404


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"hardware": {"coreType": "granite", "coresPerSlot": 1}}, ["jobanalyses", 0, "hardware", "coresPerSlot"]),
        ({"hardware": {"coresPerSlot": 3}}, ["jobanalyses", 0, "hardware", "coresPerSlot"]),
        ({"hardware": {"coreType": "unobtainium"}}, ["jobanalyses", 0, "hardware", "coreType"]),
        ({"hardware": {"walltime": 9999}}, ["jobanalyses", 0, "hardware", "walltime"]),
        ({"hardware": {"coresPerSlot": None}}, ["jobanalyses", 0, "hardware", "coresPerSlot"]),
        ({"command": ""}, ["jobanalyses", 0, "command"]),
        ({"inputFiles": [{"id": "nOsuch"}]}, ["jobanalyses", 0, "inputFiles"]),
        ({"envVars": {"a b": "1"}}, ["jobanalyses", 0, "envVars"]),
        ({"projectId": "nOsuch"}, ["projectId"]),
        ({"name": None}, ["name"]),
        ({"jobanalyses": []}, ["jobanalyses"]),
    ],
)
def test_a_wrong_job_is_refused_with_its_field(client: Client, changes: dict[str, Any], place: list[str | int]) -> None:
    """A mistake in a create body is a 400 whose JSON leads to the field."""
    reply = client.post("jobs/", json=client.body(changes.pop("command", "true"), **changes))
    found = reply.json()
    for step in place:
        found = found[step]
    assert reply.status_code == 400
    assert isinstance(found[0], str)


def test_a_body_that_is_no_json_is_refused(client: Client) -> None:
    """A broken body is a 400 with words, not a 500."""
    assert client.post("jobs/", data=b"{").json() == {"detail": "JSON parse error."}


def test_statuses_and_instances_read_as_models(client: Client, node: str) -> None:
    """Dates come in the forms of the real service, an instance with its 14 keys and role CUSTOM."""
    status = client.rows(f"jobs/{node}/statuses/")[0]
    assert datetime.fromisoformat(status["statusDate"]).tzinfo
    assert re.fullmatch(Z_DATE.removesuffix("Z") + r"\+00:00", status["statusDate"])
    assert Status.model_validate(status).status == "Executing"
    assert re.fullmatch(Z_DATE, client.rows(f"jobs/{node}/cluster_statuses/")[0]["statusDate"])
    (row,) = client.rows(f"jobs/{node}/instances")
    assert len(row) == 14
    assert re.fullmatch(Z_DATE, row["dateStarted"])
    assert (Instance.model_validate(row).role, row["username"]) == ("CUSTOM", f"uprod_{node}")


def test_a_running_job_can_be_watched(client: Client) -> None:
    """directory-contents is a bare list, tail strips line ends, without `lines` it gives raw bytes; both end with the run."""
    job_id = client.start("mkdir -p 'sub dir' && printf 'a\\nb\\nc\\n' > 'sub dir/x.txt'; sleep inf")
    path = f"jobs/{job_id}/runs/1/"
    eventually(lambda: client.get(f"{path}tail/sub dir/x.txt").content == b"a\nb\nc\n", "the file")
    assert client.get(f"{path}tail/sub dir/x.txt", params={"lines": "2"}).json()["lines"] == ["b", "c"]
    assert client.get(f"{path}tail/sub dir/x.txt/", params={"lines": "1"}).json()["lines"] == ["c"]
    listed = client.get(f"{path}directory-contents/").json()
    assert {"path": "sub dir/x.txt", "resource": f"/api/{path}tail/sub dir/x.txt"} in listed
    assert client.get(f"{path}tail/%2e%2e/.profile").status_code == 404
    (run,) = client.rows(f"jobs/{job_id}/runs/")
    assert (run["id"], run["dateCompleted"], client.get(path).json()) == ("1", None, run)
    assert client.get(f"jobs/{job_id}/runs/2/").status_code == 404
    client.stop(job_id)
    assert client.get(f"{path}directory-contents/").status_code == 404
    assert client.get(f"{path}tail/process_output.log").status_code == 404
    assert client.get(path).json()["dateCompleted"]
    assert client.rows(f"{path}files/") == client.rows(f"jobs/{job_id}/files/")


def test_folders_that_vanish_while_a_run_is_listed(client: Client) -> None:
    """A solver makes and removes folders all the time; what stays is listed."""
    deep = "/".join("abcdefgh")
    job_id = client.start(f"touch stays; while mkdir -p {deep}; do touch {deep}/x; rm -r a; done")
    path = f"jobs/{job_id}/runs/1/directory-contents/"
    eventually(lambda: "stays" in client.get(path).text, "the file that stays")
    for _ in range(200):
        answer = client.get(path)
        assert answer.status_code == 200, answer.text
        assert "stays" in {entry["path"] for entry in answer.json()}
    client.stop(job_id)


def test_only_loopback_listens(platform: LocalRescale) -> None:
    """Nobody else on the network can reach the platform."""
    assert platform.base_url.startswith("http://127.0.0.1:")
    assert re.fullmatch(r"[0-9a-f]{40}", platform.api_key)
    assert Endpoints.me.path == "users/me/"
