"""`rescale/client.py`: quotes, saved jobs, states and nodes, against the local platform and against written replies."""

from __future__ import annotations

import json
import secrets
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from persistent_runner.errors import ConfigError, PlatformRefused
from persistent_runner.lease.platform import LeaseRequest, LeaseState, Software
from persistent_runner.rescale.client import RescalePlatform

from .scripted import Said, Script

if TYPE_CHECKING:
    from persistent_runner.local_platform.local import LocalRescale

HOUR = timedelta(hours=1)
USER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZm"


def asking(**changes: Any) -> LeaseRequest:
    return LeaseRequest(
        **{"name": "n", "command": "sleep inf", "core_type": "emerald", "cores": 4, "walltime": HOUR, **changes}
    )


def test_the_catalogue_is_read_whole(local: RescalePlatform) -> None:
    """Who we are, what there is and what it costs; the core types are more than one page of the API."""
    assert "@" in local.me().email
    assert "emerald" in [kind.code for kind in local.core_types()]
    assert len(local.core_types()) > 10
    assert {price.core_type for price in local.prices()} >= {"emerald", "granite"}
    assert "user_included" in [tile.code for tile in local.analyses()]
    assert local.projects()


def test_a_quote_is_of_the_whole_cluster(local: RescalePlatform) -> None:
    """Price per hour is price per core and hour times cores; cores above one node's make several nodes."""
    kind = next(kind for kind in local.core_types() if kind.code == "emerald")
    assert kind.price is not None
    one = local.quote(asking(cores=4))
    assert (one.nodes, one.cores_per_node) == (1, 4)
    assert one.price_per_hour == pytest.approx(4 * kind.price)
    two = local.quote(asking(cores=2 * kind.cores[-1]))
    assert (two.nodes, two.cores_per_node) == (2, kind.cores[-1])
    economy = local.quote(asking(priority="economy"))
    assert kind.low_priority_price is not None
    assert economy.price_per_hour == pytest.approx(4 * kind.low_priority_price)
    assert "on-demand" in economy.notes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"core_type": "emrald"}, r"no core type 'emrald'.*did you mean \"emerald\""),
        ({"cores": 3}, "nearest counts are 2 or 4"),
        ({"cores": 50}, "nearest counts are 36 or 72"),
        ({"core_type": "granite", "cores": 1}, "nearest counts are 2;"),
        ({"cores": 0}, "0 cores cannot be leased"),
        ({"project": "Reserch"}, "no project 'Reserch'.*Research"),
        (
            {"software": (Software(analysis="ansys_fluen", version="2019r1"),)},
            "no software 'ansys_fluen'.*ansys_fluent",
        ),
        ({"software": (Software(analysis="ansys_fluent", version="2019r2"),)}, "no version of ansys_fluent.*2019r1"),
        ({"walltime": 1000 * HOUR}, r"may take \d+ h"),
    ],
)
def test_what_the_platform_does_not_have_is_named_before_money_is_spent(
    changes: dict[str, Any], message: str, local: RescalePlatform
) -> None:
    """A typing mistake gets the nearest name, a core count the nearest counts; run-study ends with 2."""
    with pytest.raises(ConfigError, match=f"(?s){message}") as caught:
        local.quote(asking(**changes))
    assert caught.value.exit_code == 2


def catalogue(script: Script, kind: dict[str, Any], prices: list[dict[str, Any]]) -> None:
    script.says("GET coretypes/", Said(body=[kind]))
    script.says("GET billing/computeprices/", Said(body=prices))
    script.says("GET users/me/", Said(body={"email": "a@b", "company": {"x": 1}, "maxJobHours": None}))
    tile = {"code": "user_included", "versions": [{"versionCode": "0", "allowedCoreTypes": None}], "pricing": None}
    script.says("GET analyses/", Said(body=[tile]))


