"""`rescale/files.py`: what a stopped job has left is listed and brought here, over a network and a platform with faults."""

from __future__ import annotations

import hashlib
import logging
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

import pytest

from persistent_runner.errors import PlatformRefused, PlatformUnavailable
from persistent_runner.recovery import Backoff
from persistent_runner.rescale import files, transport
from persistent_runner.rescale.api import File
from persistent_runner.rescale.client import RescalePlatform
from tests.local_platform.plain_client import Client
from tests.remote.proxy import Proxy

from .scripted import KEY, QUICK, Said, Script

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from persistent_runner.local_platform.local import LocalRescale

ATTEMPT = "beam.k3x9/00007.1"
BIG = hashlib.shake_128(b"seed").digest(5_000_000)
SMALL = {
    ".attempt/0/exit.json": b'{"state": "done"}',
    ".attempt/0/log": b"converged\n",
    "empty.dat": b"",
    "a name with spaces.txt": b"spaces",
    "ünï #1 100%/50%25 +&?.csv": b"odd",
}
MAKE = """python3 - <<'END'
import hashlib, os
def put(path, content):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)
for path, content in {small!r}.items():
    put("{attempt}/" + path, content)
put("{attempt}/big.dat", hashlib.shake_128(b"seed").digest(5_000_000))
for number in range(20):
    put("beam.k3x9/%05d.1/result.txt" % (number + 100), b"%d" % number)
END"""


@pytest.fixture(scope="module")
def job_id(rescale: LocalRescale) -> Iterator[str]:
    """Give the id of a job whose cluster has ended and whose work folder was saved."""
    client = Client(rescale.base_url, rescale.api_key)
    job_id = client.start(MAKE.format(small=SMALL, attempt=ATTEMPT))
    client.wait_stopped(job_id)
    yield job_id
    client.session.close()


@pytest.fixture(autouse=True)
def _no_order_stays(rescale: LocalRescale) -> Iterator[None]:
    yield
    rescale.faults.clear()


@pytest.fixture
def left(local: RescalePlatform, job_id: str) -> dict[str, File]:
    """Return the files of the attempt by their paths."""
    return files.below(local.files.listed(job_id), ATTEMPT)


def kept(folder: Path) -> list[str]:
    """Return everything below a folder that is not a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# the list


def test_a_list_of_several_pages_is_read_whole(
    local: RescalePlatform, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file once, with its path, size and checksum, whatever fits on a page."""
    whole = local.files.listed(job_id)
    assert len(whole) > 26
    monkeypatch.setattr(files, "_PAGE_SIZE", 4)
    paged = local.files.listed(job_id)
    assert paged == whole
    assert len({file.id for file in paged}) == len(paged)
    found = files.below(paged, ATTEMPT)
    assert {path: file.decrypted_size for path, file in found.items()} == {
        **{path: len(content) for path, content in SMALL.items()},
        "big.dat": len(BIG),
    }
    assert found["big.dat"].file_checksums[0].file_hash == hashlib.sha512(BIG).hexdigest()


