"""`persistent-runner doctor` as a user meets it, each remedy provoked; odd replies come from a server with a script."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import paramiko
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from persistent_runner.account import write_profile
from persistent_runner.draft import Draft
from persistent_runner.findings import Finding, Findings
from persistent_runner.lease.platform import LeaseRequest
from persistent_runner.local_platform import catalogue
from persistent_runner.local_platform.local import LocalRescale
from persistent_runner.login import make_ssh_key
from persistent_runner.remote.ssh import public_line
from persistent_runner.rescale.client import RescalePlatform
from tests.driving import DEADLINE, HOSTILE, Driver, Place, until
from tests.rescale.scripted import KEY, QUICK, Said, Script, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def rescale(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRescale]:
    """Run the local platform, served apart as an account of one's own would be."""
    with LocalRescale(tmp_path_factory.mktemp("platform")) as platform:
        yield platform


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A machine of one's own in a hostile folder, with an SSH key; nothing of it may run on afterwards."""
    found = Place(tmp_path / HOSTILE)
    make_ssh_key(found.home / ".ssh" / "id_ed25519")
    yield found
    until(lambda: not found.processes(), f"the end of {found.processes()}")


@pytest.fixture
def lab(place: Place, rescale: LocalRescale) -> Place:
    """Name the platform in the profile `lab`."""
    write_profile("lab", rescale.base_url, rescale.api_key, home=place.home)
    return place


