"""A canary API key and lease secret: they are in no output, no file and no process list but where they belong.

The programs run as processes of their own against a platform whose key is the canary, the ways that end badly among
them; a watcher reads the process list and the nodes' homes meanwhile.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import stat
import threading
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
import requests

from persistent_runner.local_platform.attach import make_key_pair
from persistent_runner.local_platform.local import LocalRescale
from tests.driving import Place, until
from tests.rescale.scripted import Said, Script, serve

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.driving import Driver

KEY = "canary" + secrets.token_hex(20)
OTHER_KEY = "canary" + secrets.token_hex(20)
# The platform itself gives the account's key and the job's environment to its machines, whose user may read them.
ENVIRONMENT = "env | grep -v RESCALE_API_KEY"
OF_THE_PLATFORM = {".profile", ".bash_profile"}


def forms(secret: str) -> set[bytes]:
    """Return how a secret may be written."""
    data = secret.encode()
    return {
        data,
        urllib.parse.quote(secret, safe="").encode(),
        base64.b64encode(data).rstrip(b"="),
        base64.urlsafe_b64encode(data).rstrip(b"="),
        data.hex().encode(),
    }


def holds(data: bytes, wanted: Iterable[str]) -> bool:
    """Return whether bytes hold one of the secrets in any form."""
    return any(form in data for secret in wanted for form in forms(secret))


def read(path: Path) -> bytes:
    """Return what a file holds; nothing where it is gone or no file."""
    try:
        return path.read_bytes() if path.is_file() and not path.is_symlink() else b""
    except OSError:
        return b""


def files_below(root: Path) -> Iterator[Path]:
    """Yield every file, whatever comes and goes meanwhile."""
    for folder, _, names in os.walk(root):
        yield from (Path(folder) / name for name in names)


class Watcher:
    """Reads the process list and the nodes' homes again and again, and learns the lease secrets from the ledger."""

    def __init__(self, place: Place, root: Path) -> None:
        self.secrets = {KEY, OTHER_KEY}
        self.lease_secrets: set[str] = set()
        self.found: set[str] = set()
        self.looks = 0
        self._place = place
        self._root = root
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def learn(self, text: str) -> None:
        """Add a lease's secret to what is looked for."""
        if text:
            self.lease_secrets.add(text)
            self.secrets = {KEY, OTHER_KEY} | self.lease_secrets

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            for path in files_below(self._place.state):
                if path.suffix == ".secret":
                    self.learn(read(path).decode().strip())
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                if holds(read(path), self.secrets):
                    self.found.add(f"process: {read(path)!r}")
            for path in files_below(self._root):
                if path.name.startswith("proof") or path.name in OF_THE_PLATFORM:
                    continue
                if holds(read(path), self.secrets):
                    self.found.add(f"node: {path.relative_to(self._root)}")
            self.looks += 1


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Make a user's machine with an SSH key."""
    place = Place(tmp_path / "a user")
    (place.home / ".ssh").mkdir(mode=0o700)
    make_key_pair(place.home / ".ssh" / "id_ed25519", place.folder / "keys")
    yield place
    until(lambda: not place.processes(), f"the end of {place.processes()}")


@pytest.fixture
def rescale(place: Place, tmp_path: Path) -> Iterator[LocalRescale]:
    """Run a platform whose key is the canary."""
    with LocalRescale(tmp_path / "platform", authorized_keys=place.folder / "keys", api_key=KEY) as platform:
        write_account(place, platform.base_url)
        yield platform