def test_the_price_of_the_day_wins_over_the_list_price(script: Script, client: RescalePlatform) -> None:
    """An active Linux row of the right plan is taken, else the core type's own price, else none; nulls are no harm."""
    rows = [
        {"coreType": "x", "planType": "a-on-demand", "os": "windows", "isActive": True, "value": {"amount": "9"}},
        {"coreType": "x", "planType": "a-on-demand", "os": "linux", "isActive": False, "value": {"amount": "8"}},
        {"coreType": "x", "planType": "a-on-demand", "os": "linux", "isActive": True, "value": {"amount": "0.5"}},
    ]
    kind = {"code": "x", "cores": [4], "price": 1.0, "lowPriorityPrice": None}
    catalogue(script, kind, rows)
    assert client.quote(asking(core_type="x", priority="economy")).price_per_hour == pytest.approx(2.0)
    assert client.quote(asking(core_type="x")).price_per_hour == pytest.approx(4.0)
    catalogue(script, kind, [])
    none = client.quote(asking(core_type="x", priority="economy"))
    assert none.price_per_hour is None
    assert "names no economy price" in none.notes[0]


def test_a_deprecated_core_type_is_refused(script: Script, client: RescalePlatform) -> None:
    """The platform would take no job on it."""
    catalogue(script, {"code": "x", "cores": [4], "isDeprecated": True}, [])
    with pytest.raises(ConfigError, match="deprecated"):
        client.quote(asking(core_type="x"))


def test_a_saved_job_is_read_back_and_is_what_was_asked(local: RescalePlatform) -> None:
    """Everything that matters travels to the platform and back: nothing differs, and nothing has started."""
    saved = local.create(
        asking(
            name="read-back",
            project="Research",
            software=(Software(analysis="user_included", version="0"), Software(analysis="calculix", version="2.20")),
            env={"ANSYSLMD_LICENSE_FILE": "1055@a b'\"$(id)"},
            public_key=f"{USER_KEY} me@here",
            walltime=timedelta(minutes=61),
            priority="economy",
        )
    )
    assert saved.differs == ()
    assert saved.ssh_open_to
    assert local.state(saved.job_id) == LeaseState("Saved")
    local.delete(saved.job_id)
    local.delete(saved.job_id)


def job_of(script: Script) -> dict[str, Any]:
    """Return what the client posted, as the platform would save it."""
    return {"id": "AbCdEf", **json.loads(script.asked[0][2])}