@pytest.fixture
def script() -> Iterator[Script]:
    """Serve an account whose jobs follow a script."""
    script = Script()
    server = serve(script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    script.says("GET users/me/", Said(body=catalogue.USER))
    script.says("GET coretypes/", Said(body=catalogue.CORE_TYPES))
    script.says("GET analyses/", Said(body=catalogue.ANALYSES))
    script.says("GET billing/computeprices/", Said(body=catalogue.COMPUTE_PRICES))
    script.says("DELETE jobs/aBcDe/", Said(204))
    script.says("GET jobs/", Said(body=[]))
    yield script
    server.shutdown()
    server.server_close()
    thread.join()


def doctor(place: Place, *args: object, code: int = 0, **environment: str) -> Driver:
    """Run `persistent-runner doctor` to its end; no secret and no traceback is ever said."""
    driver = place.start("doctor", *args, program="persistent-runner", **environment)
    assert driver.end() == code, driver.out + driver.said
    assert "Traceback" not in driver.said
    assert KEY not in driver.out + driver.said
    return driver


def findings(driver: Driver) -> dict[str, tuple[str, str, str]]:
    """Return verdict, what was seen, and remedy by name, from --json."""
    rows = json.loads(driver.out)["findings"]
    return {row["name"]: (row["verdict"], row["seen"], row["remedy"]) for row in rows}


def jobs_of(rescale: LocalRescale) -> list[str]:
    """Return the names of all jobs that the platform has."""
    platform = RescalePlatform(rescale.base_url, rescale.api_key)
    try:
        return [row.name for row in platform.jobs("persistent_runner")]
    finally:
        platform.close()


def our_line(place: Place) -> str:
    return public_line(paramiko.PKey.from_path(place.home / ".ssh" / "id_ed25519"))


# -- all is well


def test_the_page_of_a_newcomer(place) -> None:
    """Without an account all is well with the local platform: aligned lines on stdout, nothing on stderr."""
    driver = doctor(place)

    assert driver.said == ""
    lines = driver.out.splitlines()
    assert [line[:20].split() for line in lines] == [
        ["ok", "settings"],
        ["ok", "platform"],
        ["ok", "cheapest"],
        ["ok", "draft", "job"],
        ["ok", "public", "key"],
        ["ok", "CIDR", "rule"],
        ["ok", "clock"],
    ]
    assert {line[20] for line in lines} == {" "}
    assert "1 core of marble on 1 node, on_demand, for at most 1h; 0.08 an hour, so at most 0.08" in driver.out


def test_a_study_is_looked_at_with_what_it_asks_for(lab, rescale) -> None:
    """Cluster, price, software and project are those of study.toml; the draft is deleted and was never submitted."""
    study = lab.study()
    toml = (study / "study.toml").read_text("utf-8")
    (study / "study.toml").write_text(toml.replace("[cluster]", '[cluster]\nproject = "Research"'), encoding="utf-8")
    seen = findings(doctor(lab, study, "--profile", "lab", "--json"))

    assert {verdict for verdict, _, _ in seen.values()} == {"ok"}
    assert list(seen) == [
        *("settings", "profile", "API key", "SSH key", "study", "templates", "cluster", "price", "software"),
        *("project", "draft job", "public key", "CIDR rule", "clock"),
    ]
    assert seen["profile"][1].endswith(f"apiconfig, {rescale.base_url}")
    assert seen["API key"][1] == "accepted; it is local@localhost's"
    assert seen["SSH key"][1] == f"{lab.home}/.ssh/id_ed25519, ssh-ed25519"
    assert seen["cluster"][1] == "2 cores of emerald on 1 node, on_demand, for at most 1h"
    assert seen["price"][1].startswith("0.35 an hour, so at most 0.35")
    assert seen["CIDR rule"][1] == "0.0.0.0/0: every address may connect"
    assert jobs_of(rescale) == []


# -- each fault has its remedy


def test_an_api_key_that_is_refused(place, rescale) -> None:
    """Exit 3, whose key it was, how to enter another; what needs no account is looked at all the same."""
    write_profile("lab", rescale.base_url, KEY, home=place.home)
    seen = findings(doctor(place, place.study(), "--profile", "lab", "--json", code=3))

    verdict, said, remedy = seen["API key"]
    assert verdict == "failed"
    assert "refused the API key" in said
    assert "profile [lab]" in said
    assert "persistent-runner login --profile lab" in remedy
    assert [seen[name][0] for name in ("SSH key", "study", "templates", "cluster")] == ["ok", "ok", "ok", "skipped"]
    assert "draft job" not in seen


def test_an_api_key_of_the_environment_that_is_refused(place, rescale) -> None:
    """The variables are named; no profile of that name can be entered."""
    account = {"RESCALE_API_KEY": KEY, "RESCALE_API_BASE_URL": rescale.base_url}
    driver = doctor(place, "--profile", "env", code=3, **account)
    assert "It came from RESCALE_API_KEY and RESCALE_API_BASE_URL" in driver.out
    assert "login" not in driver.out


def test_a_profile_that_is_not_there(place) -> None:
    """Exit 2; the SSH key is looked at all the same."""
    driver = doctor(place, "--profile", "lab", code=2)
    assert "failed   profile     There is no profile [lab]: there is no file" in driver.out
    assert "ok       SSH key" in driver.out


def test_a_setting_that_is_none(place) -> None:
    """Nothing else can be looked at but the study."""
    driver = doctor(place, place.study(), "--profile", "lab", code=2, PERSISTENT_RUNNER_POLL="soon")
    assert "PERSISTENT_RUNNER_POLL" in driver.out
    assert "ok       study" in driver.out
    assert "skipped  cluster" in driver.out


def test_without_an_ssh_key_the_way_to_one_is_said(lab, rescale) -> None:
    """Exit 2; the draft is made all the same, for the rule of addresses."""
    (lab.home / ".ssh" / "id_ed25519").unlink()
    seen = findings(doctor(lab, "--profile", "lab", "--json", code=2))

    assert seen["SSH key"][0] == "failed"
    assert "persistent-runner login" in seen["SSH key"][2]
    assert seen["public key"][0] == "warning"
    assert seen["CIDR rule"][0] == "ok"
    assert jobs_of(rescale) == []


@pytest.mark.parametrize("kind", ["pkcs8", "putty", "passphrase", "public", "garbage"])
def test_ssh_keys_that_cannot_be_used(lab, kind) -> None:
    """The line that mends it, for each format that people have (row S3)."""
    path = lab.folder / "a key"
    if kind == "pkcs8":
        path.write_bytes(
            generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
    elif kind == "passphrase":
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "a passphrase", "-f", str(path)], check=True)
    else:
        head = {"putty": "PuTTY-User-Key-File-3: ssh-ed25519\n", "public": our_line(lab), "garbage": "x\n"}
        path.write_text(head[kind])
    path.chmod(0o600)
    remedies = {
        "pkcs8": "ssh-keygen -p -f",
        "putty": "puttygen",
        "passphrase": "ssh-keygen -t ed25519",
        "public": "Name the private one",
        "garbage": "ssh-keygen -t ed25519",
    }
    seen = findings(doctor(lab, "--profile", "lab", "--json", code=2, PERSISTENT_RUNNER_SSH_KEY=str(path)))
    assert seen["SSH key"][0] == "failed"
    assert remedies[kind] in seen["SSH key"][2]
    assert str(path) in seen["SSH key"][1]


