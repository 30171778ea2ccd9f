"""The machines of a lease that trials run on: a link to each, opened side by side, given up and tried again one by one.

The head node is the lease: what ends its link has ended the lease for us. Any other one comes when it can, and when it
is lost its trials run elsewhere.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from persistent_runner.background import in_background
from persistent_runner.errors import (
    AttemptLost,
    ConnectionLost,
    HostNotProven,
    JobStopped,
    LeaseLost,
    PlatformError,
    RunnerError,
)
from persistent_runner.recovery import Backoff, recover
from persistent_runner.remote.link import Link

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from persistent_runner.lease.manager import ClusterLease
    from persistent_runner.remote.frames import Hello
    from persistent_runner.remote.node import Node, Span

log = logging.getLogger(__name__)

LOGINS = 6  # at a time; OpenSSH drops connections from the eleventh unfinished login on (MaxStartups 10:30:100)
REACH = Backoff(first=1.0, most=15.0, total=120.0)  # for a machine to be there, before trials are told to do without it
AGAIN = Backoff(first=60.0, most=600.0, total=float("inf"))  # between the tries to get one back that was given up
ARRIVAL_SECONDS = 300.0  # for the addresses of all machines to be shown, once the first one is there
LOOK_SECONDS = 5.0
CLOSE_SECONDS = 5.0
_OF_THE_LEASE = (LeaseLost, JobStopped)


class TrialNode:
    """A machine of a lease with room for `slots` trials.

    `where` names it among all of all leases, `name` is what the cluster calls it. Its `link` is a new one each time
    that the machine was given up, and `ready` is done when trials may start over that one, or AttemptLost. `head` is
    the head node's link, None on the head node itself.
    """

    def __init__(
        self, lease: ClusterLease, node: Node, *, run: str, slots: int, logins: threading.Semaphore, head: Link | None
    ) -> None:
        self.where = f"{lease.name} {node.instance_id} {node.started}"
        self.name = node.hostname
        self.slots = slots
        self.running = 0  # trials; counted by Nodes
        self.root = ""
        self._lease = lease
        self._node = node
        self._run = run
        self._logins = logins
        self._head = head
        self._closed = threading.Event()
        self._given_up = False
        self._sees_head = True
        self._connection: Any = None
        self._telling = threading.Lock()  # of what the head node's switch is told of this one
        self._busy = 0
        self._seen: Future[None] = Future()
        self._strays: list[str] = []  # attempts that may run here though they were given up
        self.link = self._new_link()
        self.ready: Future[None] = Future()

    def _new_link(self) -> Link:
        head = self._head
        return Link(
            self._lease.connect if head is None else self._connect,
            run=self._run,
            lease=self._lease.name,
            node=self._node.instance_id,
            head=None if head is None else self._lease.head_node.instance_id,
            check=self._lease.check_machines if head is None else self._check,
        )

    @property
    def is_up(self) -> bool:
        """Whether a trial could start here at once."""
        return self.ready.done() and not self._given_up and self.link.is_up

    @property
    def is_expected(self) -> bool:
        """Whether what runs here will be heard of, by all that is known."""
        return not self._given_up and self.link.wait_for_end(0) is None

    @property
    def capacity(self) -> int:
        """How many trials may run here: while nobody answers, those that do."""
        return self.slots if self._head is None or self.is_up else min(self.slots, self.running)

    # -- the head node

    def open(self, span: Span | None) -> Hello:
        """Start the head node's agent; raises what keeps it from working."""
        hello = self._met(self.link.open(span))
        self.ready.set_result(None)
        return hello

    # -- any other one

    def serve(self, prepare: Callable[[TrialNode], None]) -> None:
        """Be there for trials until it is closed, or lost for good; `prepare(node)` is called before the first one."""
        try:
            recover(lambda: self._serve(prepare), {ConnectionLost: self._renew}, AGAIN, self._closed)
        except Exception as error:  # noqa: BLE001 - whatever it is, trials must not wait for it
            self._give_up(error)

    def _serve(self, prepare: Callable[[TrialNode], None]) -> None:
        try:
            # Here and not by the link: that it takes its time is no news.
            recover(self._connect, {ConnectionLost: lambda _: self._check()}, REACH, self._closed)
            self._met(self.link.open())
            if self._head is not None and not self._sees_head:
                self._head.busy(self._node.instance_id, on=False)  # of a driver that died
            for attempt in self._strays:
                self.link.drop(attempt).result()  # ends it: its trial runs elsewhere
            self._strays.clear()
            prepare(self)
        except ConnectionLost as error:
            self._give_up(error)
            raise
        log.info("%s is ready for %d trials at a time", self.name, self.slots)
        self.ready.set_result(None)
        ended = self.link.wait_for_end()
        assert ended is not None
        self._give_up(ended)
        raise ended

    def _renew(self, _: Exception) -> None:
        """Take a new link, since the platform still shows the machine; raises what `_check` does."""
        self._check()
        self.link, self.ready = self._new_link(), Future()
        self._given_up = False

    def _give_up(self, error: Exception) -> None:
        """Let what waits for this machine or runs on it know that it is lost."""
        if self._given_up:
            return
        self._given_up = True
        if not self._closed.is_set() and not isinstance(error, _OF_THE_LEASE):  # which the head node tells
            again = "it is tried again later" if isinstance(error, ConnectionLost) else "it is not used any more"
            log.warning("%s: %s\nThe trials run on the other nodes; %s.", self.name, error, again)
        if not self.ready.done():
            self.ready.set_exception(error if isinstance(error, _OF_THE_LEASE) else self._lost(error))
        self.link.close()

    def _connect(self) -> Any:
        """Return the connection to it, a new one where the last was closed."""
        if self._connection is None or not self._connection.is_connected:
            with self._logins:
                self._connection = self._lease.connect(self._shown() or self._node)
        if self._closed.is_set():  # meanwhile
            self._connection.close()
            raise ConnectionLost(f"{self.name}: the link was closed")
        return self._connection

    def _check(self) -> None:
        """Raise where the lease is gone, and AttemptLost where the machine is none of its any more."""
        self._lease.check_machines()
        if self._shown() is None:
            raise AttemptLost(f"{self.name} is no machine of the cluster any more: what ran there is lost.")

    def _shown(self) -> Node | None:
        """Return what the platform says of it by now; its address may have come later than it, or be another one."""
        mine = (self._node.instance_id, self._node.started)
        return next((node for node in self._lease.nodes if (node.instance_id, node.started) == mine), None)

    # -- both

    def _met(self, hello: Hello) -> Hello:
        self.root, self._sees_head = hello.root, hello.sees_head
        if self._head is not None and self._sees_head:  # the same files: two that bring one would write into each other
            self.link.sharing = self._head.sharing
        if hello.cores < (cores := self._lease.cores_per_node):
            log.warning(
                "%s has %d cores, and the platform counts %d: what runs there shares them",
                hello.host,
                hello.cores,
                cores,
            )
        return hello

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Within: the dead-man's switch on the head node sees that something runs here.

        What runs has an entry of its own where the switch looks, unless this machine has a home of its own: then there
        is one for all, placed before the first and taken away after the last.
        """
        head = self._head
        if head is None or self._sees_head:
            yield
            return
        with self._telling:
            self._busy += 1
            if self._busy == 1:
                self._seen = head.busy(self._node.instance_id, on=True)
            seen = self._seen
        try:
            seen.result()
            yield
        finally:
            with self._telling:
                self._busy -= 1
                if not self._busy:
                    head.busy(self._node.instance_id, on=False)

    def fault(self, error: BaseException, link: Link, attempt: str) -> BaseException:
        """Return what an error over a link means to an attempt here: only the head node's is one of the whole lease."""
        if self._head is None or isinstance(error, _OF_THE_LEASE):
            return error
        is_ours = isinstance(error, ConnectionLost | HostNotProven | PlatformError) or error is link.wait_for_end(0)
        if is_ours:
            self._strays.append(attempt)
        return self._lost(error) if is_ours else error

    def _lost(self, error: BaseException) -> AttemptLost:
        return error if isinstance(error, AttemptLost) else AttemptLost(f"{self.name}: {error}")

    def close(self) -> None:
        """End its agent; what runs goes on."""
        self._closed.set()
        self.link.close()