def test_the_request_has_the_platforms_shape(script: Script, client: RescalePlatform) -> None:
    """Field names, whole hours, both words for the priority, one driving tile and idle others, env on each."""
    script.says("POST jobs/", Said(201, {"id": "AbCdEf"}))
    script.says("GET jobs/AbCdEf/", Said(body={"id": "AbCdEf"}))
    tiles = (Software(analysis="a", version="1"), Software(analysis="b", version="2"))
    saved = client.create(asking(software=tiles, env={"A": "1"}, walltime=timedelta(minutes=61), public_key=USER_KEY))
    posted = job_of(script)
    assert [analysis["command"] for analysis in posted["jobanalyses"]] == ["sleep inf", "# "]
    assert [analysis["envVars"] for analysis in posted["jobanalyses"]] == [{"A": "1"}] * 2
    hardware = {"coreType": "emerald", "coresPerSlot": 4, "slots": 1, "walltime": 2, "type": "compute"}
    assert [analysis["hardware"] for analysis in posted["jobanalyses"]] == [hardware] * 2
    assert (posted["isLowPriority"], posted["billingPriorityValue"]) == (False, "INSTANT")
    assert posted["publicKey"] == USER_KEY
    assert "projectId" not in posted
    assert saved.not_echoed == ("isLowPriority", "billingPriorityValue", "publicKey", "cidrRule", "jobanalyses")


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("command", "sleep 1", "command"),
        ("hardware.coreType", {"code": "onyx"}, "coreType"),
        ("hardware.coresPerSlot", 8, "coresPerSlot"),
        ("hardware.slots", 2, "slots"),
        ("hardware.walltime", 48, "walltime"),
        ("analysis.code", "b", "code"),
        ("analysis.version", "9", "version"),
        ("envVars", {"SECRET": "other"}, "envVars"),
        ("envVars", {"SECRET": "canary", "PERSISTENT_RUNNER_PROOF": "0"}, "envVars"),
        ("isLowPriority", True, "isLowPriority"),
        ("billingPriorityValue", "ON_DEMAND", "billingPriorityValue"),
        ("publicKey", "ssh-ed25519 AAAAother", "publicKey"),
        ("projectId", "other", "projectId"),
        ("jobanalyses", [], None),
    ],
)
def test_each_difference_of_the_saved_job_is_found(
    path: str, value: Any, field: str | None, script: Script, client: RescalePlatform, impatient: RescalePlatform
) -> None:
    """Whatever could cost money or run something else is compared; values of env stay out of the message."""
    script.says("GET users/me/projects/", Said(body=[{"id": "P", "name": "Wing"}]))
    script.says("POST jobs/", Said(201, {"id": "AbCdEf"}))
    script.says("GET jobs/AbCdEf/", Said(404))
    request = asking(
        project="Wing", env={"SECRET": "canary"}, public_key=f"{USER_KEY} me@here", proof="canary" + "f" * 58
    )
    with pytest.raises(PlatformRefused):
        impatient.create(request)
    script.asked = [entry for entry in script.asked if entry[0].startswith("POST")]
    saved = {**job_of(script), "cidrRule": "0.0.0.0/0", "publicKey": f"{USER_KEY} another comment"}
    script.says("GET jobs/AbCdEf/", Said(body=saved))
    assert client.create(request).differs == ()
    *parents, last = path.split(".")
    place = saved if path in saved else saved["jobanalyses"][0]
    for parent in parents:
        place = place[parent]
    place[last] = value
    script.says("GET jobs/AbCdEf/", Said(body=saved))
    result = client.create(request)
    if field is None:
        assert result.not_echoed == ("jobanalyses",)
        return
    assert len(result.differs) == 1
    assert field in result.differs[0]
    assert "canary" not in result.differs[0]


def test_a_core_type_that_comes_back_as_an_object_is_the_same(
    script: Script, client: RescalePlatform, impatient: RescalePlatform
) -> None:
    """Newer replies have `{code, ...}` where the request had a string."""
    script.says("POST jobs/", Said(201, {"id": "AbCdEf"}))
    script.says("GET jobs/AbCdEf/", Said(404))
    with pytest.raises(PlatformRefused):
        impatient.create(asking())
    saved = job_of(script)
    saved["jobanalyses"][0]["hardware"]["coreType"] = {"code": "emerald", "io": 2}
    saved["jobanalyses"][0]["envVars"] = None
    script.says("GET jobs/AbCdEf/", Said(body=saved))
    assert client.create(asking()).differs == ()


def at(second: int, status: str, reason: str | None = None, *, form: str = "+00:00") -> dict[str, Any]:
    return {"status": status, "statusDate": f"2026-04-03T03:45:{second:02d}.683875{form}", "statusReason": reason}


def state_of(script: Script, client: RescalePlatform, jobs: list[Any], clusters: list[Any] | None = None) -> LeaseState:
    script.says("GET jobs/x/statuses/", Said(body=jobs))
    missing = Said(404, {"detail": "Not found."})
    script.says("GET jobs/x/cluster_statuses/", missing if clusters is None else Said(body=clusters))
    return client.state("x")