def test_files_that_others_can_read(lab) -> None:
    """A warning with the line that mends it, and no failure."""
    config = lab.home / ".config/rescale/apiconfig"
    config.chmod(0o644)
    key = lab.home / ".ssh" / "id_ed25519"
    key.chmod(0o640)
    seen = findings(doctor(lab, "--profile", "lab", "--json"))

    assert seen["profile"][0] == "warning"
    assert f"chmod 600 '{config}'" in seen["profile"][1]
    assert seen["SSH key"] == ("warning", f"{key} can be read by others", f"Type: chmod 600 '{key}'")


def test_every_fault_of_a_cluster_is_named_at_once(lab, rescale) -> None:
    """A wrong core type does not hide a wrong project, tile and walltime; the rest is tried with the cheapest."""
    study = lab.study(core_type="emerld")
    toml = (study / "study.toml").read_text("utf-8").replace('walltime = "1h"', 'walltime = "900h"')
    more = '[cluster]\nproject = "Reserch"\nsoftware = [{ analysis = "calculx", version = "0" }]'
    (study / "study.toml").write_text(toml.replace("[cluster]", more), encoding="utf-8")
    seen = findings(doctor(lab, study, "--profile", "lab", "--json", code=2))

    faults = {name: said for name, (verdict, said, _) in seen.items() if verdict == "failed"}
    assert sorted(faults) == ["cluster", "project", "software", "walltime"]
    assert '"emerald"' in faults["cluster"]
    assert '"Research"' in faults["project"]
    assert '"calculix"' in faults["software"]
    assert "900 h" in faults["walltime"]
    assert seen["draft job"][0] == "ok"
    assert jobs_of(rescale) == []


def test_cores_that_are_not_offered(lab) -> None:
    """The nearest counts stand below the fault, aligned."""
    driver = doctor(lab, lab.study(cores=3), "--profile", "lab", code=2)
    assert (
        "failed   cluster     study.toml: [cluster] cores (line 9): The core type emerald does not offer 3 cores.\n"
        "                     -> The nearest counts are 2 or 4; it offers 1, 2, 4, 8, 18, 36 and multiples of 36.\n"
    ) in driver.out


@pytest.mark.parametrize(
    ("deck", "name", "said"), [("@{ y }@", "study", 'no parameter "y"'), ("@{ x | nonsense }@", "study", "nonsense")]
)
def test_a_template_that_is_wrong(lab, deck, name, said) -> None:
    """File and word are named; the account is looked at all the same (row U2)."""
    study = lab.study()
    (study / "case").mkdir()
    (study / "case" / "deck.inp.j2").write_text(deck)
    toml = (study / "study.toml").read_text("utf-8").replace("[trial]", '[trial]\ninputs = ["case/"]')
    (study / "study.toml").write_text(toml, encoding="utf-8")
    seen = findings(doctor(lab, study, "--profile", "lab", "--json", code=2))

    assert seen[name][0] == "failed"
    assert "deck.inp.j2" in seen[name][1]
    assert said in seen[name][1]
    assert seen["draft job"][0] == "ok"


def test_a_proxy_is_shown_without_its_password(lab) -> None:
    """Where SSH goes through, but not the credentials."""
    driver = doctor(lab, "--profile", "lab", PERSISTENT_RUNNER_SSH_PROXY="http://me:hunter2@proxy.example.com:3128")
    assert "SSH connections go through proxy.example.com:3128" in driver.out
    assert "hunter2" not in driver.out + driver.said


# -- what the saved job shows


def draft(script: Script, tmp_path: Path, **saved: Any) -> tuple[Findings, str]:
    """Look at a draft that the platform of the script saves with these fields; return what was seen, and our key."""
    make_ssh_key(tmp_path / "key")
    key = paramiko.PKey.from_path(tmp_path / "key")
    base_url = saved.pop("base_url", script.url)
    proxied = saved.pop("proxied", False)
    job = {
        "id": "aBcDe",
        "isLowPriority": False,
        "billingPriorityValue": "INSTANT",
        "publicKey": public_line(key) + " me@laptop",
        "cidrRule": "0.0.0.0/0",
        "jobanalyses": [
            {
                "analysis": {"code": "user_included", "version": "0"},
                "command": "sleep inf",
                "hardware": {"coreType": {"code": "marble"}, "coresPerSlot": 1, "slots": 1, "walltime": 1},
                "envVars": {},
            }
        ],
    } | saved
    script.replies.setdefault("POST /api/v2/jobs/", [Said(201, {"id": "aBcDe"})])
    script.replies.setdefault("GET /api/v2/jobs/aBcDe/", [Said(body=job)])
    request = LeaseRequest(core_type="marble", cores=1, walltime=timedelta(hours=1), name="n", command="c")
    platform = RescalePlatform(script.url, KEY, backoff=QUICK)
    with Findings() as seen:
        Draft(seen, platform, base_url, key, proxied=proxied).look(request)
    platform.close()
    return seen, public_line(key)


