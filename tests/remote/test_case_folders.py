"""A case directory on a node: links, modes, and big files that travel once and are never shared for writing."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from persistent_runner.errors import AttemptLost, ConfigError, NodeDiskFull
from persistent_runner.inputs import SHARED_BYTES, SharedFile, shared_file, walk_inputs
from persistent_runner.remote import agent, transfer
from persistent_runner.remote.agent import PART, STATIC
from persistent_runner.remote.frames import RequestRefused
from tests.remote.conftest import run, until

if TYPE_CHECKING:
    from pathlib import Path

    from persistent_runner.remote.workdir import WorkDir
    from tests.remote.conftest import Site

BIG = os.urandom(SHARED_BYTES + 1)


def attempt(site: Site, link: Any, number: int) -> WorkDir:
    """Return the working directory of a trial."""
    return site.work(link, attempt=f"{number:05d}.1", number=number)


def static(site: Site) -> list[Path]:
    """Return the files that the node keeps for all attempts."""
    folder = site.root / STATIC
    return sorted(folder.iterdir()) if folder.exists() else []


def test_a_case_as_it_is(site: Site) -> None:
    """Folders at any depth, templates, binary content, line ends, modes and links arrive as they are here."""
    case = site.inputs / "case"
    (case / "system" / "deep").mkdir(parents=True)
    (case / "system" / "deep" / "dict.j2").write_bytes(b"x\r\n@{ x }@;\r\n")
    (case / "run me").write_bytes(b"#!/bin/sh\ncat system/latest/dict link\n")
    (case / "run me").chmod(0o750)
    (case / "data.bin").write_bytes(bytes(range(256)))
    (case / "data.bin").chmod(0o440)
    (case / "mesh.msh").write_bytes(BIG)
    (case / "link").symlink_to("data.bin")
    (case / "system" / "latest").symlink_to("deep")
    (case / "system" / "mesh").symlink_to("../mesh.msh")
    work = site.work()
    work.push("case/", x=0.5)
    result = work.run(
        "'./run me'; stat -c %a 'run me' data.bin; readlink link system/latest system/mesh; cmp mesh.msh system/mesh"
    )
    expected = b"x\r\n0.5;\r\n" + bytes(range(256)) + b"750\n440\ndata.bin\ndeep\n../mesh.msh\n"
    assert result.log.read_bytes() == expected
    assert (site.root / "00000.1" / "mesh.msh").read_bytes() == BIG


def test_a_big_file_travels_once(sshd_site: Site) -> None:
    """The first trial sends it, every other one starts with a single frame, and so does one after a new connection."""
    (sshd_site.inputs / "mesh").write_bytes(BIG)
    (sshd_site.inputs / "same content").write_bytes(BIG)
    (sshd_site.inputs / "mesh").chmod(0o755)
    link = sshd_site.link()
    frames = []
    for number in range(4):
        if number == 3:
            link.close()
            link = sshd_site.link()  # a new driver, or a new connection
        before = link.frames_out
        work = attempt(sshd_site, link, number)
        work.push("mesh", "same content")
        assert work.run("stat -c '%a %s' mesh; cmp mesh 'same content'").output == f"755 {len(BIG)}\n"
        frames.append(link.frames_out - before)
    assert frames[1:] == [1, 1, 1]
    assert frames[0] > 1 + len(BIG) // transfer.PIECE
    [kept] = static(sshd_site)
    assert kept.read_bytes() == BIG
    assert kept.stat().st_mode & 0o222 == 0


def test_a_program_that_writes_to_its_input_changes_no_other(sshd_site: Site) -> None:
    """Not even root, for whom no file is read-only, can reach another attempt's copy or the kept one."""
    (sshd_site.inputs / "mesh").write_bytes(BIG)
    link = sshd_site.link()
    works = [attempt(sshd_site, link, number) for number in range(2)]
    for work in works:
        work.push("mesh")
    go = sshd_site.root / "00000.1" / "go"
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(works[0].run, "until [ -e go ]; do sleep 0.01; done; cp mesh out", outputs=["out"])
        until((go.parent / "mesh").exists, "the first attempt has its copy")
        works[1].run("printf damaged > mesh; chmod 777 mesh")
        go.touch()
        reading.result(60)
    assert works[0].pull("out").read_bytes() == BIG
    assert static(sshd_site)[0].read_bytes() == BIG


def test_trials_that_start_together_send_it_once(sshd_site: Site) -> None:
    """Whoever comes first brings the file; the others wait for it, and each has its own copy."""
    (sshd_site.inputs / "mesh").write_bytes(BIG)
    link = sshd_site.link()
    works = [attempt(sshd_site, link, number) for number in range(6)]
    for work in works:
        work.push("mesh")
    before = link.frames_out
    with ThreadPoolExecutor(len(works)) as pool:
        assert {result.output for result in pool.map(lambda work: work.run("wc -c < mesh"), works)} == {f"{len(BIG)}\n"}
    pieces = len(range(0, len(BIG), transfer.PIECE))
    assert link.frames_out - before <= 3 * len(works) + pieces  # each: run, list, run again; and the pieces once