@pytest.mark.parametrize("name", ["exit.json", "result", "50%25 +&?.csv", "ünï"])
def test_a_search_finds_what_the_list_holds(
    name: str, local: RescalePlatform, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a part of the name over several pages; by a folder's too, which the platform's own search does not look at."""
    monkeypatch.setattr(files, "_PAGE_SIZE", 4)
    whole = local.files.listed(job_id)
    expected = [file.id for file in whole if name in (file.relative_path or "")]
    assert expected
    assert [file.id for file in local.files.listed(job_id, name=name)] == expected


def test_a_search_that_is_ignored_is_made_here(script: Script, client: RescalePlatform) -> None:
    """A platform that answers a search with all files, or with none, changes nothing; what is deleted is left out."""
    rows = [{"id": "a", "relativePath": "x/exit.json"}, {"id": "b", "relativePath": "x/log"}]
    rows.append({"id": "c", "relativePath": "y/exit.json", "isDeleted": True})
    script.says("GET jobs/AbCdEf/files/", Said(body=rows))
    assert [file.id for file in client.files.listed("AbCdEf", name="exit.json")] == ["a"]
    assert len(script.asked) == 1
    script.says("GET jobs/AbCdEf/files/", Said(body=[]), Said(body=rows))
    assert [file.id for file in client.files.listed("AbCdEf", name="exit.json")] == ["a"]
    assert "search=exit.json" in unquote_plus(script.asked[1][0])
    assert "search" not in script.asked[2][0]


def of(*paths: str, **more: Any) -> list[File]:
    return [File(id=str(number), relative_path=path, **more) for number, path in enumerate(paths)]


@pytest.mark.parametrize("root", ["", "/", "./", "shared/", "work/shared/", "run1//"])
def test_the_folder_is_found_wherever_the_outputs_begin(root: str) -> None:
    """With or without a leading folder; neighbours whose names begin alike are not taken."""
    listed = of(f"{root}s.r/00007.1/a/b", f"{root}s.r/00007.10/a", f"{root}s.r/00007.1", f"{root}xs.r/00007.1/c", "log")
    assert {path: file.id for path, file in files.below(listed, "s.r/00007.1").items()} == {"a/b": "0"}


def test_a_path_stands_in_for_a_relative_path_without_folders() -> None:
    """Where `relativePath` is a bare name or missing, the storage path says where the file lay."""
    listed = [
        File(id="0", relative_path="b.txt", path="user/user_X/output/job_Y/run1/s.r/00007.1/a/b.txt"),
        File(id="1", path="user/user_X/output/job_Y/run1/s.r/00007.1/c.txt"),
    ]
    assert list(files.below(listed, "s.r/00007.1")) == ["a/b.txt", "c.txt"]
    assert files.below(listed, "s.r/00008.1") == {}


def test_of_two_places_the_outer_one_counts_and_of_two_files_the_newer() -> None:
    """A trial may copy a folder; a platform may list a path twice. Two places that are alike are refused."""
    copies = of("s.r/1.1/a", "s.r/2.1/s.r/1.1/a", "s.r/1.1/s.r/1.1/b")
    assert {path: file.id for path, file in files.below(copies, "s.r/1.1").items()} == {"a": "0", "s.r/1.1/b": "2"}
    dates = [datetime(2024, 1, day, tzinfo=UTC) for day in (1, 3, 2)]
    twice = [File(id=str(day.day), relative_path="s.r/1.1/a", date_uploaded=day) for day in dates]
    assert files.below(twice, "s.r/1.1")["a"].id == "3"
    with pytest.raises(PlatformRefused, match="in two places: old and new"):
        files.below(of("old/s.r/1.1/a", "new/s.r/1.1/a"), "s.r/1.1")


# a download


def test_every_file_arrives_as_it_was(local: RescalePlatform, left: dict[str, File], tmp_path: Path) -> None:
    """Odd names, no bytes at all, many bytes: each whole under its own name, and nothing else is left."""
    for path, file in left.items():
        assert local.files.download(file, tmp_path, path) == tmp_path / path
    contents = {**SMALL, "big.dat": BIG}
    assert kept(tmp_path) == sorted(contents)
    assert {path: sha256((tmp_path / path).read_bytes()) for path in contents} == {
        path: sha256(content) for path, content in contents.items()
    }


def test_a_cut_goes_on_where_it_stopped(rescale: LocalRescale, left: dict[str, File], tmp_path: Path) -> None:
    """Cut off and refused several times, over several ranges: nearly nothing passes the network twice."""
    rescale.faults.add("truncated", endpoints="file_contents", bytes=700_000, times=2)
    rescale.faults.add("status", endpoints="file_contents", status=503, times=1)
    rescale.faults.add("truncated", endpoints="file_contents", bytes=0, times=1)
    rescale.faults.add("dropped", endpoints="file_contents", times=1)
    rescale.faults.add("truncated", endpoints="file_contents", bytes=1_000_000, times=2)
    with Proxy(int(rescale.base_url.rpartition(":")[2])) as network:
        platform = RescalePlatform(f"http://127.0.0.1:{network.port}", rescale.api_key, backoff=QUICK)
        platform.files.download(left["big.dat"], tmp_path, "big.dat", sha256=sha256(BIG))
        platform.close()
        assert rescale.faults.listed() == []
        assert len(BIG) < network.passed < len(BIG) + 20_000
    assert sha256((tmp_path / "big.dat").read_bytes()) == sha256(BIG)
    assert kept(tmp_path) == ["big.dat"]


def test_many_ranges_use_one_connection(
    rescale: LocalRescale, left: dict[str, File], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A range costs a request, not a connection."""
    monkeypatch.setattr(files, "_RANGE", 300_000)
    with Proxy(int(rescale.base_url.rpartition(":")[2])) as network:
        platform = RescalePlatform(f"http://127.0.0.1:{network.port}", rescale.api_key, backoff=QUICK)
        platform.files.download(left["big.dat"], tmp_path, "big.dat")
        platform.close()
        assert network.connections == 1
    assert sha256((tmp_path / "big.dat").read_bytes()) == sha256(BIG)


def test_another_process_goes_on_too(rescale: LocalRescale, left: dict[str, File], tmp_path: Path) -> None:
    """What came before the platform went away is kept under another name, and is not asked for again."""
    rescale.faults.add("truncated", endpoints="file_contents", bytes=3_000_000, times=1)
    hurried = RescalePlatform(rescale.base_url, rescale.api_key, backoff=Backoff(total=0))
    with pytest.raises(PlatformUnavailable, match=r"big.dat .*: 3000000 of 5000000 bytes are here\.") as caught:
        hurried.files.download(left["big.dat"], tmp_path, "big.dat")
    assert "goes on from there" in caught.value.remedy
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [3_000_000]
    assert not (tmp_path / "big.dat").exists()
    hurried.close()
    with Proxy(int(rescale.base_url.rpartition(":")[2])) as network:
        platform = RescalePlatform(f"http://127.0.0.1:{network.port}", rescale.api_key, backoff=QUICK)
        platform.files.download(left["big.dat"], tmp_path, "big.dat")
        platform.close()
        assert network.passed < 2_100_000
    assert sha256((tmp_path / "big.dat").read_bytes()) == sha256(BIG)
    assert kept(tmp_path) == ["big.dat"]


def test_a_platform_without_ranges_sends_it_anew(
    rescale: LocalRescale,
    local: RescalePlatform,
    left: dict[str, File],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A whole answer in place of a part is taken as what it is."""
    monkeypatch.setattr(files, "_RANGE", 1_000_000)
    rescale.faults.add("truncated", endpoints="file_contents", bytes=600_000, times=1)
    rescale.faults.add("no_range", endpoints="file_contents", times=1)
    local.files.download(left["big.dat"], tmp_path, "big.dat")
    assert sha256((tmp_path / "big.dat").read_bytes()) == sha256(BIG)
    assert rescale.faults.listed() == []


@pytest.mark.parametrize("times", [None, 2])
def test_a_whole_answer_that_is_cut_comes_anew(
    times: int | None, script: Script, client: RescalePlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges are ignored once, beyond the end of what was asked for, or always: it is never put together wrongly."""
    monkeypatch.setattr(files, "_RANGE", 20)
    body = "0123456789" * 7
    cut = Said(body=body[:60], cut=True)
    rest = Said(206, body[60:], {"Content-Range": "bytes 60-69/70"})
    script.says("GET files/AbCdEf/contents/", cut, rest if times else Said(body=body))
    client.files.download(File(id="AbCdEf", decrypted_size=70), tmp_path, "x", sha256=sha256(body.encode()))
    assert (tmp_path / "x").read_text() == body
    assert [headers["Range"] for _, headers, _ in script.asked] == ["bytes=0-19", "bytes=60-69"]


def test_a_part_that_ends_early_is_no_end(script: Script, tmp_path: Path) -> None:
    """A platform that gives less than was asked for is asked for the rest, one that gives nothing not for ever."""
    platform = RescalePlatform(script.url, KEY, backoff=Backoff(first=0.001, most=0.01, total=3))
    rest = Said(206, "56789", {"Content-Range": "bytes 5-9/10"})
    script.says("GET files/AbCdEf/contents/", Said(206, "01234", {"Content-Range": "bytes 0-4/10"}), rest)
    platform.files.download(File(id="AbCdEf", decrypted_size=10), tmp_path, "x")
    assert (tmp_path / "x").read_text() == "0123456789"
    script.says("GET files/AbCdEf/contents/", Said(206, "", {"Content-Range": "bytes 0-9/10"}))
    with pytest.raises(PlatformUnavailable, match="AbCdEf was cut off at byte 0"):
        platform.files.download(File(id="AbCdEf", decrypted_size=10), tmp_path, "x")
    platform.close()


@pytest.mark.parametrize("wrong", ["sha256", "sha512", "size"])
def test_what_is_not_the_file_is_refused_and_not_kept(
    wrong: str, local: RescalePlatform, left: dict[str, File], tmp_path: Path
) -> None:
    """The manifest's SHA-256 and size, or the platform's SHA-512: a mismatch leaves nothing, and an older file alone."""
    (tmp_path / "big.dat").write_text("older")
    file = left["big.dat"]
    if wrong == "sha512":
        broken = file.file_checksums[0].model_copy(update={"file_hash": "0" * 128})
        file = file.model_copy(update={"file_checksums": [broken]})
    limits: dict[str, Any] = {"sha256": {"sha256": "0" * 64}, "size": {"size_bytes": len(BIG) - 1}}.get(wrong, {})
    words = "bytes 0-4999998/5000000" if wrong == "size" else f"its {wrong} is"
    with pytest.raises(PlatformRefused, match=words) as caught:
        local.files.download(file, tmp_path, "big.dat", **limits)
    assert "big.dat" in caught.value.message
    assert caught.value.remedy
    assert kept(tmp_path) == ["big.dat"]
    assert (tmp_path / "big.dat").read_text() == "older"


def test_the_manifest_decides_where_the_platform_s_words_are_wrong(
    local: RescalePlatform, left: dict[str, File], tmp_path: Path
) -> None:
    """Whether its checksums are of the plain content is not certain: with our own they are not looked at."""
    file = left["big.dat"]
    broken = file.file_checksums[0].model_copy(update={"file_hash": "0" * 128})
    file = file.model_copy(update={"file_checksums": [broken], "decrypted_size": 1})
    local.files.download(file, tmp_path, "big.dat", size_bytes=len(BIG), sha256=sha256(BIG).upper())
    assert sha256((tmp_path / "big.dat").read_bytes()) == sha256(BIG)


def test_a_part_of_something_else_is_found_out(
    local: RescalePlatform, left: dict[str, File], tmp_path: Path, rescale: LocalRescale
) -> None:
    """A part that a crashed machine left with holes is refused by the checksum, and the next call starts anew."""
    rescale.faults.add("truncated", endpoints="file_contents", bytes=1_000_000, times=1)
    hurried = RescalePlatform(rescale.base_url, rescale.api_key, backoff=Backoff(total=0))
    with pytest.raises(PlatformUnavailable):
        hurried.files.download(left["big.dat"], tmp_path, "big.dat")
    hurried.close()
    (part,) = tmp_path.iterdir()
    part.write_bytes(bytes(1_000_000))
    with pytest.raises(PlatformRefused, match="its sha512 is"):
        local.files.download(left["big.dat"], tmp_path, "big.dat")
    assert kept(tmp_path) == []
    part.write_bytes(bytes(len(BIG) + 1))
    local.files.download(left["big.dat"], tmp_path, "big.dat")
    assert kept(tmp_path) == ["big.dat"]


def test_a_file_that_vanished_is_said_and_not_asked_for_again(
    local: RescalePlatform, rescale: LocalRescale, job_id: str, tmp_path: Path
) -> None:
    """Deleted between the list and the download, or in the middle of it: 404, named, and nothing is kept."""
    client = Client(rescale.base_url, rescale.api_key)
    file_id = client.upload("gone.dat", BIG)
    file = File.model_validate(client.get(f"files/{file_id}/").json())
    client.call("DELETE", f"files/{file_id}/")
    client.session.close()
    (tmp_path / "later").mkdir()
    with pytest.raises(PlatformRefused, match=rf"output file later/gone.dat \({file_id}\): .*404 Not found") as caught:
        local.files.download(file, tmp_path, "later/gone.dat")
    assert caught.value.status == 404
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    "path",
    ["../x", "a/../../x", "/etc/x", "", ".", "a//x", "a/", "C:\\x", "C:x", "..\\x", "a\\x", "a/con", "x\0", "a\nb"],
)
def test_a_path_that_leads_out_is_refused(path: str, script: Script, client: RescalePlatform, tmp_path: Path) -> None:
    """Neither the platform nor a trial can have a file written elsewhere than below the folder, on any system."""
    folder = tmp_path / "trials" / "00007"
    with pytest.raises(PlatformRefused, match="is not kept: it is named"):
        client.files.download(File(id="AbCdEf", decrypted_size=1), folder, path)
    assert script.asked == []
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_unknown_size_is_refused(script: Script, client: RescalePlatform, tmp_path: Path) -> None:
    """Unknown is never success: a connection that ends early would look like an end."""
    with pytest.raises(PlatformRefused, match="its size is not known"):
        client.files.download(File(id="AbCdEf"), tmp_path, "x")
    assert script.asked == []


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (Said(206, "01234", {"Content-Range": "bytes 5-9/10"}), "bytes from 0 on of 10 .* bytes 5-9/10"),
        (Said(206, "01234", {"Content-Range": "bytes 0-4/99"}), "bytes 0-4/99"),
        (Said(206, "01234"), "the answer says: nothing"),
        (Said(206, "01234", {"Content-Range": "bytes 0-9/10", "Content-Encoding": "gzip"}), "bytes 0-9/10"),
        (Said(200, "<html>Sign in</html>", {"Content-Type": "text/html"}), "says: 20 .text/html"),
        (Said(416, {"detail": "The file has 5 bytes."}), "416 The file has 5 bytes."),
        (Said(403, {"detail": "No."}), "403 No."),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(
    said: Said, words: str, script: Script, client: RescalePlatform, tmp_path: Path
) -> None:
    """Another range, another size, a login page: nothing of it is kept, and it is not asked for again."""
    script.says("GET files/AbCdEf/contents/", said)
    with pytest.raises(PlatformRefused, match=words):
        client.files.download(File(id="AbCdEf", decrypted_size=10), tmp_path, "x")
    assert len(script.asked) == 1
    assert kept(tmp_path) == []


def test_more_than_it_must_be_is_refused(script: Script, client: RescalePlatform, tmp_path: Path) -> None:
    """A body without an end is not written down until the disk is full."""
    script.says("GET files/AbCdEf/contents/", Said(206, "0123456789ABC", {"Content-Range": "bytes 0-9/10"}))
    with pytest.raises(PlatformRefused, match="longer than the 10 bytes"):
        client.files.download(File(id="AbCdEf", decrypted_size=10), tmp_path, "x")
    assert kept(tmp_path) == []


# deadlines


def test_a_drip_is_no_download(
    script: Script, client: RescalePlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then passes every time-out between two bytes; the deadlines of a request and of the whole do not."""
    monkeypatch.setattr(files, "_AHEAD", 0.05)
    monkeypatch.setattr(files, "_PATIENCE", 0.5)
    body = "x" * 1000
    script.says("GET files/AbCdEf/contents/", Said(body=body, drip=0.02))
    with pytest.raises(PlatformUnavailable, match="did not come in time") as caught:
        client.files.download(File(id="AbCdEf", decrypted_size=1000), tmp_path, "x")
    assert "of 1000 bytes are here" in caught.value.message


def test_silence_in_the_middle_is_broken_off(
    rescale: LocalRescale, left: dict[str, File], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that stays open and carries nothing any more: the next request goes on."""
    monkeypatch.setattr(transport, "_TIMEOUT", (5.0, 3.0))
    monkeypatch.setattr(files, "_RANGE", 500_000)
    with Proxy(int(rescale.base_url.rpartition(":")[2])) as network:
        platform = RescalePlatform(f"http://127.0.0.1:{network.port}", rescale.api_key, backoff=QUICK)
        platform.me()  # opens the connection
        network.freeze()
        platform.files.download(left["big.dat"], tmp_path, "big.dat")
        platform.close()
        assert network.connections == 2
    assert sha256((tmp_path / "big.dat").read_bytes()) == sha256(BIG)


def test_a_stop_ends_a_download(script: Script, tmp_path: Path) -> None:
    """An interrupted user does not wait for a big file; what came is kept for the next time."""
    stop = threading.Event()
    stop.set()
    platform = RescalePlatform(script.url, KEY, stop=stop)
    body = "x" * 100
    script.says("GET files/AbCdEf/contents/", Said(206, body, {"Content-Range": "bytes 0-99/100"}, drip=0.02))
    with pytest.raises(PlatformUnavailable, match="the program is to end"):
        platform.files.download(File(id="AbCdEf", decrypted_size=100), tmp_path, "x")
    platform.close()
    assert len(script.asked) == 1
    assert 0 < sum(path.stat().st_size for path in tmp_path.iterdir()) < 100


# redirects


@pytest.fixture
def store() -> Iterator[Script]:
    """Run another host: a store with presigned addresses."""
    from .scripted import serve

    script = Script()
    server = serve(script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield script
    server.shutdown()
    server.server_close()
    thread.join()


SIGNED = "/api/v2/bucket/x?signature=s3cr3t-0123456789"


def test_the_key_does_not_follow_a_redirect_to_another_host(
    script: Script,
    store: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A presigned address gets the range and neither the key nor what ~/.netrc says; the platform gets its key."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    platform = RescalePlatform(script.url, KEY, backoff=QUICK)
    platform._http._session.trust_env = True  # as for a platform that is not on this machine
    script.says("GET files/AbCdEf/contents/", Said(302, "", {"Location": f"{store.url}{SIGNED}"}))
    part = Said(206, "01234", {"Content-Range": "bytes 0-9/10"}, cut=True)
    store.says("GET bucket/x", part, Said(503, "busy"), Said(206, "56789", {"Content-Range": "bytes 5-9/10"}))
    platform.files.download(File(id="AbCdEf", decrypted_size=10), tmp_path / "runs", "x")
    platform.close()
    assert (tmp_path / "runs" / "x").read_text() == "0123456789"
    assert [headers["Range"] for _, headers, _ in store.asked] == ["bytes=0-9", "bytes=5-9", "bytes=5-9"]
    assert [headers.get("Authorization") for _, headers, _ in store.asked] == [None] * 3
    assert [headers.get("Authorization") for _, headers, _ in script.asked] == [f"Token {KEY}"] * 3


@pytest.mark.parametrize("status", [401, 403, 404, 503])
def test_a_store_that_refuses_is_not_mistaken_for_the_platform(
    status: int, script: Script, store: Script, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its host is named, the API key is not blamed, and no presigned address is said, not even in the store's words."""
    platform = RescalePlatform(script.url, KEY, backoff=Backoff(total=0))
    script.says("GET files/AbCdEf/contents/", Said(302, "", {"Location": f"{store.url}{SIGNED}"}))
    store.says("GET bucket/x", Said(status, {"detail": f"no such thing as {SIGNED}"}))
    kind = PlatformUnavailable if status == 503 else PlatformRefused
    with caplog.at_level(logging.INFO), pytest.raises(kind, match=f"redirected to: {status}") as caught:
        platform.files.download(File(id="AbCdEf", decrypted_size=10), tmp_path, "x")
    platform.close()
    assert "API key" not in str(caught.value)
    assert "signature" not in str(caught.value) + caplog.text
    assert "bucket" not in str(caught.value) + caplog.text


def test_a_redirect_on_the_platform_s_own_host_keeps_the_key(
    script: Script, client: RescalePlatform, tmp_path: Path
) -> None:
    """Such as one to the same address with another end."""
    script.says("GET files/AbCdEf/contents/", Said(307, "", {"Location": "/api/v2/stored/x"}))
    script.says("GET stored/x", Said(206, "0123456789", {"Content-Range": "bytes 0-9/10"}))
    client.files.download(File(id="AbCdEf", decrypted_size=10), tmp_path, "x")
    assert {headers["Authorization"] for _, headers, _ in script.asked} == {f"Token {KEY}"}


@pytest.mark.parametrize(
    "there",
    ["http://store.example/x", "file:///etc/passwd", "ftp://127.0.0.1/x", "http://[::1", "http://127.0.0.1:99999/"],
)
def test_a_redirect_to_plain_text_or_nowhere_is_refused(
    there: str, script: Script, client: RescalePlatform, tmp_path: Path
) -> None:
    """Nothing is asked of it, and the message names what answered so."""
    script.says("GET files/AbCdEf/contents/", Said(302, "", {"Location": there}))
    with pytest.raises(PlatformRefused, match="redirected to an address that is none"):
        client.files.download(File(id="AbCdEf", decrypted_size=10), tmp_path, "x")
    assert len(script.asked) == 1


def test_a_redirect_without_end_is_refused(script: Script, client: RescalePlatform, tmp_path: Path) -> None:
    """A circle ends after a few turns."""
    script.says("GET files/AbCdEf/contents/", Said(302, "", {"Location": "/api/v2/files/AbCdEf/contents/"}))
    with pytest.raises(PlatformRefused, match="the redirects did not end"):
        client.files.download(File(id="AbCdEf", decrypted_size=10), tmp_path, "x")
    assert len(script.asked) == 5
