"""The text of the command that holds a cluster: `sleep inf` as the child of a shell that watches for its driver."""

from __future__ import annotations

import base64
import binascii
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import timedelta

_MARGIN = 4
"""Ticks between the budget, which the shell counts, and the cap, which holds when the shell was killed."""

_HOST_KEY = "KEEPER-HOSTKEY"

# POSIX, and mostly the shell's own words: `read` and `echo` start no process, so the secret is in no command line.
# Ticks are counted and no clock is read: neither a wrong clock nor one that jumps ends a cluster or keeps it.
# `sleep` waits in the background because a shell runs a trap only after what is in the foreground has ended. What goes
# on in the background holds none of the shell's streams, or the platform would wait for its end.
_TEXT = """\
[ -z "${ZSH_VERSION:-}" ] || emulate sh
set +eu; umask 077; P=$PERSISTENT_RUNNER_PROOF; unset PERSISTENT_RUNNER_PROOF
D=$HOME/.persistent-runner/@NAME@ T=@TICK@ IDLE=@IDLE@ BUSY=@BUSY@ BUDGET=@BUDGET@ CAP=@CAP@
mkdir -p "$D" && cd "$D" || { echo "KEEPER-END cannot use $D"; exit 70; }
rm -rf stop keep beat tick ended proof proof.new ./*/running/*
[ -z "$P" ] || { echo "$P" >proof.new && mv proof.new proof; }
P=
for f in "${PERSISTENT_RUNNER_HOST_KEYS:-/etc/ssh}"/ssh_host_*_key.pub; do
  a= b=; [ -r "$f" ] && read -r a b c <"$f"
  [ -z "$b" ] || echo "@HOST_KEY@ @NAME@ $a $b"
done
command -v timeout >/dev/null 2>&1 || timeout() { exec sleep "$1"; }
S= K=
finish() {
  trap '' TERM INT HUP
  echo "$1" >ended; kill $S $K; wait $S
  echo "KEEPER-END $1"; exit 0
} 2>/dev/null
timeout "$CAP" sleep inf >/dev/null 2>&1 </dev/null & S=$!
trap 'finish signal' TERM INT HUP
echo "KEEPER-START @NAME@: tick $T s; ends after $IDLE ticks without a beat, $BUSY with a command, $BUDGET in all"
last=/ miss=0 age=0; { echo 0 >tick; } 2>/dev/null
while kill -0 "$S" 2>/dev/null; do
  sleep "$T" >/dev/null 2>&1 </dev/null & K=$!; wait "$K"; K=
  age=$((age+1)); { echo "$age" >tick; } 2>/dev/null
  cur=; [ -r beat ] && read -r cur 2>/dev/null <beat
  if [ -n "$cur" ] && [ "$cur" != "$last" ]; then last=$cur miss=0; else miss=$((miss+1)); fi
  k= b= lim=$IDLE; [ -r keep ] && read -r k b 2>/dev/null <keep
  [ "$b" = "$last" ] && case $k in ''|*[!0-9]*) ;; *) lim=$k ;; esac
  set -- */running/*; [ -e "$1" ] && lim=$BUSY
  [ -e stop ] && finish stop-asked
  [ "$miss" -ge "$lim" ] && finish no-heartbeat
  [ "$age" -ge "$BUDGET" ] && finish time-budget
done
S=
finish sleep-gone"""


@dataclass(frozen=True)
class Switch:
    """The numbers of a dead-man's switch, fixed when its job is submitted.

    Every `tick_seconds` the switch looks whether the beat has changed. It ends the job after `idle` looks in a row at
    the same beat, after `busy` of them while a command runs, and after `budget` looks in any case. Where the switch
    itself was killed, `sleep inf` ends `cap_seconds` after the start.
    """

    tick_seconds: float
    idle: int
    busy: int
    budget: int
    cap_seconds: int

    @classmethod
    def of(cls, *, tick: timedelta, idle: timedelta, busy: timedelta, budget: timedelta) -> Switch:
        """Return the switch with these times, rounded up to whole ticks; ValueError where one is not above zero."""
        if not all(time.total_seconds() > 0 for time in (tick, idle, busy, budget)):
            raise ValueError("a dead-man's switch needs times above zero")
        looks = -(-budget // tick)
        return cls(
            tick_seconds=tick.total_seconds(),
            idle=-(-idle // tick),
            busy=-(-busy // tick),
            budget=looks,
            cap_seconds=math.ceil((looks + _MARGIN) * tick.total_seconds()),
        )


def job_command(name: str, switch: Switch | None) -> str:
    """Return the command of a lease's job; without a switch it does nothing until it is stopped.

    With one it keeps `~/.persistent-runner/NAME/` on the head node: it reads `beat`, `keep` (`TICKS BEAT`: the idle
    limit in ticks as long as BEAT is the last that came), `stop` and `*/running/*`, writes `tick` (how many have
    passed), `ended` (why, before it ends) and `proof` (PERSISTENT_RUNNER_PROOF of the job's environment, 0600), and
    prints the machine's public host keys, which it finds in PERSISTENT_RUNNER_HOST_KEYS or /etc/ssh. It ends with code
    0, so that the platform sees a completed job and saves its files; with 70 where that folder cannot be used.

    `sleep inf` and `timeout` are GNU's and busybox's. Raises ValueError for a name that could leave comment and folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise ValueError(f"{name!r} cannot name a lease")
    if switch is None:
        # exec makes it the very process that the platform's stop ends
        return f"# persistent_runner lease {name}: sleep inf\nexec sleep inf"
    values = {
        "NAME": name,
        "HOST_KEY": _HOST_KEY,
        "TICK": _decimal(switch.tick_seconds),
        "IDLE": str(switch.idle),
        "BUSY": str(switch.busy),
        "BUDGET": str(switch.budget),
        "CAP": str(switch.cap_seconds),
    }
    text = re.sub(r"@([A-Z_]+)@", lambda found: values[found[1]], _TEXT)
    return f"# persistent_runner lease {name}: sleep inf under a dead-man's switch\n{text}"


def host_keys(log: str, name: str) -> list[str]:
    """Return the host keys (`ssh-ed25519 AAAA...`) that the command of the lease `name` printed into a job's log.

    The platform's log has a prefix on each line, quotes the command itself, and may end within a line: only a whole
    key counts.
    """
    found = re.findall(rf"{_HOST_KEY} {re.escape(name)} (\S+) (\S+)", log)
    return list(dict.fromkeys(f"{kind} {text}" for kind, text in found if _is_whole(kind, text)))


def _is_whole(kind: str, text: str) -> bool:
    """Return whether base64 text is a whole public key: fields with their lengths, the first its kind (RFC 4253)."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    fields = []
    while len(data) >= 4:
        size = 4 + int.from_bytes(data[:4], "big")
        fields.append(data[4:size])
        if len(data) < size:
            return False
        data = data[size:]
    return len(fields) > 1 and not data and fields[0] == kind.encode()


def _decimal(seconds: float) -> str:
    """Return what every `sleep` understands: no exponent, no point where none is needed."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")