class Nodes:
    """All machines of one launch of a lease; `slots` is how many trials each has room for.

    Whoever starts a trial asks for its `place`, and counts it at its start and at its end.
    """

    def __init__(self, lease: ClusterLease, *, run: str) -> None:
        self._lease = lease
        self._run = run
        self._slots = 0
        self._logins = threading.Semaphore(LOGINS)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.head = TrialNode(lease, lease.head_node, run=run, slots=0, logins=self._logins, head=None)
        self._nodes = {self.head.where: self.head}

    def open(self, slots: int, span: Span | None = None) -> Hello:
        """Open the head node; raises what keeps it from working."""
        self._slots = self.head.slots = slots
        return self.head.open(span)

    def open_others(self, prepare: Callable[[TrialNode], None]) -> None:
        """Open the others in the background; those that the platform shows already may be asked for from now on."""
        self._take(prepare)
        if len(self._nodes) < self._lease.quote.nodes:
            in_background(lambda: self._await_others(prepare), "machines that are to come")

    def _take(self, prepare: Callable[[TrialNode], None]) -> None:
        for node in self._lease.nodes[1:]:
            new = TrialNode(
                self._lease, node, run=self._run, slots=self._slots, logins=self._logins, head=self.head.link
            )
            with self._lock:
                if new.where in self._nodes or self._closed.is_set():
                    continue
                self._nodes[new.where] = new
            threading.Thread(target=new.serve, args=(prepare,), name=f"node {new.name}", daemon=True).start()

    def _await_others(self, prepare: Callable[[TrialNode], None]) -> None:
        """Wait for the addresses of machines that have none yet."""
        until, wanted = time.monotonic() + ARRIVAL_SECONDS, self._lease.quote.nodes
        while len(self._nodes) < wanted and not self._closed.wait(LOOK_SECONDS):
            if time.monotonic() > until:
                log.warning("Only %d of %d machines have an address; trials run on these", len(self._nodes), wanted)
                return
            try:
                self._lease.check_machines()
            except RunnerError as error:  # the head node's link tells the study
                log.debug("no machine is waited for any more: %s", error)
                return
            self._take(prepare)

    @property
    def capacity(self) -> int:
        """How many trials may run at a time now."""
        with self._lock:
            return sum(node.capacity for node in self._nodes.values())

    def place(self, before: str, planned: Sequence[str]) -> TrialNode:
        """Return where the next attempt is to start: where most is free, the head node first.

        `before` is where an attempt runs already, by what was recorded: it is joined there, however full that is.
        `planned` are the places of attempts that have one and have not started.
        """
        with self._lock:
            known = self._nodes.get(before)
            if known is not None and known.is_expected:
                return known
            ahead = Counter(planned)
            free = {node: node.slots - node.running - ahead[node.where] for node in self._nodes.values()}
            up = [node for node in free if node.is_up]
            fit = [node for node in up if free[node] > 0]
            if not fit:
                fit = [self.head] if free[self.head] > 0 or not up else up
            return max(fit, key=lambda node: free[node])

    def by(self, where: str) -> TrialNode | None:
        """Return the machine of this name; None where it is none of these."""
        return self._nodes.get(where)

    def all(self) -> list[TrialNode]:
        """Return all machines that were there, the head node first."""
        with self._lock:
            return list(self._nodes.values())

    def count(self, node: TrialNode, more: int) -> None:
        """Count a trial that starts on a machine (1), or has ended there (-1)."""
        with self._lock:
            node.running += more

    def close(self) -> None:
        """End all agents; what runs goes on. The head node's ends first, so that its switch is told nothing more."""
        self._closed.set()
        self.head.close()
        closing = [in_background(node.close, f"close {node.name}") for node in self.all()[1:]]
        until = time.monotonic() + CLOSE_SECONDS
        for each in closing:
            _is_done(each, max(0.0, until - time.monotonic()))


def _is_done(future: Future[Any], seconds: float) -> bool:
    """Return whether a future is done, or is so within `seconds`."""
    with contextlib.suppress(Exception):
        future.exception(seconds)
    return future.done()
