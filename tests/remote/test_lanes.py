"""Big files over lanes: whole whatever drops, refused, changed or full; and no more sessions than a server has."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import paramiko
import pytest

from persistent_runner.background import in_background
from persistent_runner.errors import ConfigError, ResultMissing
from persistent_runner.inputs import SharedFile
from persistent_runner.remote import agent, flow, lanes, packing, transfer
from persistent_runner.remote.agent import PART, STATIC
from persistent_runner.remote.frames import NoRoom, RequestRefused
from tests.openssh import SSHD, WHY_NOT, openssh
from tests.remote.conftest import Server, Site, until
from tests.remote.proxy import Proxy
from tests.small_disk import small_disk

if TYPE_CHECKING:
    from pathlib import Path

    from persistent_runner.remote.link import Link

SIZE = 24 << 20
RANDOM = os.urandom(SIZE)
TEXT = b"".join(b"%d, %.6e\n" % (number, (number * 7919 % 10007) / 10007) for number in range(SIZE // 16))


def shared(site: Site, data: bytes) -> SharedFile:
    """Return a big input."""
    source = site.inputs / "mesh"
    source.write_bytes(data)
    return SharedFile(source, len(data), hashlib.sha256(data).hexdigest())


def share(link: Link, file: SharedFile, check: Any = lambda: None) -> None:
    transfer.share(link, [file], check)


def there(site: Site, data: bytes) -> Any:
    """Write an output on the node; return it as it is listed, with its link."""
    link = site.link()
    (site.root / "a.1").mkdir()
    (site.root / "a.1" / "big").write_bytes(data)
    [output] = link.outputs("a.1", ["big"]).result(60)
    return link, output


def lanes_of(link: Link) -> list[Any]:
    """Return the lanes that wait for the next file, once all have been given back."""
    until(lambda: len(link.lanes._idle) == len(link.lanes._taken), "all lanes are given back")
    return link.lanes._idle


@pytest.mark.parametrize("data", [RANDOM, TEXT], ids=["random", "text"])
def test_there_and_back(site: Site, tmp_path: Path, data: bytes) -> None:
    """Content that shrinks and content that does not comes as it went, over lanes, which the next file uses again."""
    link = site.link()
    before = link.frames_out
    file = shared(site, data)
    share(link, file)
    kept = site.root / STATIC / file.sha256
    assert kept.read_bytes() == data
    assert kept.stat().st_mode & 0o222 == 0
    assert len(lanes_of(link)) >= 1
    [output] = link.outputs(STATIC, [file.sha256]).result(60)
    used = set(lanes_of(link))
    transfer.fetch(link, STATIC, output, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    assert used & set(lanes_of(link))
    assert link.frames_out - before <= 5  # list, begin, end, list; a ping
    assert [path.name for path in (site.root / STATIC).iterdir()] == [file.sha256]


def test_zstd_where_both_ends_have_it(sshd_site: Site, tmp_path: Path) -> None:
    """The lane says so, and what comes over it is what was there; without it zlib does the same."""
    pytest.importorskip("zstandard")
    link, output = there(sshd_site, TEXT)
    passed = sshd_site.proxy.passed
    transfer.fetch(link, "a.1", output, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == TEXT
    assert sshd_site.proxy.passed - passed < len(TEXT) / 2
    assert {lane.pack for lane in lanes_of(link)} == {packing.ZSTD if link.lanes._idle[0].pack else packing.ZLIB}


def test_small_files_cost_no_lane(site: Site, tmp_path: Path) -> None:
    """They go over the channel that is there."""
    link, output = there(site, RANDOM[: transfer.LANE_BYTES - 1])
    transfer.fetch(link, "a.1", output, tmp_path / "back")
    transfer.send(link, "a.1/again", RANDOM[: transfer.LANE_BYTES - 1], 0o644)
    share(link, shared(site, RANDOM[: transfer.LANE_BYTES - 1]))
    assert link.lanes._taken == set()


@pytest.mark.parametrize("way", ["there", "back"])
def test_what_has_arrived_is_not_sent_again(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """After a drop near its end a file needs what was on its way then, not all of it once more."""
    on_the_way = 2 << 20
    monkeypatch.setattr(flow, "MOST", on_the_way)
    monkeypatch.setattr(flow, "FIRST", on_the_way)
    link, output = there(site, RANDOM)
    begun = site.proxy.passed
    dropped = []

    def cut() -> None:
        until(lambda: site.proxy.passed - begun > 0.8 * SIZE, "most of it has passed")
        dropped.append(site.proxy.drop())

    cutter = threading.Thread(target=cut)
    cutter.start()
    if way == "back":
        transfer.fetch(link, "a.1", output, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == RANDOM
    else:
        share(link, shared(site, RANDOM))
        assert (site.root / STATIC / hashlib.sha256(RANDOM).hexdigest()).read_bytes() == RANDOM
    cutter.join()
    assert dropped[0] >= 1
    assert site.proxy.passed - begun < 1.5 * SIZE


def test_a_lane_that_ends_on_the_way(sshd_site: Site, tmp_path: Path) -> None:
    """Its pieces go over another one; the link and its connection never notice."""
    link, output = there(sshd_site, RANDOM)
    begun = sshd_site.proxy.passed

    def end() -> None:
        until(lambda: sshd_site.proxy.passed - begun > SIZE / 4, "some of it has passed")
        for channel in list(link.connection.transport._channels.values()):  # type: ignore[union-attr]
            if channel is not link._channel:
                channel.close()

    ender = threading.Thread(target=end)
    ender.start()
    transfer.fetch(link, "a.1", output, tmp_path / "back")
    ender.join()
    assert (tmp_path / "back").read_bytes() == RANDOM
    assert sshd_site.proxy.connections == 1


def test_lanes_that_ended_meanwhile(sshd_site: Site) -> None:
    """A lane that the node has ended is not used again."""
    link = sshd_site.link()
    share(link, shared(sshd_site, RANDOM))
    before = set(lanes_of(link))
    for lane in before:
        lane.close()
    frames = link.frames_out
    share(link, shared(sshd_site, TEXT))
    assert link.frames_out - frames <= 4  # list, begin, end; a ping of its own accord
    assert (sshd_site.root / STATIC / hashlib.sha256(TEXT).hexdigest()).read_bytes() == TEXT
    assert not before & set(lanes_of(link))


def test_never_more_than_seven_sessions_on_a_connection(sshd_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight lanes share two connections: beside the lanes of one there is room for two agents and a command."""
    monkeypatch.setattr(lanes, "LONG_RTT", 0.0)
    link = sshd_site.link()
    share(link, shared(sshd_site, RANDOM))
    until(lambda: len(link.lanes._idle) == lanes.AT_MOST, "all lanes are open")
    on = Counter(lane._channel.get_transport() for lane in link.lanes._idle)
    assert sorted(on.values()) == [4, 4]
    assert link.connection is not None
    assert len(link.connection.transport._channels) == 5
    assert sshd_site.proxy.connections == 2
    sshd_site.proxy.drop()  # both go, and both come back
    link.ping().result(60)
    share(link, shared(sshd_site, TEXT))
    assert (sshd_site.root / STATIC / hashlib.sha256(TEXT).hexdigest()).read_bytes() == TEXT


