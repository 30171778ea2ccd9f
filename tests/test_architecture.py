"""The house's own rules, read from its source."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import persistent_runner

PACKAGE = Path(persistent_runner.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
FLOORS = {
    "__main__": 9,
    "cli": 8,
    "ending": 8,
    "runner": 7,
    "salvage": 7,
    "saved_link": 7,
    "saved_outputs": 7,
    "leasing": 7,
    "inventory": 7,
    "check": 7,
    "live": 7,
    "logs": 7,
    "site": 7,
    "plan": 7,
    "login": 7,
    "doctor": 7,
    "draft": 7,
    "findings": 7,
    "init": 7,
    "init_report": 7,
    "interview": 7,
    "local_platform": 6,
    "study": 5,
    "rescale": 5,
    "pool": 4,
    "nodes": 4,
    "spread": 4,
    "lease": 3,
    "remote": 2,
    "recovery": 1,
    "redaction": 1,
    "settings": 1,
    "background": 1,
    "printable": 1,
    "pipes": 1,
    "portable": 1,
    "account": 1,
    "render": 1,
    "templates": 1,
    "formats": 1,
    "inputs": 1,
    "scripts": 1,
    "duration": 1,
    "interrupts": 1,
    "spelling": 1,
    "crash": 1,
    "disk": 1,
    "errors": 1,
}
HEAVY = {"optuna", "pandas", "numpy", "fabric", "invoke", "paramiko", "requests", "pydantic", "pydantic_settings"} | {
    "jinja2",
    "rich",
    "sqlalchemy",
    "asyncssh",
    "flask",
    "waitress",
}
POSIX_ONLY = {"fcntl", "pwd", "grp", "termios", "pty", "tty", "resource", "syslog", "posix", "crypt", "spwd"}
POSIX_CALLS = {"fork", "forkpty", "setsid", "getuid", "geteuid", "getpgid", "killpg", "setpgid", "openpty", "chown"} | {
    "sched_getaffinity",
    "getsid",
    "wait4",
    "waitid",
    "mkfifo",
}
MAY_BE_POSIX = {"local_platform", "remote.agent"}
# Whoever goes on after a failed call. A poll loop asks anew for a state that changes, whatever the last answer was.
MAY_GO_ON = {
    "recovery.recover": "the one place that repeats a failed call",
    "interview._asked_until": "asks a person anew, whose next answer is another one",
    "lease.settle.settle": "settles another record each time",
    "lease.watch.wait_until_executing": "polls the job's state",
    "lease.watch.wait_for_nodes": "polls the job's machines",
    "remote.link._write": "the writer thread: what was not sent is sent again by the re-join, which is recovery's",
}

# Who asks what time it is. Everything that is decided rests on a monotonic clock, or on ticks that a node counts.
MAY_READ_THE_CLOCK = {
    "draft.look": "doctor compares it with the platform's, and says so",
    "draft._clock": "the same",
    "inventory._recorded": "how old a lease is, for a table",
    "inventory._by_name": "the same",
    "lease.hold.learn_age": "of a cluster without a switch, which an earlier driver left, nothing else tells its age",
    "lease.ledger._now": "when a record was written, for people",
    "lease.meter.start": "until when a cluster lasts, for a message",
    "lease.settle.ends_by_itself": "the same",
    "local_platform.clock.now": "the platform's own dates, which no decision of ours reads",
    "local_platform.journal.write": "when something happened, for people",
    "study.run_folder._now": "when something happened, for people",
    "study.reread._read_first": "when a trial was read, as Optuna keeps it",
}
WALL_CLOCK = {
    *(f"time.{name}" for name in ("time", "time_ns", "localtime", "gmtime", "ctime", "asctime", "strftime")),
    *(f"datetime.{name}" for name in ("now", "utcnow", "today")),
    "date.today",
}


def name_of(path: Path) -> str:
    """Return a module's name below the package: `lease.manager`, `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def imports_of(tree: ast.AST, module: str) -> set[str]:
    """Return the full names of all that a tree imports, wherever the import stands."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide where a name comes from"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(imports: set[str]) -> set[str]:
    """Return which of our top-level modules and packages are among the imports."""
    return {name.split(".")[1] for name in imports if name.startswith("persistent_runner.")}


def without_type_checking(tree: ast.Module) -> ast.Module:
    body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING")
    ]
    return ast.Module(body, [])


def floor_breaches(module: str, imports: set[str]) -> set[str]:
    """Return what a module may not import; `site` and `live` serve their own floor, `study` and `rescale` do not."""
    own = module.partition(".")[0]
    return {
        name
        for name in ours(imports)
        if name != own
        and (FLOORS[name] > FLOORS[own] or (FLOORS[name] == FLOORS[own] and FLOORS[own] not in {1, 4, 7, 8}))
    }


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_modules_import_from_floors_below_only(path: Path) -> None:
    """A change on one floor cannot break the floors below it; imports for types count like all others."""
    module = name_of(path)
    if module == "__init__":
        return
    assert floor_breaches(module, imports_of(tree_of(path), module)) == set()


def test_the_floors_test_can_fail() -> None:
    """An import from above, or from the other half of a floor, is noticed."""
    assert floor_breaches("lease.manager", {"persistent_runner.pool.Pool"}) == {"pool"}
    assert floor_breaches("study.loop", {"persistent_runner.rescale.client.X"}) == {"rescale"}
    assert floor_breaches("errors", {"persistent_runner.settings.X", "optuna"}) == set()


def test_every_module_has_a_floor_and_the_map_shows_it() -> None:
    """Whoever adds a module says where it lives, in the map that a newcomer reads first."""
    modules = {name_of(path).split(".")[0] for path in SOURCES} - {"__init__"}
    assert modules == set(FLOORS)
    drawn = persistent_runner.__doc__ or ""
    assert [name for name in modules - {"__main__"} if f"{name}.py" not in drawn and f"{name}/" not in drawn] == []


def test_the_local_platform_knows_the_wire_alone() -> None:
    """The emulated platform shares no code with the client that it is there to test."""
    for path in (PACKAGE / "local_platform").glob("*.py"):
        used = {
            name.split(".", 1)[1] for name in imports_of(tree_of(path), path.stem) if name.startswith("persistent_")
        }
        wrong = {
            name for name in used if not name.startswith(("local_platform.", "rescale.api.", "errors.", "spelling."))
        }
        assert wrong == set(), path.name


def test_only_the_chooser_names_the_local_platform() -> None:
    """There is no second code path for the local platform: one file chooses it."""
    named = {
        name_of(path)
        for path in SOURCES
        if "local_platform" in ours(imports_of(tree_of(path), name_of(path)))
        and not name_of(path).startswith("local_platform")
    }
    assert named <= {"site", "cli", "__init__"}
    assert "site" in named


def test_public_names() -> None:
    """What `from persistent_runner import ...` gives is written down, sorted, and all of it can be imported."""
    errors = importlib.import_module("persistent_runner.errors")
    leaves = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    words = {"ClusterLease", "LocalRescale", "WorkDir", "lease", "optimize", "render", "run_study", "trials_table"}

    assert persistent_runner.__all__ == sorted(persistent_runner.__all__)
    assert set(persistent_runner.__all__) == words | leaves
    assert dir(persistent_runner) == persistent_runner.__all__
    assert [name for name in persistent_runner.__all__ if not callable(getattr(persistent_runner, name))] == []
    with pytest.raises(AttributeError, match="has no attribute 'leese'"):
        persistent_runner.leese  # noqa: B018


@pytest.mark.parametrize("first", ["", "import persistent_runner.lease.manager, persistent_runner.render"])
def test_functions_win_over_modules_of_the_same_name(first: str) -> None:
    """`lease` and `render` are functions to the outside, whatever was imported before."""
    code = f"{first}\nfrom persistent_runner import lease, render\nassert callable(lease) and callable(render)"
    code += "\nimport persistent_runner, persistent_runner.runner\nassert callable(persistent_runner.lease)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "code",
    [
        "import persistent_runner",
        "import persistent_runner.cli as c; c.run_study(['--help'], standalone_mode=False)",
        "import persistent_runner.cli as c; c.main(['--help'], standalone_mode=False)",
        "import persistent_runner.cli as c; c.main(['platform', '--help'], standalone_mode=False)",
        "import persistent_runner.cli as c; c.main(['doctor', '--help'], standalone_mode=False)",
        "import persistent_runner.cli as c; c.main(['init', '--help'], standalone_mode=False)",
        "import persistent_runner.cli as c; c.main(['logs', '--help'], standalone_mode=False)",
    ],
)
def test_nothing_heavy_is_imported_early(code: str) -> None:
    """`--help` answers at once."""
    report = f"{code}\nimport sys; print('MODULES', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", report], check=True, capture_output=True, text=True)
    modules = set(done.stdout.rpartition("MODULES")[2].split())
    assert "persistent_runner" in modules
    assert modules & HEAVY == set()


def posix_only(tree: ast.Module) -> set[str]:
    """Return the POSIX-only modules that are imported, and functions of `os` that are named."""
    found = {name.split(".")[0] for name in imports_of(tree, "")} & POSIX_ONLY
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            found |= {node.attr} & POSIX_CALLS
    return found


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_posix_stays_where_it_belongs(path: Path) -> None:
    """The driver runs on Windows; what cannot is behind the local platform and the agent."""
    if any(name_of(path).startswith(place) for place in MAY_BE_POSIX):
        return
    assert posix_only(tree_of(path)) == set()


def test_the_posix_test_can_fail() -> None:
    """An import within a function and a call count too."""
    assert posix_only(ast.parse("def f():\n    import fcntl\n    os.fork()")) == {"fcntl", "fork"}


def test_the_agent_is_for_python_3_6_and_its_library_alone() -> None:
    """The agent runs on whatever python3 a node has, with nothing installed."""
    text = (PACKAGE / "remote" / "agent.py").read_text("utf-8")
    tree = ast.parse(text, feature_version=(3, 6))
    foreign = {name.split(".")[0] for name in imports_of(tree, "remote.agent")} - set(sys.stdlib_module_names)
    assert foreign == set()
    # feature_version does not know these: `:=`, f"{x=}", and names that came after 3.6
    newer = [node for node in ast.walk(tree) if isinstance(node, ast.NamedExpr | ast.Match)]
    assert newer == []
    assert "from __future__ import annotations" not in text


def repeats(tree: ast.Module) -> set[str]:
    """Return the functions with a loop that goes on after an exception.

    A `try` directly or indirectly within a loop, one of whose handlers does not always leave the loop (by raise, return
    or break at its end), or a `with suppress(...)`; one that a nested function holds is not of the loop. `for` loops
    count where the loop's own variable is not used in the `try`: then each turn makes the same call again.
    """
    found: set[str] = set()
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for loop in within(function, ast.While | ast.For | ast.AsyncFor):
                for attempt in within(loop, ast.Try | ast.With):
                    own = names(loop.target) if isinstance(loop, ast.For | ast.AsyncFor) else set()
                    used = set().union(*(names(node) for node in attempt.body))
                    if not own & used and goes_on(attempt):
                        found.add(function.name)
    return found


def within(node: ast.AST, kinds: object) -> list[ast.AST]:
    """Return the nodes of these kinds below a node, not those of functions within it."""
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, kinds):  # type: ignore[arg-type]
            found.append(child)
        found += within(child, kinds)
    return found


def names(node: ast.AST) -> set[str]:
    return {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}


def goes_on(attempt: ast.AST) -> bool:
    if isinstance(attempt, ast.With):
        return any("suppress" in ast.unparse(item.context_expr) for item in attempt.items)
    assert isinstance(attempt, ast.Try)
    return not all(isinstance(handler.body[-1], ast.Raise | ast.Return | ast.Break) for handler in attempt.handlers)


def test_only_recovery_repeats_failed_calls() -> None:
    """Retry rules are in one place; the local platform and the agent, whose loops serve others, are their own."""
    found = {
        f"{name_of(path)}.{function}"
        for path in SOURCES
        if not any(name_of(path).startswith(place) for place in MAY_BE_POSIX)
        for function in repeats(tree_of(path))
    }
    assert found == set(MAY_GO_ON)


@pytest.mark.parametrize(
    ("code", "caught"),
    [
        ("while True:\n  try: return call()\n  except OSError: sleep(1)", True),
        ("for n in range(5):\n  try: return call()\n  except OSError: continue", True),
        ("for n in range(5):\n  if n:\n   try: return call()\n   except OSError: pass", True),
        ("while True:\n  with suppress(OSError): return call()", True),
        ("while True:\n  try: call()\n  except OSError: return None", False),
        ("for item in items:\n  try: call(item)\n  except OSError: pass", False),
    ],
)
def test_the_repeats_test_can_fail(code: str, caught: bool) -> None:
    """A retry by hand is noticed, in each of its usual forms; a loop over different things is none."""
    body = "\n".join(f" {line}" for line in code.splitlines())
    assert repeats(ast.parse(f"def f():\n{body}")) == ({"f"} if caught else set())


def clock_readers(tree: ast.Module) -> set[str]:
    """Return the innermost functions that read the machine's wall clock."""
    found: set[str] = set()

    def look(node: ast.AST, function: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
            if isinstance(child, ast.Attribute) and ".".join(ast.unparse(child).split(".")[-2:]) in WALL_CLOCK:
                found.add(inner)
            look(child, inner)

    look(tree, "the module")
    return found


def test_no_decision_reads_a_clock_that_somebody_can_set() -> None:
    """A clock that is wrong or jumps, here or on a node, ends nothing and keeps nothing (rows A20, R15)."""
    found = {f"{name_of(path)}.{function}" for path in SOURCES for function in clock_readers(tree_of(path))}
    assert found == set(MAY_READ_THE_CLOCK)


def test_the_clock_test_can_fail() -> None:
    """Each usual way of asking for the time is noticed, in nested functions too; a monotonic clock is not."""
    code = "def f():\n def g(): return {}\n time.monotonic(); time.sleep(1)"
    for call in ("time.time()", "datetime.now(UTC)", "datetime.datetime.utcnow()", "x(default=time.time)"):
        assert clock_readers(ast.parse(code.format(call))) == {"g"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_have_one_job_and_are_finished(path: Path) -> None:
    """A file that passes 400 lines has two jobs; nothing is a stub."""
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 400 or name_of(path) == "remote.agent"  # sent as one file
    assert [word for word in ("raise NotImplementedError", "TODO", "FIXME", "XXX") if word in text] == []
    assert ast.get_docstring(tree_of(path)), "the first line of a file says what it is"


def test_the_driver_imports_on_windows() -> None:
    """Nothing that a start or --check imports fails where ctypes knows no C library by None, as on Windows."""
    code = (
        "import ctypes\n"
        "class CDLL(ctypes.CDLL):\n"
        "    def __init__(self, name, *a, **k):\n"
        "        if name is None: raise TypeError('no name')\n"
        "        super().__init__(name, *a, **k)\n"
        "ctypes.CDLL = CDLL\n"
        "import persistent_runner.runner, persistent_runner.check, persistent_runner.live\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