@pytest.mark.parametrize("damage", ["gone", "short"])
def test_a_node_that_has_lost_it_gets_it_again(sshd_site: Site, damage: str) -> None:
    """A kept file that is gone or cut is not believed to be there, although it was sent before."""
    (sshd_site.inputs / "mesh").write_bytes(BIG)
    link = sshd_site.link()
    for number in range(2):
        work = attempt(sshd_site, link, number)
        work.push("mesh")
        assert work.run("wc -c < mesh").output == f"{len(BIG)}\n"
        [kept] = static(sshd_site)
        kept.unlink()
        if damage == "short":
            kept.write_bytes(BIG[:-1])


def test_the_command_keeps_its_identity(sshd_site: Site) -> None:
    """A command is joined when path, mode and content are the same, and is another one when the big file changed."""
    mesh = sshd_site.inputs / "mesh"
    mesh.write_bytes(BIG)
    link = sshd_site.link()
    for _ in range(2):
        work = sshd_site.work(link)
        work.push("mesh")
        work.run("echo ran >> times; cat times")
    assert (sshd_site.root / "00000.1" / "times").read_text() == "ran\n"
    mesh.write_bytes(BIG[::-1])
    work = sshd_site.work(link)
    work.push("mesh")
    with pytest.raises(AttemptLost, match="with another command or other inputs"):
        work.run("echo ran >> times; cat times")