@pytest.mark.parametrize("sessions", [1, 3])
def test_a_server_with_few_sessions(tmp_path: Path, sessions: int) -> None:
    """A lane that is refused costs speed alone: the file goes over those that there are, or the link's own channel."""
    if SSHD is None:
        pytest.skip(WHY_NOT)
    with openssh(tmp_path / "server", f"MaxSessions {sessions}") as server:
        own = Server(server.node(), paramiko.PKey.from_path(server.key), server.proof())
        with Proxy(server.port) as proxy:
            site = Site(own, proxy, tmp_path)
            link, output = there(site, RANDOM)
            transfer.fetch(link, "a.1", output, tmp_path / "back")
            assert (tmp_path / "back").read_bytes() == RANDOM
            share(link, shared(site, RANDOM))
            assert (site.root / STATIC / hashlib.sha256(RANDOM).hexdigest()).read_bytes() == RANDOM
            on = Counter(lane._channel.get_transport() for lane in lanes_of(link))
            assert all(count <= sessions for count in on.values())
            site.close()


def test_an_output_that_changes_meanwhile(sshd_site: Site, tmp_path: Path) -> None:
    """Another content or another size is noticed, and nothing is left here."""
    link, output = there(sshd_site, RANDOM)
    big = sshd_site.root / "a.1" / "big"
    for changed in (RANDOM[:-1] + bytes([RANDOM[-1] ^ 1]), RANDOM[: SIZE // 2]):
        big.write_bytes(changed)
        with pytest.raises(ResultMissing, match=r"big of attempt a\.1 changed after its command had ended"):
            transfer.fetch(link, "a.1", output, tmp_path / "new" / "back")
        assert list((tmp_path / "new").iterdir()) == []
    big.unlink()
    with pytest.raises(RequestRefused, match="No such file"):
        transfer.fetch(link, "a.1", output, tmp_path / "new" / "back")
    big.write_bytes(RANDOM)
    transfer.fetch(link, "a.1", output, tmp_path / "new" / "back")
    assert (tmp_path / "new" / "back").read_bytes() == RANDOM


def test_an_input_that_changes_meanwhile(sshd_site: Site) -> None:
    """Half of one file and half of another gets no name on the node."""
    link = sshd_site.link()
    file = shared(sshd_site, RANDOM)
    for changed in (RANDOM[:-1] + bytes([RANDOM[-1] ^ 1]), RANDOM[:-1]):
        file.source.write_bytes(changed)
        with pytest.raises(ConfigError, match="mesh changed while it was sent"):
            share(link, file)
    assert [path for path in (sshd_site.root / STATIC).iterdir() if path.suffix != PART] == []
    file.source.write_bytes(RANDOM)
    share(link, file)
    assert [path.name for path in (sshd_site.root / STATIC).iterdir()] == [file.sha256]


def test_a_damaged_piece_is_refused(sshd_site: Site) -> None:
    """Each piece has its checksum; a file that misses one gets no name."""
    link = sshd_site.link()
    whole = {"size": 2000, "mode": 0o644, "parts": True}
    link.put("a.1/x", RANDOM[:1000], offset=0, sha256=hashlib.sha256(RANDOM[:1000]).hexdigest(), **whole).result(30)
    with pytest.raises(RequestRefused, match="arrived damaged"):
        link.put("a.1/x", RANDOM[:1000], offset=1000, sha256="0" * 64, **whole).result(30)
    with pytest.raises(RequestRefused, match="arrived damaged"):
        link.put("a.1/x", b"", offset=2000, sha256="0" * 64, **whole).result(30)
    assert [path.name for path in (sshd_site.root / "a.1").iterdir()] == [f"x{PART}"]


def test_a_lane_that_cannot_be_had_for_a_reason_of_this_machine(
    sshd_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has stopped a lane from being opened ends the transfer; nobody waits for that lane."""
    link, output = there(sshd_site, RANDOM)

    def refused(_: lanes.Lanes) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(lanes.Lanes, "take", refused)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        in_background(lambda: transfer.fetch(link, "a.1", output, tmp_path / "back"), "fetch").result(60)
    assert list(tmp_path.glob("back*")) == []


def test_no_room_on_the_node(sshd_site: Site) -> None:
    """What does not fit leaves nothing there, and fits when there is room."""
    link = sshd_site.link()
    file = shared(sshd_site, RANDOM)
    with small_disk(sshd_site.root / STATIC, "8m") as static:
        with pytest.raises(NoRoom, match="No space left on device"):
            share(link, file)
        assert list(static.iterdir()) == []
    share(link, file)
    assert (sshd_site.root / STATIC / file.sha256).read_bytes() == RANDOM


def test_given_up_on_the_way(sshd_site: Site) -> None:
    """Who stops a transfer gets the own error back at once, sends no more, and the lanes serve the next one."""

    class Stop(Exception):
        pass

    asked = []

    def check() -> None:
        asked.append(None)
        if len(asked) == 10:
            raise Stop

    link = sshd_site.link()
    file = shared(sshd_site, RANDOM)
    with pytest.raises(Stop):
        share(link, file, check)
    assert len(asked) == 10
    share(link, file)
    assert (sshd_site.root / STATIC / file.sha256).read_bytes() == RANDOM


def test_several_at_a_time(site: Site, tmp_path: Path) -> None:
    """Files in both directions share the lanes and come whole."""
    link, output = there(site, RANDOM)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            if number % 2:
                transfer.send(link, f"b.{number}/data", TEXT, 0o644)
                assert (site.root / f"b.{number}" / "data").read_bytes() == TEXT
            else:
                transfer.fetch(link, "a.1", output, tmp_path / str(number))
                assert (tmp_path / str(number)).read_bytes() == RANDOM
        except BaseException as error:  # noqa: BLE001 - told by the test
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert errors == []
    assert len(link.lanes._taken) <= lanes.AT_MOST


def test_a_lane_answers_nothing_else(sshd_site: Site) -> None:
    """It starts no command and takes over no node."""
    link, _ = there(sshd_site, b"x")
    lane = link.lanes.take()
    assert lane is not None
    for kind in ("run", "drop", "ping", "list", "kill"):
        lane.send(lane.frame({"t": kind, "attempt": "a.1", "seq": 0, "outputs": []}, b""))
        assert "get and put alone" in lane.receive()[0]["text"]
    assert (sshd_site.root / "a.1" / "big").read_bytes() == b"x"
    assert link.outputs("a.1", ["big"]).result(30)[0].size_bytes == 1
    link.put("a.1/y", b"y", offset=0, size=1, sha256=hashlib.sha256(b"y").hexdigest(), mode=0o644).result(30)
    link.lanes.give(lane)


def test_an_idle_lane_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane that is asked nothing for a while reads the end, in the middle of a request as well."""
    monkeypatch.setattr(agent, "LANE_IDLE", 0.05)
    reads, writes = os.pipe()
    with os.fdopen(reads, "rb", 0) as source, os.fdopen(writes, "wb", 0) as driver:
        driver.write(b"12345678")
        assert agent.read_exactly(source, 8) == b"12345678"
        driver.write(b"1234")
        assert agent.read_exactly(source, 8) == b""