@pytest.fixture
def script() -> Iterator[Script]:
    """Run a server that follows a script."""
    script = Script()
    server = serve(script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield script
    server.shutdown()
    server.server_close()
    thread.join()


def write_account(place: Place, url: str, key: str = KEY, profile: str = "lab") -> Path:
    path = place.home / ".config" / "rescale" / "apiconfig"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(f"[{profile}]\napibaseurl = {url}\napikey = {key}\n")
    path.chmod(0o600)
    return path


def learn_from(platform: LocalRescale, watcher: Watcher) -> None:
    """Add the secrets that the platform got: a lease's file is gone when the lease is closed."""
    with requests.Session() as session:
        session.headers["Authorization"] = f"Token {KEY}"
        for row in session.get(f"{platform.base_url}/api/v2/jobs/", timeout=30).json()["results"]:
            job = session.get(f"{platform.base_url}/api/v2/jobs/{row['id']}/", timeout=30).json()
            for analysis in job["jobanalyses"]:
                watcher.learn((analysis.get("envVars") or {}).get("PERSISTENT_RUNNER_PROOF", ""))


def leaks(place: Place, watcher: Watcher, *drivers: Driver) -> list[str]:
    """Return where a secret stands that it should not."""
    found = sorted(watcher.found)
    for driver in drivers:
        if holds((driver.said + driver.out).encode(), watcher.secrets):
            found.append(f"output: {driver.said}{driver.out}")
    for path in files_below(place.folder):
        belongs = path.name == "apiconfig" or (path.suffix == ".secret" and path.is_relative_to(place.state))
        if not belongs and holds(read(path), watcher.secrets):
            found.append(f"file: {path.relative_to(place.folder)}")
    return found


def objective(place: Place, body: str) -> Path:
    """Write a study whose objective is Python."""
    study = place.study()
    head = (study / "study.toml").read_text("utf-8").partition("[trial]")[0]
    (study / "study.toml").write_text(
        f'{head}[trial]\nobjective = "mine.py:objective"\n[objectives]\ny = "minimize"\n', encoding="utf-8"
    )
    (study / "mine.py").write_text(f"import os, logging, warnings\ndef objective(trial, work):\n{body}\n")
    return study


def test_the_watcher_can_fail(place: Place, tmp_path: Path) -> None:
    """A key in a file, in a command line or in a node's home is found in each of its forms."""
    (tmp_path / "nodes").mkdir()
    for form in forms(KEY):
        (tmp_path / "nodes" / "log").write_bytes(b"x" + form)
        (place.folder / "log").write_bytes(b"x" + form)
        with Watcher(place, tmp_path / "nodes") as watcher:
            looked = threading.Event()
            while not watcher.looks:
                looked.wait(0.01)
        assert leaks(place, watcher) == ["node: log", "file: log"]


@pytest.mark.parametrize(
    ("args", "study", "code"),
    [
        (["--verbose"], {}, 0),
        (["--check", "--verbose"], {}, 0),
        (["--check", "--json"], {}, 0),
        (["--json", "--quiet"], {}, 0),
        (["--verbose", "--set", "study.max_consecutive_failures=2"], {"command": f"{ENVIRONMENT}; id; exit 3"}, 1),
        (["--verbose", "--set", "cluster.core_type='none'"], {}, 2),
        (["--verbose", "--set", "cluster.project='none'"], {}, 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_study_shows_neither_key_nor_secret(
    args: list[str], study: dict[str, Any], code: int, place: Place, rescale: LocalRescale
) -> None:
    """Whatever a run says or keeps, --verbose and failures included, holds no secret (row U4)."""
    with Watcher(place, rescale.root) as watcher:
        driver = place.run(place.study(**study), "--profile", "lab", *args, code=code)
        learn_from(rescale, watcher)
    assert watcher.looks
    assert leaks(place, watcher, driver) == []


def test_the_environment_is_a_source_like_any_other(place: Place, rescale: LocalRescale) -> None:
    """RESCALE_API_KEY neither reaches a node's environment nor a trial's; the profile is then called env."""
    study = place.study(f"{ENVIRONMENT} >env.txt; cp parameters.json result.json")
    with Watcher(place, rescale.root) as watcher:
        driver = place.run(
            study,
            "--profile",
            "env",
            "--verbose",
            "--set",
            'trial.outputs=["env.txt"]',
            RESCALE_API_KEY=KEY,
            RESCALE_API_BASE_URL=rescale.base_url,
        )
        learn_from(rescale, watcher)
    assert list(place.runs.rglob("env.txt"))
    assert leaks(place, watcher, driver) == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("    raise ValueError('is ' + os.environ['RESCALE_API_KEY'])", 1),
        ("    raise type('E', (Exception,), {'__str__': lambda _: os.environ['RESCALE_API_KEY']})()", 1),
        (
            (
                "    for name in ('mine', 'persistent_runner.x', 'optuna', 'paramiko', 'urllib3'):\n"
                "        logging.getLogger(name).error('key %s', os.environ['RESCALE_API_KEY'])\n"
                "    warnings.warn(os.environ['RESCALE_API_KEY'])\n"
                "    return 1.0"
            ),
            0,
        ),
        (
            (
                "    from persistent_runner import TrialFailed\n"
                "    raise TrialFailed('of ' + os.environ['RESCALE_API_KEY'])"
            ),
            1,
        ),
    ],
    ids=["raises", "odd exception", "logs and warns", "fails its trial"],
)
def test_an_objective_that_quotes_the_key(body: str, code: int, place: Place, rescale: LocalRescale) -> None:
    """A user's own code may read the environment; its logs, warnings and tracebacks are shown without the key."""
    study = objective(place, body)
    with Watcher(place, rescale.root) as watcher:
        driver = place.run(
            study,
            "--profile",
            "env",
            "--verbose",
            "--set",
            "study.max_consecutive_failures=2",
            code=code,
            RESCALE_API_KEY=KEY,
            RESCALE_API_BASE_URL=rescale.base_url,
        )
        learn_from(rescale, watcher)
    assert "[hidden]" in driver.said
    assert leaks(place, watcher, driver) == []


def test_a_refused_key_is_not_quoted(place: Place, rescale: LocalRescale) -> None:
    """401 names host and source; the wrong key is as secret as a right one (row A1)."""
    write_account(place, rescale.base_url, key=OTHER_KEY)
    with Watcher(place, rescale.root) as watcher:
        drivers = [
            place.run(place.study(), "--profile", "lab", *more, code=3) for more in (["--verbose"], ["--check"], [])
        ]
    for driver in drivers:
        assert "refused the API key" in driver.said
        assert "apiconfig" in driver.said
    assert leaks(place, watcher, *drivers) == []


@pytest.mark.parametrize(
    "said",
    [
        Said(200, f"<html>{KEY}</html>", {"Content-Type": "text/html"}),
        Said(403, {"detail": f"Authorization: Token {KEY} has no right"}),
        Said(400, {"header": [{"value": [KEY, base64.b64encode(KEY.encode()).decode()]}]}),
        Said(302, "", {"Location": f"https://elsewhere.example/{KEY}?key={KEY}"}),
        Said(200, {"results": [], "next": f"https://elsewhere.example/?key={KEY}", "email": [KEY]}),
    ],
    ids=["web page", "echo", "nested echo", "redirect", "other shape"],
)
def test_a_server_that_echoes_the_key(said: Said, place: Place, script: Script, tmp_path: Path) -> None:
    """What a server says is shown, and the key in it is not, wherever it stands (rows A13, A14, A15)."""
    for path in ("users/me/", "coretypes/", "analyses/", "billing/computeprices/", "users/me/projects/"):
        script.says(f"GET {path}", said)
    write_account(place, script.url)
    (tmp_path / "nodes").mkdir()
    with Watcher(place, tmp_path / "nodes") as watcher:
        driver = place.run(place.study(), "--profile", "lab", "--verbose", code=3)
    assert "127.0.0.1" in driver.said
    assert leaks(place, watcher, driver) == []


@pytest.mark.parametrize(
    "text",
    [
        f"apikey = {KEY}\n",
        f"[lab]\n{KEY}\n",
        f"[lab]\napibaseurl = https://x.example\napikey = '{KEY}'\n",
        f"[lab]\napibaseurl = https://x.example\napikey = {KEY} {KEY}\n",
        f"[lab]\napibaseurl = http://x.example\napikey = {KEY}\n",
        f"[lab]\napibaseurl = https://{KEY}@x.example\napikey = {KEY}\n",
        f"[lab]\napibaseurl = https://x.example/?key={KEY}\napikey = {KEY}\n",
        f"[lab]\napikey = {KEY}\napikey = {KEY}\n",
        f"[other]\napikey = {KEY}\n",
        f"[lab]\nkey = {KEY}\n",
    ],
    ids=range(10),
)
def test_a_broken_apiconfig_is_named_and_not_quoted(text: str, place: Place) -> None:
    """The parser's own message quotes the line, which may be the key."""
    write_account(place, "").write_text(text)
    drivers = [place.run(place.study(), "--profile", "lab", *more, code=2) for more in (["--verbose"], ["--check"])]
    for driver in drivers:
        assert not holds((driver.said + driver.out).encode(), [KEY])


def test_a_proxy_s_password_is_not_quoted(place: Place, rescale: LocalRescale) -> None:
    """PERSISTENT_RUNNER_SSH_PROXY may carry credentials: right or wrong, they are in no message."""
    wrong = place.run(place.study(), "--check", code=2, PERSISTENT_RUNNER_SSH_PROXY=f"https://me:{KEY}@127.0.0.1:9")
    assert "PERSISTENT_RUNNER_SSH_PROXY" in wrong.said
    with Watcher(place, rescale.root) as watcher:
        right = place.run(
            place.study(), "--check", "--verbose", PERSISTENT_RUNNER_SSH_PROXY=f"http://me:{KEY}@127.0.0.1:9"
        )
    assert leaks(place, watcher, wrong, right) == []


def test_no_verb_shows_a_secret(place: Place, rescale: LocalRescale) -> None:
    """Every verb that reads an account, whatever it ends with; `platform` and `login` have the key by their purpose."""
    from persistent_runner.cli import main

    place.run(place.study(), "--profile", "lab")
    drivers = []
    with Watcher(place, rescale.root) as watcher:
        for verb, command in main.commands.items():
            options = {option for parameter in command.params for option in parameter.opts}
            if verb not in {"platform", "login"} and "--profile" in options:
                drivers.append(place.start(verb, "--profile", "lab", program="persistent-runner"))
                drivers[-1].end()
        learn_from(rescale, watcher)
    assert leaks(place, watcher, *drivers) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_what_is_written_for_the_user_is_readable_for_the_user_alone(place: Place, rescale: LocalRescale) -> None:
    """State directory, ledger and what lies beside it: 0700 and 0600, under the widest umask."""
    study = objective(place, "    os.umask(0)\n    return 1.0")
    before = os.umask(0)
    try:
        place.run(study, "--profile", "lab")
    finally:
        os.umask(before)
    ledger = place.state / "ledger"
    assert list(ledger.iterdir())
    open_to_others = [
        str(path.relative_to(place.state_home))
        for path in (place.state, *place.state.rglob("*"))
        if stat.S_IMODE(path.stat().st_mode) & 0o077 and path.suffix != ".lock"
    ]
    assert open_to_others == []
    for path in ledger.glob("*.json"):
        assert json.loads(path.read_text())
