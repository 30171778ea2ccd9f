"""What a user relies on of the files that `inputs` names."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from persistent_runner.errors import ConfigError
from persistent_runner.inputs import LINK_MODE, SHARED_BYTES, checksum, shared_file, walk_inputs
from persistent_runner.render import render_inputs

HOSTILE = "a b {c} $d é 'q'"


def test_a_folders_contents_land_in_the_working_directory(tmp_path: Path) -> None:
    """Folders are walked sorted at any depth, `.j2` is dropped, modes are kept, bytes are not touched."""
    case = tmp_path / HOSTILE / "case"
    (case / "system" / "__pycache__").mkdir(parents=True)
    (case / "system" / "__pycache__" / "x.pyc").write_bytes(b"")
    (case / "system" / "dict.j2").write_text("@{ x }@")
    (case / "run sh").write_bytes(b"#!/bin/sh\r\n\0\xff")
    (case / "run sh").chmod(0o755)
    (case / ".hidden").write_text("")
    (tmp_path / "mesh.msh").write_text("m")
    files = walk_inputs(tmp_path / HOSTILE, ["case/", "../mesh.msh"])
    assert [file.path for file in files] == [".hidden", "run sh", "system/dict", "mesh.msh"]
    assert render_inputs(files, {"x": 1})[1] == ("run sh", b"#!/bin/sh\r\n\0\xff", 0o755)
    assert render_inputs(files, {"x": 1})[2][:2] == ("system/dict", b"1")


def test_a_missing_input_names_the_nearest(tmp_path: Path) -> None:
    """A typo in `inputs` is answered with the name that was meant."""
    (tmp_path / "case").mkdir()
    with pytest.raises(ConfigError, match=r'input "cse/" is not there; in .*: did you mean "case"\?') as caught:
        walk_inputs(tmp_path, ["cse/"])
    assert caught.value.exit_code == 2


def test_two_inputs_with_one_name(tmp_path: Path) -> None:
    """Neither of two files silently wins over the other; a file is no folder either."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "deck.inp").write_text(name)
    with pytest.raises(ConfigError, match=r'land on "deck\.inp": .*a.deck\.inp and .*b.deck\.inp'):
        walk_inputs(tmp_path, ["a", "b"])
    (tmp_path / "a" / "deck.inp.j2").write_text("")
    with pytest.raises(ConfigError, match=r'two inputs land on "deck\.inp"'):
        walk_inputs(tmp_path, ["a"])
    (tmp_path / "c" / "deck.inp").mkdir(parents=True)
    (tmp_path / "c" / "deck.inp" / "x").write_text("")
    with pytest.raises(ConfigError, match=r'"deck\.inp" is both a file .* and a folder'):
        walk_inputs(tmp_path, ["b", "c"])


@pytest.mark.parametrize("name", [".attempt", "parameters.json", "parameters.json.j2"])
def test_the_runners_own_names_are_refused(tmp_path: Path, name: str) -> None:
    """An input cannot stand in for what the runner writes itself."""
    (tmp_path / name).write_text("")
    with pytest.raises(ConfigError, match="is the runner's own"):
        walk_inputs(tmp_path, [name])


@pytest.mark.skipif(os.name == "nt", reason="links and such names need POSIX")
def test_links_and_odd_files(tmp_path: Path) -> None:
    """Links are followed; one that leads nowhere, loops, a pipe, and a name with a newline are told at once."""
    case = tmp_path / "case"
    case.mkdir()
    (tmp_path / "real.txt").write_text("real")
    (case / "link").symlink_to(tmp_path / "real.txt")
    assert render_inputs(walk_inputs(tmp_path, ["case"]), {})[0][:2] == ("link", b"real")
    odd = case / "odd"
    odd.symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"odd \(a link to nowhere\) cannot be read"):
        walk_inputs(tmp_path, ["case"])
    odd.unlink()
    odd.symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="a link to a folder that contains it"):
        walk_inputs(tmp_path, ["case"])
    odd.unlink()
    os.mkfifo(odd)
    with pytest.raises(ConfigError, match="neither a file nor a folder"):
        walk_inputs(tmp_path, ["case"])
    odd.unlink()
    (case / "a\nb").write_text("")
    with pytest.raises(ConfigError, match=re.escape("'a\\nb' holds a control character")):
        walk_inputs(tmp_path, ["case"])
    (case / "a\nb").unlink()
    if sys.platform == "linux":
        Path(os.fsdecode(os.fsencode(case) + b"/\xff")).write_text("")
        with pytest.raises(ConfigError, match="not UTF-8"):
            walk_inputs(tmp_path, ["case"])