def test_the_newest_status_decides(script: Script, client: RescalePlatform) -> None:
    """By date in either form, then by the server's order; the list need not be sorted."""
    shuffled = [at(3, "Queued"), at(9, "Executing", form="Z"), at(1, "Pending")]
    executing = LeaseState("Executing", submitted=True, booting=True, executing=True)
    assert state_of(script, client, shuffled) == executing
    same = [at(9, "Validated"), at(9, "Started")]
    assert state_of(script, client, same).status == "Validated"
    undated = [{"status": "Queued"}, {"status": "Pending", "statusDate": None}]
    assert state_of(script, client, undated).status == "Queued"


def test_a_terminal_status_wins_over_any_date(script: Script, client: RescalePlatform) -> None:
    """A clock that went back does not bring a job to life."""
    statuses = [at(9, "Executing"), at(5, "Completed", "Could not allocate"), at(1, "Pending")]
    state = state_of(script, client, statuses, [at(9, "Started")])
    assert (state.ended, state.executing, state.stopped) == (True, False, False)
    assert state.reason == "Could not allocate"


def test_an_unknown_status_is_shown_and_decides_nothing(script: Script, client: RescalePlatform) -> None:
    """The platform may add a status any day; it is neither success nor end."""
    assert state_of(script, client, [at(9, "Hibernating")]) == LeaseState("Hibernating", submitted=True)


def test_the_reason_is_that_of_the_stop(script: Script, client: RescalePlatform) -> None:
    """`Completed` has no word of its own where a stop or a failure came before."""
    failed = [at(9, "Completed"), at(8, "Stopping", "A run failed"), at(7, "Executing")]
    state = state_of(script, client, failed, [at(9, "Stopping"), at(1, "Not Started")])
    assert (state.reason, state.status) == ("A run failed", "Completed, cluster Stopping")
    assert state.ended
    stopping = state_of(script, client, failed[1:], [at(8, "Stop Requested")])
    assert (stopping.ending, stopping.ended, stopping.executing) == (True, False, False)


@pytest.mark.parametrize(
    ("clusters", "stopped"),
    [
        (None, True),
        ([], True),
        ([at(1, "Not Started")], True),
        ([at(2, "Starting"), at(1, "Not Started")], False),
        ([at(9, "Stopped"), at(8, "Stopping"), at(2, "Started")], True),
        ([at(8, "Stopping"), at(9, "Stopped", form="Z"), at(2, "Started")], True),
    ],
)
def test_an_ended_job_has_stopped_when_its_cluster_has(
    clusters: list[Any] | None, stopped: bool, script: Script, client: RescalePlatform
) -> None:
    """Only `Stopped` says that nothing costs any more, or that there never was a cluster."""
    assert state_of(script, client, [at(9, "Completed")], clusters).stopped is stopped


def test_a_running_job_without_a_cluster_yet_has_not_stopped(script: Script, client: RescalePlatform) -> None:
    """Early 404s of cluster_statuses mean `none yet`."""
    assert not state_of(script, client, [at(1, "Pending")]).stopped


def machine(number: int, role: str | None = "CUSTOM", **changes: Any) -> dict[str, Any]:
    return {
        "id": f"i{number}",
        "role": role,
        "username": "uprod_x",
        "publicIp": f"20.0.0.{number}",
        "publicHostname": f"h{number}.example",
        "privateIp": f"10.0.0.{number}",
        "sshPort": 32100,
        "dateStarted": "2023-09-04T11:03:46.398510Z",
        **changes,
    }


@pytest.mark.parametrize("role", ["CUSTOM", "MPI_SLAVE", "something new", None])
def test_a_single_instance_is_the_head_whatever_its_role(
    role: str | None, script: Script, client: RescalePlatform
) -> None:
    """On one node the role is CUSTOM: filtering on MPI_MASTER would find nothing."""
    script.says("GET jobs/x/instances/", Said(body={"results": [machine(1, role)]}))
    (node,) = client.nodes("x")
    assert (node.address, node.port, node.user) == ("20.0.0.1", 32100, "uprod_x")
    assert (node.private_address, node.started) == ("10.0.0.1", "2023-09-04T11:03:46.398510Z")


