"""Many studies, some at a time, and what came of them."""

from __future__ import annotations

import shutil
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.campaign import schedule
from tests.campaign.oracle import lines, verdicts
from tests.campaign.stage import TRIALS, Stage
from tests.campaign.stories import STORIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from tests.campaign.stage import Played

    Play = Callable[[Stage], Played]


@dataclass
class Found:
    """What was played and which promises were broken: `broken` has a text for each breach."""

    plays: int = 0
    deaths: int = 0
    starts: int = 0
    commands: int = 0
    breaches: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


def of_kills(count: int) -> dict[str, Play]:
    """Return plays of drivers that die at named points, so often in all."""
    return {f"{i}: " + " then ".join(crashes): _dying(crashes) for i, crashes in enumerate(schedule.kills(count), 1)}


def of_seeds(seeds: Iterable[int]) -> dict[str, Play]:
    """Return plays of random events."""
    return {f"seed {seed}": _disturbed(seed) for seed in seeds}


def named(name: str) -> Play:
    """Return one play: a story, `seed N`, or crash points with commas between them."""
    if name in STORIES:
        return STORIES[name]
    return _disturbed(int(name[5:])) if name.startswith("seed ") else _dying(tuple(name.split(",")))


def _dying(crashes: tuple[str, ...]) -> Play:
    def play(stage: Stage) -> Played:
        played = stage.study()
        stage.drive(played, crashes)
        return played

    return play


def _disturbed(seed: int) -> Play:
    def play(stage: Stage) -> Played:
        played = stage.study()
        stage.drive(played, events=schedule.events(seed))
        return played

    return play


def campaign(
    folder: Path, plays: Mapping[str, Play], *, together: int, say: Callable[[str], object] = lambda _: None
) -> Found:
    """Play all, some at a time; each breach is said as it is found."""
    found = Found(len(plays))
    with Stage(folder) as stage, ThreadPoolExecutor(together) as pool:

        def take(name: str, play: Play) -> None:
            try:
                played = play(stage)
            except Exception:  # noqa: BLE001 - a play that cannot go on has found something, too
                results = {"played to its end": [traceback.format_exc()]}
            else:
                results = verdicts(stage, played)
                found.starts += len(played.codes)
                found.deaths += sum(code < 0 for code in played.codes)
                found.commands += sum(line["event"] == "start" for line in lines(played.truth))
            for promise, breaches in results.items():
                found.breaches[promise] += bool(breaches)
                for breach in breaches:
                    found.broken.append(f"{name}: {promise}: {breach}")
                    say(found.broken[-1])
            if not any(results.values()):
                shutil.rmtree(played.folder)

        for future in [pool.submit(take, *each) for each in plays.items()]:
            future.result()
    return found


def table(found: Found, seconds: float) -> str:
    """Return the figures as text."""
    head = (
        f"{found.plays} studies of {TRIALS} trials: {found.starts} starts of a driver, {found.deaths} of them killed, "
        f"{found.commands} commands, {seconds / 60:.0f} min"
    )
    rows = [f"{promise:<36}{count} studies" for promise, count in found.breaches.items()]
    return "\n".join([head, f"{'promise':<36}broken in", *rows])
