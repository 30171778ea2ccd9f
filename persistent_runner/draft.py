"""A job that is saved, read back and deleted: who could log in to its machines, known before any money is spent."""

from __future__ import annotations

import contextlib
import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from persistent_runner.duration import format_duration
from persistent_runner.errors import PlatformError, PlatformRefused, PlatformUnavailable
from persistent_runner.findings import Finding
from persistent_runner.lease.naming import lease_name
from persistent_runner.login import PASTE_AT
from persistent_runner.recovery import Backoff, recover
from persistent_runner.remote import ssh
from persistent_runner.settings import is_loopback

if TYPE_CHECKING:
    import paramiko

    from persistent_runner.findings import Findings
    from persistent_runner.lease.platform import LeaseRequest, Platform, SavedJob

_PATIENCE = Backoff(total=30)
_CLOCK_SECONDS = 300  # above it something must be wrong with a clock, below it slow answers explain it


@dataclass(frozen=True)
class Draft:
    """Saves a job as a lease would, without starting it, and adds what that shows to `findings`.

    `key` is our SSH key, None where there is none that can be used; `proxied` says whether SSH goes through a proxy.
    """

    findings: Findings
    platform: Platform
    base_url: str
    key: paramiko.PKey | None
    proxied: bool

    def look(self, request: LeaseRequest) -> None:
        """Look at the job, the key that it lets in, the addresses that it lets in, and the clock."""
        saved: SavedJob | None = None
        refused = False
        clock: Finding | None = None
        name = lease_name("doctor")
        public = ssh.public_line(self.key) if self.key else ""
        request = request.model_copy(update={"name": name, "command": "sleep inf", "public_key": public})
        with self.findings.looking_at("draft job") as finding:
            before = datetime.now(UTC)
            try:
                saved = self.platform.create(request)
                clock = self._clock(name, before)
            except PlatformRefused as error:
                refused = error.status != 404  # which a job may answer that was just created
                raise
            finally:
                self._delete(name, saved, refused=refused)
            _judge(finding, request, saved)
        if saved is not None:
            self._look_at_the_public_key(saved)
            self._look_at_the_rule(saved)
        if clock is not None:
            self.findings.add(clock)

    def _delete(self, name: str, saved: SavedJob | None, *, refused: bool) -> None:
        """Delete the draft, also one whose answer was lost; one that stays, or may stay, is named."""
        why = "the answer to its creation was lost"
        try:
            found = [saved.job_id] if saved else self.platform.find(name)
            for job_id in found:
                self._delete_one(job_id)
        except PlatformError as error:
            why = error.message
        else:
            if found or refused:
                return
        left = Finding("left over")
        left.warn(
            f"the job {name}{f' ({saved.job_id})' if saved else ''} may be left: {why}",
            "It was never started and costs nothing. Delete it in the portal.",
        )
        self.findings.add(left)

    def _delete_one(self, job_id: str) -> None:
        recover(lambda: self.platform.delete(job_id), {PlatformUnavailable: lambda _: None}, _PATIENCE)

    def _clock(self, name: str, before: datetime) -> Finding | None:
        """Compare the time at which the platform says that it saved the draft with our own."""
        created: datetime | None = None
        with contextlib.suppress(PlatformError):  # a clock that nobody tells is no fault
            created = next((row.created for row in self.platform.jobs(name) if row.name == name), None)
        if created is None:
            return None
        after = datetime.now(UTC)
        off = (created - after if created > after else min(created - before, timedelta(0))).total_seconds()
        finding = Finding("clock", "this machine's agrees with the platform's")
        if abs(off) >= 1:
            side = "behind" if off > 0 else "ahead of"
            finding.seen = f"this machine's is {format_duration(abs(off))} {side} the platform's"
        if abs(off) >= _CLOCK_SECONDS:
            finding.warn(
                finding.seen, "Set it: times in tables would be wrong. Nothing that costs money depends on it."
            )
        return finding

    def _look_at_the_public_key(self, saved: SavedJob) -> None:
        with self.findings.looking_at("public key") as finding:
            if self.key is None:
                finding.warn("without an SSH key here there is nothing to compare")
                return
            ours = ssh.public_line(self.key)
            paste = f"Paste this line at {self.base_url} into {PASTE_AT}:\n{ours}"
            if not saved.public_key:
                finding.warn(
                    "the platform does not show which key it would let in",
                    f"{paste}\nWhether it is let in shows: persistent-runner doctor --connect",
                )
            elif saved.public_key.split()[:2] != ours.split():
                finding.fail(
                    f"the platform would let in another key than this machine's: {saved.public_key}",
                    paste,
                    PlatformRefused.exit_code,
                )
            else:
                finding.seen = "the platform would let in this machine's SSH key"

    def _look_at_the_rule(self, saved: SavedJob) -> None:
        """Say whether the rule of addresses that may connect lets this machine in."""
        with self.findings.looking_at("CIDR rule") as finding:
            rule = saved.ssh_open_to
            whose = "the proxy's" if self.proxied else "this machine's"
            change = (
                f"It is set at {self.base_url} under {PASTE_AT}: "
                f"Everywhere, My IP, or a rule that holds {whose} public address."
            )
            networks = _networks(rule)
            if not rule:
                finding.warn("the platform does not show which addresses may connect", change)
            elif any(network.prefixlen == 0 for network in networks):
                finding.seen = f"{rule}: every address may connect"
            elif not is_loopback(self.base_url):
                finding.warn(f"only {rule} may connect, and {whose} public address is not known here", change)
            elif any(ipaddress.ip_address("127.0.0.1") in network for network in networks):
                finding.seen = f"{rule}: this machine may connect"
            else:
                finding.fail(
                    f"only {rule} may connect, and this machine is 127.0.0.1", change, PlatformRefused.exit_code
                )


def _judge(finding: Finding, request: LeaseRequest, saved: SavedJob) -> None:
    """Say whether the job was saved as asked, but for the key and the rule, which are judged on their own."""
    finding.seen = f"{request.name}: saved, read back and deleted, never started"
    differs = [line for line in saved.differs if not line.startswith("publicKey")]
    hidden = [field for field in saved.not_echoed if field not in {"publicKey", "cidrRule"}]
    if differs:
        finding.fail(
            f"the platform saves it otherwise than asked: {'; '.join(differs)}",
            "Such a job would not be started; see what the account allows.",
            PlatformRefused.exit_code,
        )
    elif hidden:
        finding.warn(f"{finding.seen}; the platform does not show what it saved of {', '.join(hidden)}")


def _networks(rule: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """Return the networks that a rule names; what is no network names none."""
    found = []
    for part in rule.replace(",", " ").replace(";", " ").split():
        with contextlib.suppress(ValueError):
            found.append(ipaddress.ip_network(part, strict=False))
    return found