def test_the_master_comes_first_among_several(script: Script, client: RescalePlatform) -> None:
    """The order of the list means nothing; a worker without any address is left out, one inside the cluster will do."""
    nowhere = dict.fromkeys(("publicIp", "publicHostname", "privateIp", "privateHostname"))
    items = [
        machine(1, "MPI_SLAVE"),
        machine(2, "MPI_SLAVE", publicIp=None, publicHostname=None),
        machine(3, "MPI_MASTER"),
        machine(4, "MPI_SLAVE", **nowhere),
        machine(5, "MPI_SLAVE", **nowhere | {"privateIp": "-oProxyCommand=x"}),
        machine(6, "MPI_SLAVE", publicIp="-oProxyCommand=x"),
    ]
    script.says("GET jobs/x/instances/", Said(body=items))
    found = [(node.instance_id, node.address, node.private_address) for node in client.nodes("x")]
    assert found == [("i3", "20.0.0.3", "10.0.0.3"), ("i1", "20.0.0.1", "10.0.0.1"), ("i2", "", "10.0.0.2")]


def test_two_masters_are_refused_and_none_is_not_there_yet(script: Script, client: RescalePlatform) -> None:
    """Guessing which of two machines is the head could run everything on the wrong one."""
    script.says("GET jobs/x/instances/", Said(body=[machine(1, "MPI_MASTER"), machine(2, "MPI_MASTER")]))
    with pytest.raises(PlatformRefused, match="2 instances with the role MPI_MASTER"):
        client.nodes("x")
    script.says("GET jobs/x/instances/", Said(body=[machine(1, "MPI_SLAVE"), machine(2, "MPI_SLAVE")]))
    assert client.nodes("x") == []
    headless = [machine(1, "MPI_MASTER", publicIp=None, publicHostname=None), machine(2, "MPI_SLAVE")]
    script.says("GET jobs/x/instances/", Said(body=headless))
    assert client.nodes("x") == []


@pytest.mark.parametrize(
    "changes",
    [
        {"publicIp": None, "publicHostname": None},
        {"publicIp": "1.2.3.4; reboot"},
        {"publicIp": "-oProxyCommand=x"},
        {"sshPort": None},
        {"sshPort": 0},
        {"sshPort": 65536},
        {"sshPort": 70000},
        {"sshPort": "0"},
        {"sshPort": "22\n"},
        {"sshPort": " 22"},
        {"sshPort": "+22"},
        {"sshPort": "22;id"},
        {"sshPort": True},
        {"sshPort": 22.5},
        {"username": None},
        {"username": "me\nyou"},
        {"username": "-l root"},
        {"username": "a b"},
        {"username": "$(id)"},
        {"username": "root\n"},
        {"username": 7},
    ],
)
def test_an_instance_without_a_usable_address_is_not_there(
    changes: dict[str, Any], script: Script, client: RescalePlatform
) -> None:
    """Missing values come later; odd ones never reach a shell or an SSH client."""
    script.says("GET jobs/x/instances/", Said(body=[machine(1, **changes)]))
    assert client.nodes("x") == []


def test_the_host_name_stands_in_for_a_missing_address(script: Script, client: RescalePlatform) -> None:
    """AWS shows host names."""
    script.says("GET jobs/x/instances/", Said(body=[machine(1, publicIp=None)]))
    assert client.nodes("x")[0].address == "h1.example"


def test_no_instances_yet(script: Script, client: RescalePlatform) -> None:
    """An empty list and a 404 mean the same while a cluster comes up."""
    script.says("GET jobs/x/instances/", Said(body={"results": [], "next": None}))
    assert client.nodes("x") == []
    script.says("GET jobs/x/instances/", Said(404))
    assert client.nodes("x") == []


