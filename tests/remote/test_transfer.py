"""Files in pieces: whole or not at all, through drops too."""

from __future__ import annotations

import hashlib
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from persistent_runner.remote import transfer
from persistent_runner.remote.agent import PART
from persistent_runner.remote.frames import RequestRefused
from tests.remote.conftest import run, start

if TYPE_CHECKING:
    from pathlib import Path

    from tests.remote.conftest import Site

DATA = os.urandom(6_000_000)


@pytest.mark.parametrize("size", [0, 1, transfer.PIECE, transfer.PIECE + 1, len(DATA)])
def test_there_and_back(sshd_site: Site, tmp_path: Path, size: int) -> None:
    """A file of any size comes back as it went, with its mode, and leaves no partial file on either end."""
    link = sshd_site.link()
    transfer.send(link, "a.1/é {x}/data", DATA[:size], 0o640)
    sent = sshd_site.root / "a.1" / "é {x}" / "data"
    assert sent.read_bytes() == DATA[:size]
    assert sent.stat().st_mode & 0o777 == 0o640
    [output] = link.outputs("a.1", ["**/*"]).result(30)
    transfer.fetch(link, "a.1", output, tmp_path / "new folder" / "data")
    assert (tmp_path / "new folder" / "data").read_bytes() == DATA[:size]
    assert [path.name for folder in (tmp_path / "new folder", sent.parent) for path in folder.iterdir()] == ["data"] * 2


@pytest.mark.parametrize("way", ["there", "back"])
def test_drops_on_the_way(site: Site, tmp_path: Path, way: str) -> None:
    """A transfer goes on where a drop left it, and the file is whole."""
    link = site.link()
    stop = threading.Event()

    def cut() -> None:
        seen = 0
        while not stop.wait(0.02):
            if site.proxy.passed - seen > len(DATA) // 8:  # between two drops something gets through, however slowly
                site.proxy.drop()
                seen = site.proxy.passed

    if way == "back":
        transfer.send(link, "a.1/data", DATA, 0o644)
        [output] = link.outputs("a.1", ["data"]).result(30)
    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        if way == "there":
            transfer.send(link, "a.1/data", DATA, 0o644)
            assert (site.root / "a.1" / "data").read_bytes() == DATA
        else:
            transfer.fetch(link, "a.1", output, tmp_path / "data")
            assert (tmp_path / "data").read_bytes() == DATA
    finally:
        stop.set()
        cutter.join()


def put(link: Any, data: bytes, offset: int, *, sha256: str = "", **options: Any) -> Any:
    """Send one piece of DATA[:1000]."""
    whole = sha256 or hashlib.sha256(DATA[:1000]).hexdigest()
    return link.put("a.1/data", data, offset=offset, size=1000, sha256=whole, mode=0o644, **options)


def test_a_last_piece_sent_twice(sshd_site: Site) -> None:
    """Pieces whose answer was lost are sent again; a file that is whole already stays so."""
    link = sshd_site.link()
    for offset in (0, 500, 500):
        put(link, DATA[offset : offset + 500], offset).result(30)
    assert (sshd_site.root / "a.1" / "data").read_bytes() == DATA[:1000]
    assert not (sshd_site.root / "a.1" / f"data{PART}").exists()


def test_a_damaged_file_gets_no_name(sshd_site: Site) -> None:
    """What does not have its checksum never appears under its name."""
    link = sshd_site.link()
    with pytest.raises(RequestRefused, match="arrived damaged"):
        put(link, DATA[:1000], 0, sha256="0" * 64).result(30)
    assert not (sshd_site.root / "a.1" / "data").exists()


def test_nothing_is_written_under_a_claimed_command(sshd_site: Site) -> None:
    """An input that comes again after its command was claimed does not change what the command reads."""
    link = sshd_site.link()
    run(link, "echo old > data", attempt="a.1")
    put(link, DATA[:1000], 0, before=("a.1", 0)).result(30)
    assert (sshd_site.root / "a.1" / "data").read_text() == "old\n"


@pytest.mark.parametrize("name", ["fifo", "link", "folder"])
def test_only_regular_files_are_read(sshd_site: Site, name: str) -> None:
    """A pipe cannot stall the agent, and a link is not followed, even when asked for by name."""
    link = sshd_site.link()
    run(link, "mkfifo fifo; ln -s /etc/passwd link; mkdir folder", attempt="a.1")
    with pytest.raises(RequestRefused):
        link.get(f"a.1/{name}", offset=0, length=10).result(30)


def test_a_long_listing_leaves_the_link_free(sshd_site: Site) -> None:
    """Checksums of big outputs are made beside the agent, which goes on answering."""
    link = sshd_site.link()
    run(link, "truncate -s 2G big", attempt="a.1")
    listing = link.outputs("a.1", ["big"])
    link.ping().result(30)
    assert run(link, "echo quick").log_tail == b"quick\n"
    assert not listing.done()
    assert listing.result(60)[0].size_bytes == 2 << 30
    (sshd_site.root / "a.1" / "big").unlink()


def test_dropping_an_attempt_leaves_the_others(sshd_site: Site) -> None:
    """An acknowledged attempt goes from the node with all it has; what else runs there stays."""
    link = sshd_site.link()
    other = start(link, "until [ -e go ]; do sleep 0.01; done; echo here", attempt="a.2")
    run(link, "mkdir -p x/y; touch x/y/z", attempt="a.1")
    link.drop("a.1").result(30)
    assert not (sshd_site.root / "a.1").exists()
    (sshd_site.root / "a.2" / "go").touch()
    assert other.result(60).log_tail == b"here\n"
