"""Outputs that a result was committed without, out of what the platform has saved of a cluster that is gone."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from persistent_runner.errors import PlatformRefused
from persistent_runner.remote import agent
from persistent_runner.remote.frames import OutputFile
from persistent_runner.remote.local_names import LocalNames
from persistent_runner.remote.transfer import part_of
from persistent_runner.rescale.files import Unfit, below
from persistent_runner.study.bringing import is_here
from persistent_runner.study.owed import drop_parts, note, settle

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from persistent_runner.rescale.api import File
    from persistent_runner.rescale.files import JobFiles
    from persistent_runner.study.owed import Owed
    from persistent_runner.study.run_folder import RunFolder

log = logging.getLogger(__name__)

LISTED_SECONDS = 10.0  # that files are waited for which are not listed yet
LOOK_SECONDS = 1.0
_GONE = {404, 410}  # statuses of a refusal that is one of this file

Saved = dict[str, dict[str, "File"]]
"""By attempt: the files that were saved of it, by their path in its working directory."""


def fetch_owed(
    files: JobFiles, job_id: str, owed: Sequence[Owed], folder: RunFolder, stop: threading.Event, *, is_all: bool
) -> None:
    """Fetch what is to come of these trials of a job that has ended, and record each.

    `is_all` says that the job ended long enough ago for all to be listed that was saved: what is not never comes.
    PlatformError where the platform does not answer, OSError where this machine cannot keep a file, RunnerError where
    the journal cannot be written: then, and after an interrupt, the rest comes another time.
    """
    saved = _saved(files, job_id, owed, folder, stop)
    for each in owed:
        place = each.place(folder)
        count, is_settled = 0, is_all or not each.patterns
        for output in _to_come(each, saved[each.name]):
            if stop.is_set():
                return
            target, file = place.joinpath(*output.path.split("/")), saved[each.name].get(output.path)
            is_here_already = is_here(target, output)
            if file is None and not is_all and not is_here_already:
                is_settled = False
                continue
            why = "" if is_here_already else _fetch(files, file, place, output)
            part_of(target).unlink(missing_ok=True)  # of a start that was killed
            note(folder, each, [] if why else [output.path], {output.path: why} if why else None)
            count += not why
        if stop.is_set():
            return
        if is_settled:
            settle(folder, each)
        else:
            log.warning("trial %d: not all of its outputs are saved yet; the same line fetches them later", each.number)
        if count:
            outputs = "1 output is" if count == 1 else f"{count} outputs are"
            log.info("trial %d: %s fetched from what its cluster has left", each.number, outputs)


def give_up(owed: Owed, folder: RunFolder, why: str) -> None:
    """Record of outputs that they will not come; those that are here all the same are. RunnerError as `settle`."""
    drop_parts(folder, owed)  # of a start that was killed
    place, paths = owed.place(folder), [output.path for output in owed.to_come]
    here = [output.path for output in owed.to_come if is_here(place.joinpath(*output.path.split("/")), output)]
    note(folder, owed, here, {path: why for path in paths if path not in here})
    if owed.patterns:
        log.warning("trial %d: what it has left will not come: %s", owed.number, why)
    settle(folder, owed)


def _fetch(files: JobFiles, file: File | None, place: Path, output: OutputFile) -> str:
    """Fetch one file; return why it will never come, empty where it has."""
    if file is None:
        return "it was not saved when its cluster ended"
    size = output.size_bytes if output.sha256 else None
    try:
        files.download(file, place, output.path, size_bytes=size, sha256=output.sha256)
    except Unfit as error:
        return error.message
    except PlatformRefused as error:
        if error.status not in _GONE:
            raise
        return error.message
    return ""


def _saved(files: JobFiles, job_id: str, owed: Sequence[Owed], folder: RunFolder, stop: threading.Event) -> Saved:
    """List what was saved; a file that is not there may still be listed for some seconds after a job's end."""
    until = time.monotonic() + LISTED_SECONDS
    while True:
        listed = files.listed(job_id, name=folder.on_node)
        found = {each.name: dict(below(listed, f"{folder.on_node}/{each.name}")) for each in owed}
        is_whole = all(output.path in found[each.name] for each in owed for output in each.to_come)
        is_whole &= all(found[each.name] for each in owed)
        if is_whole or time.monotonic() > until or stop.wait(LOOK_SECONDS):
            return found


def _to_come(owed: Owed, saved: Mapping[str, File]) -> Iterator[OutputFile]:
    """Yield what is to come; of a trial that failed, what was saved of it and can be kept here."""
    yield from owed.to_come
    names = LocalNames()
    patterns = [agent.pattern(text) for text in owed.patterns]
    for path, file in saved.items():
        is_meant = not path.startswith(".attempt/") and any(pattern.match(path) for pattern in patterns)
        if is_meant and path not in owed.done and not names.problem(path):
            yield OutputFile(path, file.decrypted_size or 0)