def test_an_odd_head_node_leaves_no_worker_in_its_place(script: Script, client: RescalePlatform) -> None:
    """A head whose port or user is odd is waited for: the only other machine is still a worker (rows L8, L9)."""
    for changes in ({"sshPort": "22\n"}, {"username": 7}, {"publicIp": [], "publicHostname": {}}):
        odd = machine(1, "MPI_MASTER", **changes)
        script.says("GET jobs/x/instances/", Said(body=[odd, machine(2, "MPI_SLAVE")]))
        assert client.nodes("x") == []


def test_a_port_in_digits_is_a_port(script: Script, client: RescalePlatform) -> None:
    """Some numbers of this API come as text."""
    script.says("GET jobs/x/instances/", Said(body=[machine(1, sshPort="32100")]))
    assert client.nodes("x")[0].port == 32100


def test_the_private_address_is_the_name_where_there_is_no_number(script: Script, client: RescalePlatform) -> None:
    """Workers are reached through the head by either (row L7)."""
    script.says("GET jobs/x/instances/", Said(body=[machine(1, privateIp=None, privateHostname="p3056")]))
    assert client.nodes("x")[0].private_address == "p3056"
    script.says("GET jobs/x/instances/", Said(body=[machine(1, privateIp=None)]))
    assert client.nodes("x")[0].private_address == ""


def test_only_the_exact_name_is_found(script: Script, client: RescalePlatform) -> None:
    """The search matches parts of names; a job of somebody else is not ours."""
    rows = [{"id": "a", "name": "run-1"}, {"id": "b", "name": "run-11"}, {"id": "c", "name": "run-1"}]
    script.says("GET jobs/", Said(body=rows))
    assert client.find("run-1") == ["a", "c"]
    assert "search=run-1" in script.calls("GET")[0]


def test_absence_is_believed_when_it_was_read_twice(script: Script, client: RescalePlatform) -> None:
    """A list that shrinks while its pages are read skips a row: the second look finds the job (row A16)."""
    first = {"next": "?page=2", "results": [{"id": "a", "name": "other"}]}
    script.says("GET jobs/", Said(body=first), Said(body=[{"id": "a", "name": "other"}, {"id": "b", "name": "run-1"}]))
    script.says("GET jobs/?page=2", Said(body={"results": []}))
    assert client.find("run-1") == ["b"]
    before = len(script.asked)
    assert client.find("run-2") == []
    assert len(script.asked) == before + 2


def test_a_row_that_comes_twice_counts_once(script: Script, client: RescalePlatform) -> None:
    """A list that grows while its pages are read shows a row again (row A16)."""
    script.says("GET jobs/", Said(body={"next": "?page=2", "results": [{"id": "a", "name": "run-1"}]}))
    script.says("GET jobs/?page=2", Said(body={"results": [{"id": "a", "name": "run-1"}]}))
    assert client.find("run-1") == ["a"]


def test_jobs_are_listed_by_how_their_names_begin(script: Script, client: RescalePlatform) -> None:
    """The newest first, a draft with an empty status, those of others with their owner; nothing that only contains it."""
    rows = [
        {"id": "a", "name": "pr-a", "owner": "me@x", "dateInserted": "2026-04-03T03:45:01Z", "jobStatus": None},
        {"id": "b", "name": "my pr-b", "owner": "me@x"},
        {
            "id": "c",
            "name": "pr-c",
            "owner": "you@x",
            "dateInserted": "2026-04-03T03:45:02+00:00",
            "jobStatus": {"content": "Executing", "labelClass": "x"},
        },
        {"id": "d", "name": "pr-d", "jobStatus": {"content": ""}},
    ]
    script.says("GET jobs/", Said(body=rows))
    listed = client.jobs("pr-")
    assert [(row.job_id, row.owner, row.status) for row in listed] == [
        ("c", "you@x", "Executing"),
        ("a", "me@x", ""),
        ("d", "", ""),
    ]
    assert listed[0].name == "pr-c"
    assert listed[0].created == datetime(2026, 4, 3, 3, 45, 2, tzinfo=UTC)


