"""What a study runs, beside the design: its deck, setup, command and readers; and what of it has changed since."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING

from persistent_runner.errors import ConfigError
from persistent_runner.inputs import checksum, walk_inputs
from persistent_runner.study.storage import differences

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from persistent_runner.study.run_folder import RunFolder
    from persistent_runner.study.spec import StudySpec

log = logging.getLogger(__name__)

PARTS = ("deck", "setup", "command", "readers", "require")
_CHOICES = (
    "--new NAME begins a new study; --accept-changed goes on with this one, where the change does not touch the "
    "numbers; --retry-failed goes on as well, and runs the designs of failed trials again; --reread, where only the "
    "readers have changed, takes the numbers anew from the files that were kept."
)

Content = dict[str, dict[str, str]]
"""Part (deck, setup, command, readers, require): name of a file or a key: SHA-256."""


def content_of(spec: StudySpec) -> Content:
    """Return what a study runs now."""
    trial, setup = spec.trial, spec.setup
    deck = _files(spec, trial.inputs)
    if trial.objective:
        name = trial.objective.rpartition(":")[0]
        deck[name] = _hash((spec.folder / name).read_bytes())
    command = {"command": _text(spec.command_text or trial.objective or ""), "env": _text(dict(spec.cluster.env))}
    readers = {name: _text(extract.model_dump(mode="json")) for name, extract in spec.metrics.items()}
    for name in {extract.function.rpartition(":")[0] for extract in spec.metrics.values() if extract.function}:
        readers[name] = _hash((spec.folder / name).read_bytes())
    return {
        "deck": deck | {"template": _text(trial.template.model_dump(mode="json"))},
        "setup": _files(spec, setup.inputs) | {"command": _text(setup.command)},
        "command": command,
        "readers": readers,
        "require": {"require": _text(spec.study.require)},
    }


def digest_of(content: Content) -> str:
    """Return one hash of all."""
    return _text(content)


def changes(before: Mapping[str, Mapping[str, str]], now: Content) -> dict[str, str]:
    """Return each part that differs, with the names of what was changed, added or removed in it."""
    found = {}
    for part, entries in now.items():
        if (old := before.get(part)) is None:  # written by a version that did not look at it
            continue
        names = [name for name in dict.fromkeys([*old, *entries]) if old.get(name) != entries.get(name)]
        if names:
            found[part] = part if names == [part] else f"{part} ({', '.join(names)})"
    return found


def check_unchanged(spec: StudySpec, folder: RunFolder, counts: Mapping[str, int], accepted: Iterable[str]) -> Content:
    """Return what the study runs now, kept for the next start; ConfigError where it changed under results.

    With other decks, commands or readers the results so far cannot be compared with the ones to come, unless the user
    says so: `accepted` are the parts that may have changed. `counts` has the number of trials by state. What changed
    after how many trials goes to the journal.
    """
    now = content_of(spec)
    changed = changes(folder.content, now) if folder.content is not None else {}
    refused = [text for part, text in changed.items() if part not in set(accepted)]
    if refused and counts.get("COMPLETE"):
        raise ConfigError(
            f"{spec.study.name} has changed since it began: {'; '.join(refused)}. Its results so far come from what "
            "it was.",
            remedy=_CHOICES,
        )
    if changed and (settled := sum(counts.values())):
        what = "; ".join(changed.values())
        folder.commit(kind="changed", settled=settled, what=what)
        log.warning("Changed after %d trials: %s", settled, what)
        if counts.get("FAIL") and not counts.get("COMPLETE"):
            log.warning("The trials that failed before stay failed; --retry-failed runs their designs again")
    if folder.content != now:
        folder.set_content(now)
    return now


def refused(spec: StudySpec, folder: RunFolder) -> list[str]:
    """Return what has changed since the study that a folder holds began, for which a start would be refused.

    The folder is only looked at.
    """
    if not folder.look():
        return []
    found = list(differences(folder.fingerprint or {}, spec.fingerprint())) if folder.fingerprint else []
    if folder.content is not None and folder.has_complete:
        found += changes(folder.content, content_of(spec)).values()
    return found


def _files(spec: StudySpec, inputs: Sequence[str]) -> dict[str, str]:
    return {file.path: _text([checksum(file), file.mode & 0o111]) for file in walk_inputs(spec.folder, inputs)}


def _text(value: object) -> str:
    return _hash(json.dumps(value, sort_keys=True).encode())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
