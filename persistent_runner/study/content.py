"""What a study runs, beside the design: its deck, setup, command and readers; and what of it has changed since."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from persistent_runner.errors import ConfigError
from persistent_runner.inputs import checksum, walk_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from persistent_runner.study.run_folder import RunFolder
    from persistent_runner.study.spec import StudySpec

Content = dict[str, dict[str, str]]
"""Part (deck, setup, command, readers): name of a file or a key: SHA-256."""


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
    }


def digest_of(content: Content) -> str:
    """Return one hash of all."""
    return _text(content)


def changes(before: Mapping[str, Mapping[str, str]], now: Content) -> Iterator[str]:
    """Yield each part that differs, with the names of what was changed, added or removed in it."""
    for part, entries in now.items():
        old = before.get(part, {})
        names = [name for name in dict.fromkeys([*old, *entries]) if old.get(name) != entries.get(name)]
        if names:
            yield f"{part} ({', '.join(names)})"


def check_unchanged(spec: StudySpec, folder: RunFolder, *, has_results: bool, accepted: bool) -> Content:
    """Return what the study runs now, kept for the next start; ConfigError where it changed under results.

    With other decks, commands or readers the results so far cannot be compared with the ones to come, unless the user
    says so.
    """
    now = content_of(spec)
    changed = list(changes(folder.content, now)) if folder.content is not None else []
    if changed and has_results and not accepted:
        raise ConfigError(
            f"{spec.study.name} has changed since it began: {'; '.join(changed)}. Its results so far come from what "
            "it was.",
            remedy="--new NAME begins a new study; --accept-changed goes on with this one, where the change does not "
            "touch the numbers; --retry-failed goes on as well, and runs the designs of failed trials again; --reread "
            "takes the numbers anew from the files that were kept.",
        )
    if folder.content != now:
        folder.set_content(now)
    return now


def _files(spec: StudySpec, inputs: Sequence[str]) -> dict[str, str]:
    return {file.path: _text([checksum(file), file.mode & 0o111]) for file in walk_inputs(spec.folder, inputs)}


def _text(value: object) -> str:
    return _hash(json.dumps(value, sort_keys=True).encode())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