def test_the_proof_goes_into_the_first_environment_alone(script: Script, client: RescalePlatform) -> None:
    """The secret travels in the driving analysis' envVars, beside those that were asked for, and in no text of ours."""
    proof = "9f" * 32
    script.says("POST jobs/", Said(201, {"id": "AbCdEf"}))
    script.says("GET jobs/AbCdEf/", Said(body={"id": "AbCdEf", "publicKey": USER_KEY}))
    tiles = (Software(analysis="a", version="1"), Software(analysis="b", version="2"))
    request = asking(software=tiles, env={"A": "1"}, proof=proof)
    saved = client.create(request)
    environments = [analysis["envVars"] for analysis in job_of(script)["jobanalyses"]]
    assert environments == [{"A": "1", "PERSISTENT_RUNNER_PROOF": proof}, {"A": "1"}]
    assert saved.public_key == USER_KEY
    assert proof not in repr(request)
    script.says("POST jobs/", Said(400, {"jobanalyses": [{"envVars": [f"{proof} is too long"]}]}))
    with pytest.raises(PlatformRefused, match="envVars") as caught:
        client.create(request)
    assert proof not in str(caught.value)


def test_a_job_that_was_just_created_may_be_unknown_for_a_while(script: Script, client: RescalePlatform) -> None:
    """The read-back is repeated on 404, the create is not (row A4); another refusal is final."""
    script.says("POST jobs/", Said(201, {"id": "AbCdEf"}))
    script.says("GET jobs/AbCdEf/", Said(404), Said(404), Said(body={"id": "AbCdEf"}))
    assert client.create(asking()).job_id == "AbCdEf"
    assert (len(script.calls("POST")), len(script.calls("GET"))) == (1, 3)
    script.says("GET jobs/AbCdEf/", Said(403))
    with pytest.raises(PlatformRefused):
        client.create(asking())
    assert (len(script.calls("POST")), len(script.calls("GET"))) == (2, 4)


def test_stopping_what_has_ended_is_no_fault(script: Script, client: RescalePlatform) -> None:
    """A refused stop is looked into: the job may have ended by itself; else the refusal stands."""
    script.says("POST jobs/x/stop/", Said(400, {"detail": "not running"}))
    state_of(script, client, [at(9, "Completed")], [at(9, "Stopped")])
    client.stop("x")
    state_of(script, client, [at(9, "Executing")], [at(9, "Started")])
    with pytest.raises(PlatformRefused, match="not running"):
        client.stop("x")


def test_the_log_is_read_live_or_from_the_outputs(script: Script, client: RescalePlatform) -> None:
    """A running job has a tail, an ended one a file, a waiting one nothing; none of them is an error."""
    assert client.log("x") == ""
    script.says("GET jobs/x/runs/1/tail/process_output.log", Said(504, "gateway"))
    assert client.log("x") == ""
    script.says("GET jobs/x/files/", Said(body=[{"id": "f", "name": "process_output.log"}]))
    script.says("GET files/f/lines/", Said(body={"lines": [f"line {n}\n" for n in range(100)]}))
    assert client.log("x").splitlines()[-1] == "line 99"
    assert len(client.log("x").splitlines()) == 20
    assert len(client.log("x", lines=50).splitlines()) == 50
    script.says("GET jobs/x/runs/1/tail/process_output.log", Said(body={"lines": ["live", ""]}))
    assert client.log("x", lines=7) == "live"
    assert "lines=7" in script.calls("GET")[-1]


def test_a_wrong_key_on_the_local_platform(rescale: LocalRescale) -> None:
    """The local platform refuses a wrong key as the real one does, and the message names its host."""
    platform = RescalePlatform(rescale.base_url, secrets.token_hex(20))
    with pytest.raises(PlatformRefused, match="refused the API key"):
        platform.me()
    platform.close()