def finding(seen: Findings, name: str) -> Finding:
    return next(found for found in seen.all if found.name == name)


def test_a_key_that_is_in_the_profile_is_let_in(script, tmp_path) -> None:
    """A comment behind the key does not matter; the draft is deleted and never submitted."""
    seen, _ = draft(script, tmp_path)

    assert [(found.name, found.verdict) for found in seen.all] == [
        ("draft job", "ok"),
        ("public key", "ok"),
        ("CIDR rule", "ok"),
    ]
    assert script.calls("DELETE") == ["DELETE /api/v2/jobs/aBcDe/"]
    assert script.calls("POST") == ["POST /api/v2/jobs/"]
    sent = next(json.loads(body) for call, _, body in script.asked if call == "POST /api/v2/jobs/")
    assert sent["name"].startswith("persistent_runner-doctor-")


def test_another_key_in_the_profile_is_shown_beside_the_line_to_paste(script, tmp_path) -> None:
    """The account's key is not ours: exit 3 before any money, with the exact line and where it goes (row S2)."""
    seen, ours = draft(script, tmp_path, publicKey="ssh-rsa AAAAB3theirs them@there")

    found = finding(seen, "public key")
    assert found.verdict == "failed"
    assert seen.exit_code == 3
    assert "ssh-rsa AAAAB3theirs" in found.seen
    assert list(found.lines())[-1] == f"{'':20}    {ours}"
    assert "User Profile > Job Settings > SSH" in found.remedy
    assert finding(seen, "draft job").verdict == "ok"


def test_what_the_platform_does_not_show_is_never_ok(script, tmp_path) -> None:
    """Neither key nor rule echoed: warnings that say what to look at."""
    seen, ours = draft(script, tmp_path, publicKey=None, cidrRule=None)

    assert [finding(seen, name).verdict for name in ("public key", "CIDR rule")] == ["warning", "warning"]
    assert ours in finding(seen, "public key").remedy
    assert "doctor --connect" in finding(seen, "public key").remedy
    assert seen.exit_code == 0


@pytest.mark.parametrize(
    ("rule", "base_url", "proxied", "verdict", "said"),
    [
        ("10.0.0.0/8", None, False, "failed", "only 10.0.0.0/8 may connect, and this machine is 127.0.0.1"),
        ("10.0.0.0/8, 127.0.0.0/8", None, False, "ok", "this machine may connect"),
        ("0.0.0.0/0", "https://platform.rescale.com", False, "ok", "every address"),
        ("198.51.100.7/32", "https://platform.rescale.com", False, "warning", "this machine's public address"),
        ("198.51.100.7/32", "https://platform.rescale.com", True, "warning", "the proxy's public address"),
        ("My IP", "https://platform.rescale.com", False, "warning", "My IP"),
    ],
)
def test_the_rule_of_addresses(script, tmp_path, rule, base_url, proxied, verdict, said) -> None:
    """Open to all, closed to us, or not to be known from here: the last is a warning that says whose address counts."""
    seen, _ = draft(script, tmp_path, cidrRule=rule, base_url=base_url or script.url, proxied=proxied)

    found = finding(seen, "CIDR rule")
    assert (found.verdict, seen.exit_code) == (verdict, 3 if verdict == "failed" else 0)
    assert said in found.seen


def test_a_job_that_is_saved_otherwise_than_asked(script, tmp_path) -> None:
    """It would not be started: said now."""
    seen, _ = draft(script, tmp_path, isLowPriority=True)
    assert finding(seen, "draft job").verdict == "failed"
    assert "isLowPriority" in finding(seen, "draft job").seen
    assert script.calls("DELETE") == ["DELETE /api/v2/jobs/aBcDe/"]


@pytest.mark.parametrize("fault", ["lost", "refused"])
def test_a_draft_whose_answer_was_lost_is_deleted_too(script, tmp_path, fault) -> None:
    """It is found by its name, whatever went wrong after it was saved."""
    named: list[dict[str, str]] = []
    script.says("GET jobs/", Said(body=named))
    if fault == "lost":
        script.says("POST jobs/", Said(201, {"id": "aBcDe"}, cut=True))
    else:
        script.says("GET jobs/aBcDe/", Said(403, {"detail": "no"}))
    posted = script.reply

    def reply(call: str) -> Said:
        if call.startswith("POST"):
            named.append({"id": "aBcDe", "name": json.loads(script.asked[-1][2])["name"]})
        return posted(call)

    script.reply = reply  # type: ignore[method-assign]
    seen, _ = draft(script, tmp_path)

    assert [(found.name, found.verdict) for found in seen.all] == [("draft job", "failed")]
    assert script.calls("DELETE") == ["DELETE /api/v2/jobs/aBcDe/"]


