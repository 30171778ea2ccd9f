"""Many studies, some at a time, and what came of them."""

from __future__ import annotations

import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.campaign import schedule
from tests.campaign.oracle import lines, verdicts
from tests.campaign.stage import TRIALS, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path


@dataclass
class Found:
    """What was played and which promises were broken: `broken` has a text for each breach."""

    kills: int = 0
    seeds: int = 0
    deaths: int = 0
    starts: int = 0
    commands: int = 0
    breaches: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


def campaign(
    folder: Path,
    *,
    kills: int,
    seeds: Iterable[int],
    together: int = 6,
    say: Callable[[str], object] = lambda _: None,
) -> Found:
    """Play so many schedules of deaths, and those of the seeds; each breach is said as it is found."""
    found = Found()
    with Stage(folder) as stage, ThreadPoolExecutor(together) as pool:

        def play(name: str, crashes: tuple[str, ...], seed: int | None) -> None:
            played = stage.play(crashes, [] if seed is None else schedule.events(seed))
            results = verdicts(stage, played)
            found.starts += len(played.codes)
            found.deaths += sum(code < 0 for code in played.codes)
            found.commands += sum(line["event"] == "start" for line in lines(played.folder / "truth.jsonl"))
            for promise, breaches in results.items():
                found.breaches[promise] += bool(breaches)
                for breach in breaches:
                    found.broken.append(f"{name}: {promise}: {breach}")
                    say(found.broken[-1])
            if not any(results.values()):
                shutil.rmtree(played.folder)

        work = [(" then ".join(crashes), crashes, None) for crashes in schedule.kills(kills)]
        found.kills = len(work)
        of_seeds = [(f"seed {seed}", (), seed) for seed in seeds]
        found.seeds = len(of_seeds)
        for future in [pool.submit(play, *each) for each in [*work, *of_seeds]]:
            future.result()
    return found


def table(found: Found, seconds: float) -> str:
    """Return the figures as text."""
    head = (
        f"{found.kills} schedules of deaths at {len(schedule.crash_points())} named points and {found.seeds} of random "
        f"events, {TRIALS} trials each: {found.starts} starts, {found.deaths} deaths, {found.commands} commands, "
        f"{seconds / 60:.0f} min"
    )
    rows = [f"{promise:<36}{count} studies" for promise, count in found.breaches.items()]
    return "\n".join([head, f"{'promise':<36}broken in", *rows])