def test_the_hash_of_a_command_does_not_depend_on_the_way_of_its_files(
    sshd_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was claimed with a file in the frame is joined with the same file by its name."""
    (sshd_site.inputs / "mesh").write_bytes(BIG)
    link = sshd_site.link()
    for least in (1 << 30, SHARED_BYTES):
        monkeypatch.setattr("persistent_runner.inputs.SHARED_BYTES", least)
        work = sshd_site.work(link)
        work.push("mesh")
        work.run("echo ran >> times")
    assert (sshd_site.root / "00000.1" / "times").read_text() == "ran\n"


def test_drops_while_a_big_file_is_sent(site: Site) -> None:
    """A connection that is cut again and again costs time; the file is whole, and its checksum is made aside."""
    data = os.urandom(agent.LONG_FILE + 1000)
    (site.inputs / "mesh").write_bytes(data)
    work = site.work()
    work.push("mesh")
    stop = threading.Event()

    def cut() -> None:
        seen = site.proxy.passed
        while not stop.wait(0.02):
            if site.proxy.passed - seen > agent.LONG_FILE // 4:  # between two drops something gets through
                site.proxy.drop()
                seen = site.proxy.passed

    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        work.run("true")
    finally:
        stop.set()
        cutter.join()
    assert (site.root / "00000.1" / "mesh").read_bytes() == data
    assert [path.name for path in static(site)] == [path.name for path in static(site) if "." not in path.name]


def test_an_input_that_changes_while_it_is_sent(sshd_site: Site) -> None:
    """Half of one file and half of another gets no name on the node, and the message names the file."""
    mesh = sshd_site.inputs / "mesh"
    mesh.write_bytes(BIG)
    link = sshd_site.link()
    for changed in (BIG[:-1] + bytes([BIG[-1] ^ 1]), BIG[:-1]):
        work = sshd_site.work(link)
        work.push("mesh")
        mesh.write_bytes(changed)
        with pytest.raises(ConfigError, match="mesh changed while it was sent"):
            work.run("true")
        mesh.write_bytes(BIG)
    assert [path for path in static(sshd_site) if not path.name.endswith(PART)] == []
    work = sshd_site.work(link)
    work.push("mesh")
    assert work.run("wc -c < mesh").output == f"{len(BIG)}\n"


def test_a_stopped_trial_sends_no_more(sshd_site: Site) -> None:
    """Who stops a trial that sends a big file, or waits for another one's, does not wait for all of it."""
    (sshd_site.inputs / "mesh").write_bytes(BIG)
    link = sshd_site.link()
    work = sshd_site.work(link)
    work.push("mesh")
    with ThreadPoolExecutor(1) as pool, link.sharing:
        before = link.frames_in
        waiting = pool.submit(work.run, "true")
        until(lambda: link.frames_in > before, "the node has said that it lacks the file")
        work.stop()
        with pytest.raises(AttemptLost, match="was stopped"):
            waiting.result(30)
    assert static(sshd_site) == []


def test_sending_is_given_up_between_two_pieces(sshd_site: Site) -> None:
    """A file of gigabytes is not sent to its end for a trial that was stopped."""
    (sshd_site.inputs / "mesh").write_bytes(BIG)
    link = sshd_site.link()
    work = sshd_site.work(link)
    shared = shared_file(walk_inputs(sshd_site.inputs, ["mesh"])[0])
    pieces: list[None] = []

    def check() -> None:
        pieces.append(None)
        if len(pieces) == 3:
            work.stop()
        work.check()

    with pytest.raises(AttemptLost, match="was stopped"):
        transfer.share(link, [shared], check)
    assert len(pieces) == 3 < len(BIG) // transfer.PIECE
    assert [path for path in static(sshd_site) if path.suffix != PART] == []


def test_a_command_is_killed_while_its_inputs_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that takes long is given up when its command is to end, and leaves nothing."""
    monkeypatch.setattr(agent, "clone", lambda source, target: False)
    (tmp_path / "source").write_bytes(BIG)
    (tmp_path / "kill").touch()
    with pytest.raises(agent.Unwanted):
        agent.copy_whole(str(tmp_path / "source"), str(tmp_path / "target"), 0o644, str(tmp_path / "kill"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kill", "source"]


@pytest.mark.parametrize("way", ["kernel", "kernel gives up", "read and write"])
def test_each_way_of_copying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """With the kernel's help, without it, and where it stops half-way, a copy has all of the content and its mode."""
    if way == "read and write":
        monkeypatch.delattr(os, "copy_file_range")
    elif way == "kernel gives up":
        real, calls = os.copy_file_range, []

        def once(source: int, target: int, count: int) -> int:
            calls.append(count)
            if len(calls) > 1:
                raise OSError(18, "Invalid cross-device link")
            return real(source, target, 1000)

        monkeypatch.setattr(os, "copy_file_range", once)
    monkeypatch.setattr(agent, "clone", lambda source, target: False)
    (tmp_path / "source").write_bytes(BIG)
    agent.copy_whole(str(tmp_path / "source"), str(tmp_path / "target"), 0o751, str(tmp_path / "kill"))
    assert (tmp_path / "target").read_bytes() == BIG
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o751
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


def test_a_file_system_that_shares_blocks(tmp_path: Path) -> None:
    """Where the file system can, a copy takes no room, and is still a file of its own."""
    image, place = tmp_path / "image", tmp_path / "place"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(400 << 20)
    made = shutil.which("mkfs.xfs") and subprocess.run(["mkfs.xfs", "-q", str(image)], check=False).returncode == 0
    if not made or os.system(f"mount -o loop {image} {place} 2>/dev/null"):
        pytest.skip("needs mkfs.xfs and the right to mount")
    try:
        source, target = place / "source", place / "target"
        source.write_bytes(BIG * 64)
        os.sync()
        free = shutil.disk_usage(place).free
        agent.copy_whole(str(source), str(target), 0o644, str(place / "kill"))
        os.sync()
        assert free - shutil.disk_usage(place).free < len(BIG)
        with target.open("r+b") as file:
            file.write(b"damaged")
        assert source.read_bytes() == BIG * 64
        assert target.read_bytes() == b"damaged" + (BIG * 64)[7:]
    finally:
        os.system(f"umount -l {place}")


def test_no_room_for_a_copy(sshd_site: Site) -> None:
    """A full disk is the machine's fault, said as such, and never the design's."""
    link = sshd_site.link()
    (sshd_site.inputs / "mesh").write_bytes(BIG)
    small = sshd_site.root / "00000.1"
    small.mkdir(parents=True)
    if os.system(f"mount -t tmpfs -o size=512k none '{small}' 2>/dev/null"):
        pytest.skip("needs the right to mount a small file system")
    try:
        work = sshd_site.work(link)
        work.push("mesh")
        with pytest.raises(NodeDiskFull, match=r"No space left on device; 0\.5 of 0\.5 MB are free"):
            work.run("touch ran")
        with pytest.raises(NodeDiskFull):
            work.run("touch ran")
        until(lambda: not list(small.iterdir()), "the end of what was half there")
    finally:
        os.system(f"umount -l '{small}'")


def test_a_link_does_not_lead_an_input_astray(sshd_site: Site) -> None:
    """A file is never written through a link that an earlier push has made."""
    link = sshd_site.link()
    outside = sshd_site.folder / "outside"
    outside.mkdir()
    run(link, f"ln -s {shlex.quote(str(outside))} there", attempt="a.1")
    (sshd_site.root / STATIC).mkdir()
    (sshd_site.root / STATIC / "0").write_bytes(BIG)
    shared = SharedFile(sshd_site.inputs / "mesh", len(BIG), "0")
    for seq, content in enumerate((b"", shared), 1):
        with pytest.raises(RequestRefused, match="leads through a symbolic link"):
            run(link, "true", attempt="a.1", seq=seq, files=[("there/x", content, 0o644)])
    assert list(outside.iterdir()) == []