def links(study: Path, /, **targets: str | Path) -> dict[str, str]:
    """Make links in a case (`__` in a name is a `/`), and return where those that stay links lead on the node."""
    for name, target in targets.items():
        path = study / "case" / name.replace("__", "/").replace("_j2", ".j2")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
    found = walk_inputs(study, ["case/"])
    assert all(file.mode == LINK_MODE for file in found if file.link)
    return {file.path: file.link for file in found if file.link}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / HOSTILE
    (folder / "case" / "mesh").mkdir(parents=True)
    (folder / "case" / "mesh" / "a.msh").write_text("mesh")
    (folder / "case" / "deck.inp.j2").write_text("@{ x }@")
    (folder / "outside").mkdir()
    (folder / "outside" / "b.msh").write_text("b")
    return folder


@pytest.mark.skipif(os.name == "nt", reason="making links needs rights there")
def test_links_within_a_folder_stay_links(study: Path) -> None:
    """A link that leads to what arrives too is that link on the node, whether to a file, a folder, or over another."""
    found = links(
        study,
        file="mesh/a.msh",
        folder="mesh",
        over="file",
        deep__up="../mesh/a.msh",
        deep__again="../deep/up",
        here=".",
    )
    assert found == {
        "file": "mesh/a.msh", "folder": "mesh", "over": "file", "deep/up": "../mesh/a.msh", "deep/again": "../deep/up",
        "here": ".",
    }  # fmt: skip
    content = {path: data for path, data, _ in render_inputs(walk_inputs(study, ["case/"]), {"x": 1})}
    assert (content["deep/up"], content["mesh/a.msh"]) == (b"../mesh/a.msh", b"mesh")
    assert "folder/a.msh" not in content


@pytest.mark.skipif(os.name == "nt", reason="making links needs rights there")
def test_links_that_would_not_lead_there_on_the_node_are_made_relative(study: Path) -> None:
    """An absolute link, and one that goes out of the folder and in again, lead to the same file on the node."""
    found = links(study, absolute=study / "case" / "mesh" / "a.msh", deep__round="../../case/mesh")
    assert found == {"absolute": "mesh/a.msh", "deep/round": "../mesh"}


@pytest.mark.skipif(os.name == "nt", reason="making links needs rights there")
def test_links_that_are_followed(study: Path) -> None:
    """What does not arrive under its own name is sent as content: from outside, a template, what is left out."""
    (study / "case" / "__pycache__").mkdir()
    (study / "case" / "__pycache__" / "c").write_text("c")
    found = links(
        study, out="../outside/b.msh", all="../outside", raw="deck.inp.j2", again_j2="mesh/a.msh", cache="__pycache__/c"
    )
    assert found == {}
    content = {path: data for path, data, _ in render_inputs(walk_inputs(study, ["case/"]), {"x": 1})}
    assert content == {
        "all/b.msh": b"b", "again": b"mesh", "cache": b"c", "deck.inp": b"1", "mesh/a.msh": b"mesh", "out": b"b",
        "raw": b"@{ x }@",
    }  # fmt: skip
    assert [file.link for file in walk_inputs(study, ["case/out", "case/raw"])] == ["", ""]


@pytest.mark.skipif(os.name == "nt", reason="making links needs rights there")
def test_a_link_that_leads_nowhere_is_told(study: Path) -> None:
    """A dangling link within a folder, and one that leads to itself, stop the study before anything is sent."""
    (study / "case" / "odd").symlink_to("mesh/none")
    with pytest.raises(ConfigError, match=r"odd \(a link to mesh/none\) cannot be read"):
        walk_inputs(study, ["case/"])
    (study / "case" / "odd").unlink()
    (study / "case" / "odd").symlink_to("odd")
    with pytest.raises(ConfigError, match=r"odd \(a link to odd\) cannot be read"):
        walk_inputs(study, ["case/"])


def test_big_files_are_shared(tmp_path: Path) -> None:
    """From 1 MiB on a file goes to the node once; a template never does, as it differs from trial to trial."""
    for name, size in (("small", SHARED_BYTES - 1), ("big", SHARED_BYTES), ("big.j2", SHARED_BYTES)):
        (tmp_path / name).write_bytes(b"x" * size)
    found = {file.source.name: file.shared for name in ("small", "big") for file in walk_inputs(tmp_path, [name])}
    assert found == {"small": False, "big": True}
    assert not walk_inputs(tmp_path, ["big.j2"])[0].shared


def test_the_hash_of_a_big_file_is_taken_once(tmp_path: Path) -> None:
    """A trial does not read again what the one before has read, unless size or time of change say that it is another."""
    big = tmp_path / "big"
    big.write_bytes(b"x" * SHARED_BYTES)
    [file] = walk_inputs(tmp_path, ["big"])
    first = shared_file(file)
    assert (first.sha256, first.size_bytes) == (checksum(file), SHARED_BYTES)
    before = big.stat()
    big.write_bytes(b"y" * SHARED_BYTES)
    os.utime(big, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert shared_file(file) == first  # the content was not looked at
    os.utime(big, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert shared_file(file).sha256 != first.sha256