def test_an_interrupt_deletes_the_draft(place, script) -> None:
    """Ctrl-C while the platform is slow: exit 130, and the job that was saved is deleted."""
    script.says("POST jobs/", Said(201, {"id": "aBcDe"}))
    script.says("GET jobs/aBcDe/", Said(body={"id": "aBcDe", "jobanalyses": []}))
    script.says("GET jobs/", Said(body=[], drip=DEADLINE))
    write_profile("odd", script.url, KEY, home=place.home)
    driver = place.start("doctor", "--profile", "odd", program="persistent-runner")
    until(lambda: any("search=" in call for call in script.calls("GET")), "the list of jobs")
    driver.process.send_signal(signal.SIGINT)

    assert driver.end() == 130, driver.said
    assert script.calls("DELETE") == ["DELETE /api/v2/jobs/aBcDe/"]
    assert "Traceback" not in driver.said


def test_a_draft_that_cannot_be_deleted_is_named(script, tmp_path) -> None:
    """Its id, that it costs nothing, and where to delete it."""
    script.says("DELETE jobs/aBcDe/", Said(403, {"detail": "not yours"}))
    seen, _ = draft(script, tmp_path)

    found = finding(seen, "left over")
    assert found.verdict == "warning"
    assert "(aBcDe)" in found.seen
    assert "costs nothing" in found.remedy
    assert seen.exit_code == 0


@pytest.mark.parametrize(("hours", "verdict", "said"), [(2, "warning", "behind"), (-2, "warning", "ahead of")])
def test_a_clock_that_is_wrong(script, tmp_path, hours, verdict, said) -> None:
    """By the time at which the platform says that it saved the draft; nothing depends on it (row A20)."""
    named: list[dict[str, str]] = []
    script.says("GET jobs/", Said(body=named))
    posted = script.reply

    def reply(call: str) -> Said:
        if call.startswith("POST"):
            when = (datetime.now(UTC) + timedelta(hours=hours)).isoformat()
            named.append({"id": "aBcDe", "name": json.loads(script.asked[-1][2])["name"], "dateInserted": when})
        return posted(call)

    script.reply = reply  # type: ignore[method-assign]
    seen, _ = draft(script, tmp_path)
    found = finding(seen, "clock")
    assert found.verdict == verdict
    assert f"{said} the platform's" in found.seen
    assert seen.exit_code == 0


# -- a lease of the cheapest cluster


def test_connect_leases_the_cheapest_and_says_what_it_cost(lab, rescale) -> None:
    """The line before money on stderr; node, times and cost on the page; the cluster is stopped."""
    driver = doctor(lab, "--profile", "lab", "--connect")

    assert "1 core of marble" in driver.said
    assert "is released" in driver.said
    lines = {line[9:20].strip(): line[21:] for line in driver.out.splitlines()}
    assert "@127.0.0.1:" in lines["lease"]
    assert "Python 3." in lines["lease"]
    assert [part.split()[0] for part in lines["time"].split(", ")] == ["start-up", "connect", "command", "release"]
    assert lines["cost"].startswith("less than 0.01, or less than 0.01 where start-up is billed")
    assert rescale.unfinished_jobs == 0


def test_connect_leases_nothing_after_a_failure(lab, rescale) -> None:
    """What is known to fail is not paid for."""
    before = jobs_of(rescale)
    driver = doctor(lab, lab.study(core_type="emerld"), "--profile", "lab", "--connect", code=2)

    assert "skipped  lease       nothing was leased: mend what failed first" in driver.out
    assert jobs_of(rescale) == before


def test_a_draft_whose_answer_was_lost_is_named(script, tmp_path) -> None:
    """It shows up in the list when nobody looks any more: it may be left, and that is said."""
    script.says("POST jobs/", Said(503, ""))
    script.says("GET jobs/", Said(body=[]))
    seen, _ = draft(script, tmp_path)

    found = finding(seen, "left over")
    assert found.verdict == "warning"
    assert "may be left: the answer to its creation was lost" in found.seen


def test_a_draft_that_was_refused_is_not_looked_for(script, tmp_path) -> None:
    """A 403 saved nothing."""
    script.says("POST jobs/", Said(403, {"detail": "no"}))
    script.says("GET jobs/", Said(body=[]))
    seen, _ = draft(script, tmp_path)

    assert "left over" not in [found.name for found in seen.all]
