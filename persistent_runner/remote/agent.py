"""The program that runs on a node, inside the SSH channel that started it. Standard library, Python 3.6 or later, one file.

It claims commands (`mkdir`), starts each under a supervisor, reports exits and ends with its channel; supervisors see
their commands to the end all the same, and while there is an agent they take one after the other. Frames on stdin and
stdout: two big-endian 32-bit lengths, a JSON header, a body (`z`: 1 zlib, 2 zstd).

    run   attempt seq hash script env cores timeout stall files outputs inline follow seldom among  -> logs* exit
    kill  attempt seq                                                              -> done
    withdraw attempt seq                                                           -> done
    put   path mode offset size sha256 before parts, get path offset length, list attempt outputs checksums
    drop  attempt (in a quiet moment its directory goes, or the file of that name) -> done
    busy  node on (on a node that does not see this home something runs)           -> done
    ping  beat keep stop                                                           -> done tick ended

A lane (`"lane"`: the epoch of the agent that it stands beside) is a channel more for big files: it answers `put` and `get`
alone, in order, and packs what it reads as `pack` says.

An entry of `files` is [path, mode, size], its content in the body; that of a link (by its mode, as in git) is where it
leads. [path, mode, size, sha256] is a copy of ROOT/STUDY.RUN/static/SHA256, which was put there before: where it is
not, the answer is the exit `absent` and nothing was claimed.

A command with `among` starts while fewer than so many run here; until then it waits in this agent's memory, unclaimed,
and it starts the moment one ends. To withdraw a command is to claim it for nobody: no agent starts it any more.

Layout: ROOT/STUDY.RUN/ATTEMPT/ is the working directory of an attempt, ATTEMPT/.attempt/SEQ/ holds `command.json`,
`pid`, `log`, `kill` and `exit.json` of a command. ~/.persistent-runner/LEASE/NODE/ holds `running/` and `epoch/`;
LEASE/ itself is where the job's dead-man's switch reads `beat`, `keep` and `stop`, and writes `tick` and `ended`. An
agent without a run (`"run": ""`) answers pings alone and makes no other folder.

Text is what the file system's own encoding makes of the bytes, here and in the frames: with surrogate escapes a node
in the C locale keeps every name as it is.
"""

import errno
import gc
import glob
import hashlib
import json
import os
import re
import select
import shutil
import signal
import socket
import stat
import struct
import sys
import time
import zlib
from typing import Any, BinaryIO, Dict, Iterable, Iterator, List, Optional, Pattern, Set, Tuple

SAY_LINE = """trap 'echo "persistent_runner: line $LINENO failed: $BASH_COMMAND" >&2' ERR; """  # for people
CLAIM_WITHOUT_PID = 2.0  # seconds after which a claim whose supervisor never wrote its pid is lost
POLL = 0.05  # seconds between two looks at what no descriptor reports
MARKER = "PERSISTENT_RUNNER_COMMAND"
NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)  # what is written to a dead child is an error, and not our end
AGAIN = b"x"  # a supervisor's word that its command has ended, and that it stands by
CAN_DRAIN = hasattr(signal, "sigtimedwait")  # not on macOS: there is a supervisor for each command
QUIET = 0.005  # seconds without a word after which there is time for what no command waits for
DROPS = 32  # acknowledgements that one child answers together
DROP_WAITS = 15.0  # seconds beyond its grace for a command to end whose directory goes
SENT_BY_OTHERS = (128 + signal.SIGTERM, 128 + signal.SIGKILL)  # exit codes
DOWN_SECONDS = 0.3  # after such an end, in which the same may come to its supervisor
PART = ".pr-part"  # what a file is called until it is whole, behind its name: no solver calls one so
CHUNK = 1 << 18  # bytes
BEAT = re.compile(r"[A-Za-z0-9.-]{1,80}\Z")
FILE_INLINE = 1 << 16  # bytes of one file that may travel in the exit frame
LOG_TAIL = 1 << 16  # bytes of the log that travel in the exit frame
OFTEN = 0.3  # seconds between two looks at the logs that somebody reads line by line
SELDOM = 1.0  # seconds between two looks at the logs that nobody reads line by line, and before the first one
SELDOM_EACH, SELDOM_ALL = 1 << 14, 1 << 17  # bytes of one such log, and of all of them, in one frame
LONG_FILE = 1 << 24  # bytes from which on the checksum of a file that arrived is made aside
STATIC = "static"  # the folder of big inputs, each named by its checksum
FICLONE = 0x40049409  # ioctl of Linux: let a file share another one's blocks until one of them is written
COPIED = 1 << 26  # bytes of a copy between two looks whether it is still wanted
LANE_IDLE = 60.0  # seconds after which a lane that is asked nothing ends
ZLIB, ZSTD = 1, 2
SAMPLES, SAMPLE, SAMPLE_OF = 8, 1 << 9, 1 << 15  # so many pieces of so many bytes tell whether a body this long shrinks

HAS_PROC = os.path.exists("/proc/self/stat")

Reply = Tuple[Dict[str, Any], bytes]


# ---------------------------------------------------------------- processes


def boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as f:
            return f.read().strip()
    except (IOError, OSError):
        return ""


BOOT = boot_id()


def process_stat(pid: int) -> Optional[Tuple[str, int, str]]:
    """(state, parent pid, start time) of a process; None when there is none."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[1]), fields[19].decode()
    except (IOError, OSError, IndexError):
        return None


def is_alive(record: Dict[str, Any]) -> bool:
    """Whether the very process of a `pid` record still runs: a reused pid, another boot and a zombie are dead."""
    if not HAS_PROC:
        try:
            os.kill(record["pid"], 0)
        except OSError as e:
            return e.errno == errno.EPERM
        return True
    found = process_stat(record["pid"])
    return found is not None and record["boot"] == BOOT and found[2] == record["started"] and found[0] not in "ZX"


def all_parents() -> Dict[int, int]:
    """{pid: parent pid} of every process that is not a zombie."""
    if HAS_PROC:
        found = {}
        for name in os.listdir("/proc"):
            if name.isdigit():
                s = process_stat(int(name))
                if s and s[0] not in "ZX":
                    found[int(name)] = s[1]
        return found
    import subprocess  # not above: it brings threading, whose work after each fork takes as long as the fork

    out = subprocess.check_output(["ps", "-A", "-o", "pid=,ppid=,state="]).decode("ascii", "replace")
    rows = (line.split() for line in out.splitlines())
    return dict((int(r[0]), int(r[1])) for r in rows if len(r) == 3 and not r[2].startswith("Z"))


def descendants(root: int) -> Set[int]:
    parents = all_parents()
    found, grown = {root}, True
    while grown:
        more = set(p for p, parent in parents.items() if parent in found and p not in found)
        found |= more
        grown = bool(more)
    found.discard(root)
    return found


def marked(command: str) -> Set[int]:
    """Processes that carry a command's marker: what is left of it when its supervisor was killed."""
    found, wanted = set(), os.fsencode("%s=%s" % (MARKER, command))
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            with open(path, "rb") as f:
                if wanted in f.read().split(b"\0"):
                    found.add(int(path.split("/")[2]))
        except (IOError, OSError):
            pass
    found.discard(os.getpid())
    return found


def send_signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:
            pass


# ---------------------------------------------------------------- files


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while len(view):
        view = view[os.write(fd, view) :]


def write_file(path: str, data: bytes, mode: int = 0o600) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        write_all(fd, data)
    finally:
        os.close(fd)


def write_whole(path: str, data: bytes, mode: int = 0o600) -> None:
    """Write under a temporary name, then rename: a reader sees all of it or nothing."""
    new = "%s.%d.new" % (path, os.getpid())
    try:
        write_file(new, data, mode)
        os.rename(new, path)
    except BaseException:
        remove(new)
        raise


class Unwanted(Exception):
    """A copy was given up: the command that needs it is to end."""


def clone(source: BinaryIO, target: BinaryIO) -> bool:
    """Share the blocks of a file, where the file system can; whether it did."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        import fcntl

        fcntl.ioctl(target.fileno(), FICLONE, source.fileno())
    except (ImportError, IOError, OSError):
        return False
    return True


def copy_bytes(source: BinaryIO, target: BinaryIO, unwanted: str) -> None:
    """Copy a file, by the kernel where it can; Unwanted as soon as a file named `unwanted` is there."""
    in_kernel = hasattr(os, "copy_file_range")
    while not os.path.exists(unwanted):
        if in_kernel:
            try:
                if os.copy_file_range(source.fileno(), target.fileno(), COPIED):
                    continue
            except OSError:  # between these two file systems it cannot; what there is no room for, write() says
                pass
            in_kernel = False  # at the end, or where it cannot; what is left from there is read and written
        data = source.read(CHUNK)
        if not data:
            return
        target.write(data)
    raise Unwanted


def copy_whole(source: str, target: str, mode: int, unwanted: str) -> None:
    """Make a file of its own with another one's content, whole or not at all: who writes to it changes no other."""
    new = "%s.%d.new" % (target, os.getpid())
    try:
        with open(source, "rb") as f, open(new, "wb") as g:
            if not clone(f, g):
                copy_bytes(f, g, unwanted)
        os.chmod(new, mode)
        os.rename(new, target)
    except BaseException:
        remove(new)
        raise


def read_json(path: str) -> Any:
    try:
        with open(path, "rb") as f:
            return json.loads(f.read().decode("utf-8"))
    except (IOError, OSError, ValueError):
        return None


def open_regular(path: str) -> BinaryIO:
    """Open a file that is neither a link nor a device nor a pipe, which could keep a reader waiting."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0))
    f = os.fdopen(fd, "rb") if stat.S_ISREG(os.fstat(fd).st_mode) else None
    if f is None:
        os.close(fd)
        raise ValueError("%s is not a regular file" % path)
    return f


def sha256(path: str) -> str:
    h = hashlib.sha256()
    with open_regular(path) as f:
        most = min(1 << 20, os.fstat(f.fileno()).st_size + 1)  # room for more would have to be mapped
        for block in iter(lambda: f.read(most), b""):
            h.update(block)
    return h.hexdigest()


def read_at(path: str, offset: int, length: int) -> bytes:
    """A piece of a file; empty where there is none, or no file."""
    try:
        with open_regular(path) as f:
            f.seek(offset)
            return f.read(length)
    except (IOError, OSError, ValueError):
        return b""


def newest(path: str, start: int, most: int) -> Tuple[int, bytes]:
    """(offset, bytes) of what a log has from `start` on: of more than `most` the last whole lines."""
    try:
        size = os.stat(path).st_size
    except OSError:
        return start, b""
    offset = max(start, size - most)
    data = read_at(path, offset, size - offset) if size > offset else b""
    cut = data.find(b"\n", 0, len(data) - 1) + 1 if offset > start else 0
    return offset + cut, data[cut:]


def is_pattern(text: str) -> bool:
    return re.search(r"[*?\[]", text) is not None


def pattern(text: str) -> Pattern[str]:
    """A regular expression for a glob: `**/` any folders, `*`, `?` and `[...]` within one name."""
    out, i = "", 0
    while i < len(text):
        group = re.compile(r"\[(!?)(\]?[^\]]*)\]").match(text, i)
        if text.startswith("**/", i):
            out, i = out + "(?:.*/)?", i + 3
        elif group:
            chosen = re.sub(r"([\\\[&~|^])", r"\\\1", group.group(2))
            out, i = out + "(?!/)[" + ("^" if group.group(1) else "") + chosen + "]", group.end()
        elif text[i] == "*":
            out, i = out + "[^/]*", i + 1
        elif text[i] == "?":
            out, i = out + "[^/]", i + 1
        else:
            out, i = out + re.escape(text[i]), i + 1
    return re.compile("(?s)" + out + r"\Z")


def plain_path(root: str, relative: str) -> str:
    """root/relative when no part of it is a link or climbs out; ValueError otherwise."""
    parts = relative.split("/")
    if not relative or relative.startswith("/") or "\0" in relative or any(p in ("", ".", "..") for p in parts):
        raise ValueError("%r is not a path below the attempt's folder" % relative)
    path = root
    for part in parts[:-1]:
        path = os.path.join(path, part)
        if os.path.islink(path):
            raise ValueError("%r leads through a symbolic link" % relative)
    return os.path.join(path, parts[-1])


def outputs_of(folder: str, patterns: List[str]) -> List[Tuple[str, os.stat_result]]:
    """[relative path, lstat] of what the patterns name, in the patterns' order; links are not followed."""
    found = {}  # type: Dict[str, Tuple[int, os.stat_result]]
    wild = [(n, pattern(p)) for n, p in enumerate(patterns) if is_pattern(p)]
    for n, p in enumerate(patterns):
        if not is_pattern(p):
            try:
                found.setdefault(p, (n, os.lstat(plain_path(folder, p))))
            except (OSError, ValueError):
                pass
    if wild:
        for top, folders, files in os.walk(folder):
            if top == folder and ".attempt" in folders:
                folders.remove(".attempt")
            for name in files + [d for d in folders if os.path.islink(os.path.join(top, d))]:
                path = os.path.join(top, name)
                relative = os.path.relpath(path, folder).replace(os.sep, "/")
                for n, expression in wild:
                    if relative not in found and expression.match(relative):
                        try:
                            found[relative] = (n, os.lstat(path))
                        except OSError:  # it went while we looked
                            pass
    return [(path, found[path][1]) for path in sorted(found, key=lambda p: (found[p][0], p))]


def manifest_of(folder: str, patterns: List[str], checksums: bool = True) -> List[Dict[str, Any]]:
    """[{path, size, sha256 | problem}] of the outputs: regular files alone have a checksum."""
    entries = []
    for path, st in outputs_of(folder, patterns):
        entry = {"path": path, "size": st.st_size}  # type: Dict[str, Any]
        try:
            os.fsencode(path).decode("utf-8")
            if stat.S_ISLNK(st.st_mode):
                entry["problem"] = "a symbolic link"
            elif not stat.S_ISREG(st.st_mode):
                entry["problem"] = "not a regular file"
            elif checksums:
                entry["sha256"] = sha256(os.path.join(folder, path))
        except (IOError, OSError) as e:
            entry["problem"] = "unreadable (%s)" % os.strerror(e.errno or errno.EIO)
        except UnicodeDecodeError:
            entry = {"path": ascii(path), "size": st.st_size, "problem": "named in another encoding than UTF-8"}
        except ValueError:
            entry["problem"] = "not a regular file"
        entries.append(entry)
    return entries


# ---------------------------------------------------------------- packing


def library_zstd() -> Any:
    """(compress, decompress) of the system's libzstd, called directly: a program for each piece would cost more."""
    import ctypes

    lib = ctypes.CDLL("libzstd.so.1")
    size, text = ctypes.c_size_t, ctypes.c_char_p
    lib.ZSTD_compressBound.argtypes, lib.ZSTD_compressBound.restype = [size], size
    lib.ZSTD_compress.argtypes, lib.ZSTD_compress.restype = [text, size, text, size, ctypes.c_int], size
    lib.ZSTD_decompress.argtypes, lib.ZSTD_decompress.restype = [text, size, text, size], size
    lib.ZSTD_getFrameContentSize.argtypes, lib.ZSTD_getFrameContentSize.restype = [text, size], ctypes.c_ulonglong
    lib.ZSTD_isError.argtypes, lib.ZSTD_isError.restype = [size], ctypes.c_uint

    def made(buffer: Any, count: int) -> bytes:
        if lib.ZSTD_isError(count):
            raise ValueError("zstd cannot read what came")
        return ctypes.string_at(buffer, count)

    def compress(data: bytes) -> bytes:
        buffer = ctypes.create_string_buffer(lib.ZSTD_compressBound(len(data)))
        return made(buffer, lib.ZSTD_compress(buffer, len(buffer), data, len(data), 1))

    def decompress(data: bytes) -> bytes:
        whole = lib.ZSTD_getFrameContentSize(data, len(data))
        if whole > 1 << 30:
            raise ValueError("zstd cannot read what came")
        buffer = ctypes.create_string_buffer(whole + 1)
        return made(buffer, lib.ZSTD_decompress(buffer, whole, data, len(data)))

    return compress, decompress


def find_zstd() -> Any:
    """(compress, decompress) of Python 3.14 or of the system's library; None where the node has neither."""
    try:
        zstd = __import__("compression.zstd", fromlist=["zstd"])
        return lambda data: zstd.compress(data, 1), zstd.decompress
    except ImportError:
        pass
    try:
        return library_zstd()
    except (ImportError, OSError, AttributeError):
        return None


def shrinks(body: bytes) -> bool:
    """Whether it is worth it to compress a body: a long one is tried in samples, of noise 64 KB take a millisecond."""
    if len(body) < SAMPLE_OF:
        return len(body) > 512
    step = len(body) // SAMPLES
    sample = b"".join(body[at : at + SAMPLE] for at in range(step // 2, len(body) - SAMPLE, step))
    return len(zlib.compress(sample, 1)) < 0.9 * len(sample)


def pack(body: bytes, zstd: Any = None) -> Tuple[int, bytes]:
    """(`z`, bytes) of a body, compressed where that is worth it."""
    if not shrinks(body):
        return 0, body
    z, packed = (ZSTD, zstd[0](body)) if zstd else (ZLIB, zlib.compress(body, 1))
    return (z, packed) if len(packed) < len(body) else (0, body)


# ---------------------------------------------------------------- the supervisor of a command

try:  # here, once: in each supervisor it would cost some milliseconds
    import ctypes

    PRCTL = ctypes.CDLL(None).prctl  # type: Any
except (ImportError, OSError, AttributeError, TypeError):  # TypeError is Windows: its driver imports this file too
    PRCTL = None


def become_subreaper() -> None:
    """Orphans of the command come to this process, so that none is left behind (Linux)."""
    if PRCTL is not None:
        PRCTL(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def close_inherited(keep: Set[int]) -> None:
    """Close what came with the fork: an inherited descriptor of the channel would hold it open."""
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        names = [str(n) for n in range(256)]
    close_all(fd for fd in [int(n) for n in names] if fd not in keep)


def close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            pass


def sweep(number: int, until: float) -> bool:
    """Signal each process of the tree once and reap until none is left or `until` is past; whether all are gone."""
    told = set()  # type: Set[int]
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except OSError:
            return True
        new = descendants(os.getpid()) - told
        send_signal(new, number)
        told |= new
        left = until - time.monotonic()
        if left <= 0:
            return False
        wait_signal([signal.SIGCHLD], min(left, POLL))


def wait_signal(numbers: List[signal.Signals], seconds: float) -> int:
    """Wait for one of these blocked signals; its number, 0 when none came."""
    if hasattr(signal, "sigtimedwait"):
        got = signal.sigtimedwait(numbers, seconds)
        return got.si_signo if got else 0
    time.sleep(min(seconds, POLL))  # macOS
    return max(signal.sigpending() & set(numbers), default=0)


def spawn(argv: List[str], env: Dict[str, str], work: str, umask: int) -> int:
    """Start a command as the leader of a process group, with nothing of this supervisor's signals and mask; its pid."""
    defaults = [signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM, signal.SIGXFSZ]  # Python ignores the last
    os.chdir(work)
    ours = os.umask(umask)
    try:
        if hasattr(os, "posix_spawn"):  # copies none of our memory, which a fork does twice over, page by page
            program = shutil.which(argv[0], path=env.get("PATH")) or argv[0]
            return os.posix_spawn(program, argv, env, setpgroup=0, setsigmask=[], setsigdef=defaults)
        child = os.fork()  # Python 3.7 and older
        if child == 0:
            try:
                os.setpgid(0, 0)
                for number in defaults:
                    signal.signal(number, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_SETMASK, [])
                os.execvpe(argv[0], argv, env)
            except (OSError, ValueError) as e:
                os.write(2, os.fsencode("cannot start %s: %s\n" % (argv[0], e)))
            finally:
                os._exit(127)
        return child
    finally:
        os.umask(ours)


def run_tree(
    argv: List[str],
    env: Dict[str, str],
    work: str,
    umask: int,
    timeout: Optional[float],
    stall: Optional[float],
    grace: float,
) -> Tuple[str, int, int, bool]:
    """Run a command and see its whole tree gone: (state, exit code, peak bytes of one process, whether it is gone).

    It is ended after `timeout` seconds, and after `stall` seconds in which the log, which is fd 1, has not grown.
    """
    try:
        child = spawn(argv, env, work, umask)
    except (OSError, ValueError) as e:
        os.write(2, os.fsencode("cannot start %s: %s\n" % (argv[0], e)))
        return "done", 127, 0, True
    status, peak, state = None, 0, "done"  # type: Optional[int], int, str
    begun = grown = time.monotonic()
    printed = 0
    while True:
        left = stall / 8 if stall else 3600.0  # by so much a stall is noticed late
        if timeout:
            left = max(0.0, min(left, begun + timeout - time.monotonic()))
        asked = wait_signal([signal.SIGTERM, signal.SIGCHLD], left) == signal.SIGTERM
        while True:  # the command, and orphans that came to this subreaper
            try:
                pid, code, used = os.wait4(-1, os.WNOHANG)
            except OSError:
                break
            if not pid:
                break
            if pid == child:
                status, peak = code, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if status is not None:
            break
        now, size = time.monotonic(), os.fstat(1).st_size
        if size != printed:
            printed, grown = size, now
        if asked or (timeout and now >= begun + timeout):
            state = "killed" if asked else "timeout"
            break
        if stall and now >= grown + stall:
            state = "stalled"
            break
    code = 128 + signal.SIGTERM
    if status is not None:
        code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        # A machine that goes down ends everything, in any order: then it was none of the command's own ends.
        if code in SENT_BY_OTHERS and (asked or wait_signal([signal.SIGTERM], DOWN_SECONDS)):
            state = "killed"
    gone = sweep(signal.SIGTERM, time.monotonic() + grace) or sweep(signal.SIGKILL, time.monotonic() + 10)
    return state, code, peak, gone


def stand_by(agent: socket.socket, others: List[int]) -> None:
    """See the agent's commands to their ends, one after the other; without one end with the agent.

    `others` are the descriptors of the agent that nobody here has a use for.
    """
    os.setsid()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):  # that of the channel would hold it open
        os.dup2(null, fd)
    close_all(others + [null])
    become_subreaper()
    started = (process_stat(os.getpid()) or ("", 0, ""))[2]
    record = json.dumps({"pid": os.getpid(), "started": started, "boot": BOOT}).encode()
    manifest_of("/proc/self", ["stat"])  # copies the memory that this touches now, and not while a result waits
    for word in agent.makefile("rb"):
        request = json.loads(word.decode())
        newer = request.pop("newer")
        if not supervise(record, agent.fileno(), **request):
            return
        os.chdir("/")
        for fd in (1, 2):  # the log
            os.dup2(0, fd)
        if os.path.exists(newer):  # who has joined that command there waits for our end, or has found the record
            return
        os.write(agent.fileno(), AGAIN)


def supervise(
    record: bytes,
    report: int,
    where: str,
    work: str,
    argv: List[str],
    env: Dict[str, str],
    umask: int,
    timeout: Optional[float],
    stall: Optional[float],
    patterns: List[str],
    grace: float,
    running: str,
    copies: List[Tuple[str, str, int]],
) -> bool:
    """See one command to its end, whatever becomes of the agent, and write its record; whether nothing is left of it.

    `copies` are (source, target, mode) of the big inputs that it finds in its working directory.
    """
    while CAN_DRAIN and wait_signal([signal.SIGTERM, signal.SIGCHLD], 0):
        pass  # what was meant for the command before
    try:
        spare = os.path.join(where, "exit.spare")
        log = os.open(os.path.join(where, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        write_file(spare, b" " * 4096)  # room for the record of a command that fills the disk
        write_whole(os.path.join(where, "pid"), record)
        remove(running)
        try:
            os.link(
                os.path.join(where, "pid"), running
            )  # some file systems take long for each file that comes and goes
        except OSError:  # the home is another file system
            write_file(running, record)
    except (IOError, OSError) as e:  # there is no room even for the record that would say so
        os.write(report, json.dumps(refused(e, work)).encode())
        remove(running)
        return False
    unwanted = os.path.join(where, "kill")
    refusal = None
    try:
        for source, target, mode in copies:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            copy_whole(source, target, mode, unwanted)
    except Unwanted:
        pass
    except (IOError, OSError) as e:
        refusal = refused(e, work)
    begun = time.monotonic()
    if refusal or os.path.exists(unwanted):  # asked for before there was a pid, or a copy of its inputs
        state, code, peak, is_all_gone = "killed", 128 + signal.SIGTERM, 0, True
    else:
        state, code, peak, is_all_gone = run_tree(argv, env, work, umask, timeout, stall, grace)
    ended = {"state": state, "code": code, "seconds": time.monotonic() - begun, "peak_bytes": peak}
    ended["manifest"] = manifest_of(work, patterns) if refusal is None else []
    if refusal is not None:
        ended["refusal"] = refusal
    fill_spare(spare, ended)
    os.rename(spare, os.path.join(where, "exit.json"))
    remove(running)
    return is_all_gone and CAN_DRAIN


def fill_spare(spare: str, ended: Dict[str, Any]) -> None:
    """Write an exit record into the room that was kept for it; on a full disk with null for its manifest."""
    fd = os.open(spare, os.O_WRONLY)
    try:
        record = json.dumps(ended).encode()
        try:
            write_all(fd, record)
        except OSError:
            record = json.dumps(dict(ended, manifest=None)).encode()
            os.lseek(fd, 0, os.SEEK_SET)
            write_all(fd, record)
        os.ftruncate(fd, len(record))
    finally:
        os.close(fd)


def remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def ask_to_end(where: str) -> bool:
    """End a command: word for a supervisor that has not begun yet, a signal for one that has; whether there is one."""
    if os.path.exists(os.path.join(where, "exit.json")):
        return True  # its supervisor may be at another command
    try:
        write_whole(os.path.join(where, "kill"), b"")
    except OSError:  # no room for it
        pass
    record = read_json(os.path.join(where, "pid"))
    if record is not None and is_alive(record):
        send_signal([record["pid"]], signal.SIGTERM)
    return record is not None


def is_full(e: BaseException) -> bool:
    return getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def refused(e: BaseException, folder: str) -> Dict[str, Any]:
    """The answer that says why a request was not carried out, and how much room a full disk has."""
    number = getattr(e, "errno", None)
    text = ": ".join(filter(None, [os.strerror(number), getattr(e, "filename", None)])) if number else repr(e)
    if is_full(e):
        text += room(os.path.dirname(getattr(e, "filename", None) or "") or folder)
    kind = "disk" if is_full(e) else "refused"
    return {"t": "error", "kind": kind, "text": str(e) if isinstance(e, ValueError) else text}


def room(folder: str) -> str:
    """How much of a file system is free, in words; empty where it does not say."""
    while not os.path.isdir(folder) and len(folder) > 1:
        folder = os.path.dirname(folder)
    try:
        found = os.statvfs(folder)
    except OSError:
        return ""
    free, whole = (n * found.f_frsize / 1e6 for n in (found.f_bavail, found.f_blocks))
    files = ", and no file more can be made there" if found.f_files and not found.f_favail else ""
    return "; %.1f of %.1f MB are free in %s%s" % (free, whole, folder, files)


# ---------------------------------------------------------------- the agent


def read_exactly(source: BinaryIO, size: int) -> bytes:
    """The next bytes; fewer at the end, or when nothing came for long."""
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size and select.select([source], [], [], LANE_IDLE)[0]:
        got = source.readinto(view[at:])  # type: ignore[attr-defined]
        if not got:
            break
        at += got
    return bytes(data) if at == size else b""


def reap() -> None:
    """Take the exit of children that are done, so that none stays a zombie."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except OSError:
        pass


def ends_long_file(header: Dict[str, Any], body: bytes) -> bool:
    """Whether a request is the last piece of a file whose checksum takes a while."""
    return bool(header["t"] == "put" and LONG_FILE <= header["size"] == header["offset"] + len(body))


class Watch(object):
    """A command that this agent reports on: `fd` becomes readable at its end (None: look every POLL).

    `supervisor` is its own one's end of the line; that of another agent's is not known.
    """

    def __init__(
        self, command: str, where: str, work: str, request: Dict[str, Any], supervisor: Optional[socket.socket] = None
    ) -> None:
        self.command, self.where, self.work, self.request = command, where, work, request
        self.supervisor, self.fd = supervisor, supervisor.fileno() if supervisor else None  # type: Any, Optional[int]
        self.since = time.monotonic()
        self.sent = request.get("follow")  # type: Optional[int]  # bytes of the log that the driver has; None: no log
        self.seldom = self.sent is not None and bool(request.get("seldom"))
        self.is_other = False  # than the one that was asked for

    def is_over(self) -> bool:
        """Whether the exit record is there, or never will be."""
        if os.path.exists(os.path.join(self.where, "exit.json")):
            return True
        record = read_json(os.path.join(self.where, "pid"))
        if record is None:  # a late supervisor finds the word of it and does not begin
            return time.monotonic() - self.since > CLAIM_WITHOUT_PID and not ask_to_end(self.where)
        return not is_alive(record)


class Agent(object):
    def __init__(self, config: Dict[str, Any]) -> None:
        self.umask = os.umask(0o077)  # of the login; commands get it back
        self.config = config
        home = os.path.expanduser("~")
        self.lease = os.path.join(home, ".persistent-runner", config["lease"])
        os.makedirs(self.lease, exist_ok=True)
        self.root, self.epoch = "", 0
        self.zstd = find_zstd()
        if config.get("lane"):
            self.find_place(home)
            self.epoch = config["lane"]
        elif config["run"]:
            self.take_over(home)
        self.env = dict(os.environ)
        self.env.pop("PERSISTENT_RUNNER_PROOF", None)
        self.shell = next(
            ((s, o) for s, o in (("bash", "set -eo pipefail; " + SAY_LINE), ("sh", "set -e\n")) if shutil.which(s)),
            None,
        )
        self.watches = {}  # type: Dict[int, Watch]  # by request
        self.staged = {}  # type: Dict[int, Reply]  # by request, oldest first: commands that wait for one to end
        self.asides = {}  # type: Dict[int, Tuple[List[int], bytearray]]  # by descriptor: requests, answers so far
        self.drops = []  # type: List[Reply]  # requests that wait until there is nothing else to do
        self.free = []  # type: List[socket.socket]  # supervisors that stand by
        self.incoming = bytearray()
        self.next_often = self.next_seldom = 0.0

    def find_place(self, home: str) -> None:
        shared = os.path.join(home, "work", "shared")
        base = os.environ.get("RESCALE_WORK_PATH") or (shared if os.path.isdir(shared) else os.path.join(home, "work"))
        self.root = os.path.join(os.path.abspath(base), self.config["run"])
        self.node = os.path.join(self.lease, self.config["node"])
        self.running = os.path.join(self.node, "running")

    def take_over(self, home: str) -> None:
        """Make the folders of this run, and become the agent that starts commands on this node."""
        self.find_place(home)
        for folder in (self.root, self.running, os.path.join(self.node, "epoch")):
            os.makedirs(folder, exist_ok=True)
        self.epoch = self.take_epoch()
        self.forget_the_dead()

    def take_epoch(self) -> int:
        folder = os.path.join(self.node, "epoch")
        while True:
            number = max([int(n) for n in os.listdir(folder)] or [0]) + 1
            try:
                os.mkdir(os.path.join(folder, str(number)))
                return number
            except FileExistsError:
                pass

    def forget_the_dead(self) -> None:
        """Take away entries of supervisors that were killed: nothing runs there, whatever they say."""
        for name in os.listdir(self.running):
            path = os.path.join(self.running, name)
            record = read_json(path)
            if record is not None and not is_alive(record):
                remove(path)

    @property
    def newer(self) -> str:
        """What is there once a newer agent has taken over this node."""
        return os.path.join(self.node, "epoch", str(self.epoch + 1))

    def is_superseded(self) -> bool:
        return os.path.exists(self.newer)

    # -- frames

    def frame(self, header: Dict[str, Any], body: bytes = b"", zstd: Any = None) -> bytes:
        z, body = pack(body, zstd)
        if z:
            header = dict(header, z=z)
        head = os.fsencode(json.dumps(header, ensure_ascii=False))
        return struct.pack(">II", len(head), len(body)) + head + body

    def send(self, header: Dict[str, Any], body: bytes = b"") -> None:
        write_all(1, self.frame(header, body))

    def frames(self) -> Iterator[Reply]:
        """Yield (header, body) of each whole frame that has come in."""
        while len(self.incoming) >= 8:
            head, body = struct.unpack(">II", bytes(self.incoming[:8]))
            if len(self.incoming) < 8 + head + body:
                return
            header = json.loads(os.fsdecode(bytes(self.incoming[8 : 8 + head])))
            content = bytes(self.incoming[8 + head : 8 + head + body])
            del self.incoming[: 8 + head + body]
            yield header, zlib.decompress(content) if header.get("z") else content

    def serve(self) -> None:
        write_all(1, b"\n" + self.config["nonce"].encode() + b"\n")
        self.send(
            {
                "t": "hello",
                "epoch": self.epoch,
                "root": self.root,
                "boot": BOOT,
                "host": socket.gethostname(),
                "python": sys.version.split()[0],
                "cores": os.cpu_count() or 1,
                "sees_head": os.path.isdir(os.path.join(self.lease, self.config["head"], "epoch")),
                "zstd": self.zstd is not None,
            }
        )
        if self.config.get("lane"):
            self.serve_lane()
            return
        while True:
            by_fd = dict((watch.fd, request_id) for request_id, watch in self.watches.items() if watch.fd is not None)
            poll = select.poll()
            for fd in [0] + list(by_fd) + list(self.asides):
                poll.register(fd, select.POLLIN)
            ready = set(fd for fd, _ in poll.poll(self.patience()))
            is_quiet = not ready
            for fd in ready:
                if fd in by_fd:
                    self.report(by_fd[fd])
                elif fd in self.asides:
                    self.forward(fd)
            self.send_logs(self.watches)
            for request_id, watch in list(self.watches.items()):
                if watch.fd is None and watch.is_over():
                    self.report(request_id)
            reap()
            if 0 in ready:
                data = os.read(0, CHUNK)
                if not data:
                    if self.drops:
                        self.answer_aside(self.drops)
                    return
                self.incoming += data
                for header, body in self.frames():
                    if header["t"] == "drop":
                        self.drops.append((header, body))
                    elif header["t"] == "list" or ends_long_file(header, body):
                        self.answer_aside([(header, body)])
                    else:
                        reply = self.answer(header, body)
                        if reply is not None:
                            self.send(*reply)
            try:
                if self.drops and (is_quiet or len(self.drops) >= DROPS):
                    self.answer_aside(self.drops)
                    self.drops = []
                if is_quiet and self.lacks_supervisor:
                    self.free.append(self.supervisor())
            except OSError:  # there is no process to be had now
                time.sleep(POLL)

    @property
    def lacks_supervisor(self) -> bool:
        return not self.free and bool(self.config["run"])

    def serve_lane(self) -> None:
        """Answer one request after the other, until the driver goes or asks nothing for a while."""
        source = os.fdopen(0, "rb", 0)
        while True:
            lengths = read_exactly(source, 8)
            head = read_exactly(source, struct.unpack(">II", lengths)[0]) if lengths else b""
            if not lengths or not head:
                return
            header = json.loads(os.fsdecode(bytes(head)))
            size = struct.unpack(">II", lengths)[1]
            body = read_exactly(source, size)
            if len(body) < size:
                return
            if header.get("z"):
                body = zlib.decompress(body) if header["z"] == ZLIB else self.zstd[1](body)
            if header["t"] not in ("get", "put"):
                header["t"] = "refused"
            reply = self.answer(header, body)
            if reply is not None:
                write_all(1, self.frame(reply[0], reply[1], self.zstd if header.get("pack") == ZSTD else None))

    def do_refused(self, header: Dict[str, Any], body: bytes) -> Reply:
        raise ValueError("a lane answers get and put alone")

    def patience(self) -> Optional[float]:
        """How many milliseconds to wait for a descriptor; None: for ever."""
        if self.drops or self.lacks_supervisor:
            return QUIET * 1000
        if any(w.fd is None for w in self.watches.values()):
            return POLL * 1000
        followed = [
            self.next_seldom if w.seldom else self.next_often for w in self.watches.values() if w.sent is not None
        ]
        return max(0.0, min(followed) - time.monotonic()) * 1000 + 1 if followed else None

    def answer(self, header: Dict[str, Any], body: bytes) -> Optional[Reply]:
        try:
            if header["t"] != "ping" and not self.config["run"]:
                raise ValueError("this agent answers pings alone")
            reply = getattr(self, "do_" + header["t"])(header, body)  # type: Optional[Reply]
        except Exception as e:  # one bad request must not end the agent: it would come again to the next one
            reply = refused(e, self.folder_of(header)), b""
        return None if reply is None else (dict(reply[0], id=header["id"]), reply[1])

    def answer_aside(self, requests: List[Reply]) -> None:
        """Answer what may take minutes in a child, while the agent goes on."""
        reads, writes = os.pipe()
        try:
            if os.fork() == 0:
                try:
                    close_inherited({writes})
                    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # it outlives the agent
                    for header, body in requests:
                        answer = self.frame(*(self.answer(header, body) or ({}, b"")))
                        try:
                            write_all(writes, answer)
                        except OSError:
                            pass
                finally:
                    os._exit(0)
        except OSError:
            os.close(reads)
            raise
        finally:
            os.close(writes)
        self.asides[reads] = ([header["id"] for header, _ in requests], bytearray())

    def forward(self, fd: int) -> None:
        """Pass each answer of a child on that is whole."""
        waiting, answers = self.asides[fd]
        data = os.read(fd, CHUNK)
        answers += data
        while waiting and len(answers) >= 8:
            size = 8 + sum(struct.unpack(">II", bytes(answers[:8])))
            if len(answers) < size:
                break
            write_all(1, bytes(answers[:size]))
            del answers[:size], waiting[0]
        if data:
            return
        os.close(fd)
        del self.asides[fd]
        for request_id in waiting:
            self.send({"t": "error", "id": request_id, "kind": "refused", "text": "the answer was cut off on the node"})

    # -- requests

    def place(self, header: Dict[str, Any]) -> Tuple[str, str]:
        """(working directory, record directory) of the command that a request names."""
        work = plain_path(self.root, header["attempt"])
        return work, os.path.join(work, ".attempt", str(int(header["seq"])))

    def folder_of(self, header: Dict[str, Any]) -> str:
        """The folder that a request is about, as far as there is one."""
        name = str(header.get("attempt") or os.path.dirname(str(header.get("path") or "")))
        return os.path.join(self.root or self.lease, name)

    def do_run(self, header: Dict[str, Any], body: bytes) -> Optional[Reply]:
        work, where = self.place(header)
        if self.is_superseded():
            raise ValueError("a newer agent has taken over this node")
        if not os.path.isdir(where):
            if self.lacks(header):
                return {"t": "exit", "state": "absent"}, b""
            if len(self.watches) >= (header.get("among") or sys.maxsize):
                self.staged[header["id"]] = header, body
                return None
        os.makedirs(os.path.dirname(where), exist_ok=True)
        try:
            os.mkdir(where)
        except FileExistsError:
            return self.join(header, work, where)
        write_whole(os.path.join(where, "command.json"), json.dumps({"hash": header["hash"]}).encode())
        self.write_files(work, header["files"], body)
        self.start(header, work, where)
        return None

    def write_files(self, work: str, files: List[Any], body: bytes) -> None:
        at = 0
        links = []
        for entry in files:
            target = plain_path(work, entry[0])
            if len(entry) > 3:  # a copy, which the supervisor makes
                continue
            mode, size = entry[1:]
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if stat.S_ISLNK(mode):
                links.append((body[at : at + size], target))
            else:
                write_whole(target, body[at : at + size], mode)
                os.chmod(target, mode)
            at += size
        for leads_to, target in links:  # last: no file may be written through one
            new = "%s.%d.new" % (target, os.getpid())
            os.symlink(os.fsdecode(leads_to), new)
            os.rename(new, target)

    def lacks(self, header: Dict[str, Any]) -> bool:
        """Whether a big input of a command is not here, or not whole."""
        wanted = dict((entry[3], entry[2]) for entry in header["files"] if len(entry) > 3)
        if not wanted:
            return False
        found = outputs_of(os.path.join(self.root, STATIC), list(wanted))
        return dict((name, st.st_size) for name, st in found) != wanted

    def copies(self, header: Dict[str, Any], work: str) -> List[Tuple[str, str, int]]:
        """(source, target, mode) of each big input of a command."""
        return [
            (plain_path(self.root, STATIC + "/" + entry[3]), plain_path(work, entry[0]), entry[1])
            for entry in header["files"]
            if len(entry) > 3
        ]

    def start(self, header: Dict[str, Any], work: str, where: str) -> None:
        command = "%s/%s" % (header["attempt"], header["seq"])
        cores = int(header.get("cores") or 1)
        hosts = os.path.join(where, "hosts")
        names = self.machines_for(cores)
        write_whole(hosts, "".join(name + "\n" for name in names).encode())
        env = dict(self.env, **header["env"])
        env.update(
            {MARKER: os.path.join(self.root, command), "TRIAL_CORES": str(cores), "TRIAL_HOSTS": hosts, "PWD": work}
        )
        env["SHLVL"] = "1"  # or bash takes this for a login over SSH, and reads ~/.bashrc for each command
        if header.get("setup"):
            env["SETUP_DIR"] = plain_path(self.root, header["setup"])
        if self.shell is None:
            raise ValueError("the node has no shell")
        for text in header["outputs"]:
            pattern(text)  # supervisors find it made, but for the first one
        request = {
            "where": where,
            "work": work,
            "argv": [self.shell[0], "-c", self.shell[1] + header["script"]],
            "env": env,
            "umask": self.umask,
            "timeout": header.get("timeout"),
            "stall": header.get("stall"),
            "patterns": header["outputs"],
            "grace": self.config["grace"],
            "running": self.entry(command),
            "copies": self.copies(header, work),
            "newer": self.newer,
        }
        word = json.dumps(request).encode() + b"\n"
        supervisor = self.free.pop() if self.free else self.supervisor()
        try:
            supervisor.sendall(word, NO_SIGNAL)
        except OSError:  # somebody has killed it
            supervisor.close()
            supervisor = self.supervisor()
            supervisor.sendall(word, NO_SIGNAL)
        self.watches[header["id"]] = Watch(command, where, work, header, supervisor)

    def supervisor(self) -> socket.socket:
        """Fork a supervisor that stands by; what is written here is read there."""
        ours, theirs = socket.socketpair()
        block = [signal.SIGTERM, signal.SIGCHLD]  # before the fork, so that a supervisor never misses one
        before = signal.pthread_sigmask(signal.SIG_BLOCK, block)
        try:
            if os.fork() == 0:
                try:
                    others = [watch.fd for watch in self.watches.values() if watch.fd is not None]
                    others += [supervisor.fileno() for supervisor in self.free]
                    stand_by(theirs, [ours.fileno()] + others + list(self.asides))
                finally:
                    os._exit(0)
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        return ours

    def machines_for(self, cores: int) -> List[str]:
        """For each core of a command the name of its machine: this one, or those of whole ones that no other has."""
        here, each = socket.gethostname(), self.config.get("cores") or cores
        if cores <= each:
            return [here] * cores
        names = [here] + self.config["workers"]
        taken = dict.fromkeys(names, 0)
        wheres = set(watch.where for watch in self.watches.values())
        for attempt, _, seq in (entry.rpartition(".") for entry in os.listdir(self.running)):
            wheres.add(os.path.join(self.root, attempt, ".attempt", seq))
        for where in wheres:
            if not os.path.exists(os.path.join(where, "exit.json")):
                with_it = read_at(os.path.join(where, "hosts"), 0, CHUNK).decode("utf-8", "replace")
                for name in set(with_it.split()).intersection(names):
                    taken[name] += 1
        whole = sorted(names, key=lambda name: taken[name])[: -(-cores // each)]
        return [name for name in names if name in whole for _ in range(each)][:cores]

    def entry(self, command: str) -> str:
        return os.path.join(self.running, command.replace("/", "."))

    def join(self, header: Dict[str, Any], work: str, where: str) -> Optional[Reply]:
        claim = read_json(os.path.join(where, "command.json"))
        command = "%s/%s" % (header["attempt"], header["seq"])
        watch = Watch(command, where, work, header)
        if claim is not None and claim["hash"] != header["hash"]:
            ask_to_end(where)  # nobody will ask for it again, and its cores are another attempt's
            watch.is_other, watch.sent = True, None
        is_ours = any(other.where == where for other in self.watches.values())  # its supervisor goes on after it
        self.watches[header["id"]] = watch
        pid = read_json(os.path.join(where, "pid"))
        if pid is not None and hasattr(os, "pidfd_open") and not is_ours:
            try:
                watch.fd = os.pidfd_open(pid["pid"])
            except OSError:
                pass
        if watch.is_over():
            self.report(header["id"], 0)  # its place was free before
        return None

    def send_logs(self, watches: Dict[int, Watch]) -> bool:
        """Send what commands have printed to a driver that follows them, in one frame for all; whether there was any.

        Of those that are only looked at now and then it is the newest alone, and nothing at all in their first moment:
        a short command costs no frame, its exit brings the end of its log.
        """
        now, pieces = time.monotonic(), []  # type: float, List[Tuple[int, Watch, int]]
        at_end = watches is not self.watches
        if now >= self.next_often or at_end:
            self.next_often = self.next_often if at_end else now + OFTEN
            due = [(i, w) for i, w in watches.items() if w.sent is not None and not w.seldom]
            pieces += [(i, w, 4 * CHUNK // len(due)) for i, w in due]
        if now >= self.next_seldom and not at_end:
            self.next_seldom = now + SELDOM
            due = [(i, w) for i, w in watches.items() if w.seldom and now - w.since >= SELDOM]
            pieces += [(i, w, min(SELDOM_EACH, SELDOM_ALL // len(due))) for i, w in due]
        entries, parts = [], []
        for request_id, watch, most in pieces:
            log, start = os.path.join(watch.where, "log"), watch.sent or 0
            offset, data = newest(log, start, most) if watch.seldom else (start, read_at(log, start, most))
            if data:
                entries.append([request_id, offset, len(data)])
                parts.append(data)
                watch.sent = offset + len(data)
        if entries:
            self.send({"t": "logs", "logs": entries}, b"".join(parts))
        return bool(entries)

    def hear(self, watch: Watch) -> Optional[Dict[str, Any]]:
        """Hear the end of a command; what its supervisor says that could not even begin. Another command may have it."""
        if watch.supervisor is None:
            if watch.fd is not None:
                os.close(watch.fd)
            return None
        try:
            word = watch.supervisor.recv(CHUNK)
        except OSError:
            word = b""
        if word == AGAIN:
            self.free.append(watch.supervisor)
            return None
        watch.supervisor.close()
        said = json.loads(word.decode()) if word else None  # type: Optional[Dict[str, Any]]
        return said

    def report(self, request_id: int, ended: int = 1) -> None:
        """Send the exit of a command with what is small of its results."""
        watch = self.watches.pop(request_id)
        said = self.hear(watch)
        record = read_json(os.path.join(watch.where, "exit.json"))
        if record is None and said:
            record = {"refusal": said}
        if record is None:  # looked at once more, after its supervisor was seen dead
            self.bury(watch)
        self.start_staged(ended)  # its cores are free; who waits for the report waits a round trip in any case
        if record is None or watch.is_other:
            self.send({"t": "exit", "id": request_id, "state": "mismatch" if watch.is_other else "lost"})
            return
        if "refusal" in record:
            self.send(dict(record["refusal"], id=request_id))
            return
        while not watch.seldom and self.send_logs({request_id: watch}):
            pass
        parts, left = [], int(watch.request.get("inline", 0))
        for entry in record["manifest"] or []:
            if "sha256" in entry and entry["size"] <= min(left, FILE_INLINE):
                data = read_at(os.path.join(watch.work, entry["path"]), 0, entry["size"] + 1)
                if len(data) == entry["size"]:
                    entry["inline"] = True
                    parts.append(data)
                    left -= len(data)
        log = os.path.join(watch.where, "log")
        size = os.path.getsize(log) if os.path.isfile(log) else 0
        tail = read_at(log, max(0, size - LOG_TAIL), LOG_TAIL)
        record.update({"t": "exit", "id": request_id, "log_size": size, "log_tail": len(tail)})
        self.send(record, tail + b"".join(parts))

    def start_staged(self, ended: int) -> None:
        """Start what has waited for a command to end: one in the place of each that has, more as far as there is room."""
        room = len(self.watches) + ended
        while self.staged:
            first = next(iter(self.staged))
            header, body = self.staged[first]
            if len(self.watches) >= max(room, header["among"]):
                return
            del self.staged[first]
            header["among"] = 0  # its turn has come
            reply = self.answer(header, body)
            if reply is not None:
                self.send(*reply)

    def bury(self, watch: Watch) -> None:
        """End what is left of a command whose supervisor was killed."""
        until = time.monotonic() + 1
        while HAS_PROC and time.monotonic() < until:
            left = marked(os.path.join(self.root, watch.command))
            if not left:
                break
            send_signal(left, signal.SIGKILL)
            time.sleep(0.01)
        remove(self.entry(watch.command))

    def do_kill(self, header: Dict[str, Any], body: bytes) -> Reply:
        where = self.place(header)[1]
        if self.waiting(header):
            self.do_withdraw(header, body)
        elif os.path.isdir(where):
            ask_to_end(where)
        return {"t": "done"}, b""

    def waiting(self, header: Dict[str, Any]) -> List[int]:
        """The requests for a command that has no place yet."""
        wanted = self.place(header)
        return [request_id for request_id, (staged, _) in self.staged.items() if self.place(staged) == wanted]

    def do_withdraw(self, header: Dict[str, Any], body: bytes) -> Reply:
        where = self.place(header)[1]
        nobody = {"t": "exit", "state": "withdrawn"}
        os.makedirs(os.path.dirname(where), exist_ok=True)
        try:
            os.mkdir(where)
        except FileExistsError:  # it runs, or has ended
            return {"t": "done"}, b""
        write_whole(os.path.join(where, "exit.json"), json.dumps({"state": "withdrawn", "refusal": nobody}).encode())
        for request_id in self.waiting(header):
            del self.staged[request_id]
            self.send(dict(nobody, id=request_id))
        return {"t": "done"}, b""

    def do_put(self, header: Dict[str, Any], body: bytes) -> Reply:
        path, part = plain_path(self.root, header["path"]), plain_path(self.root, header["path"] + PART)
        before = header.get("before")
        if before and os.path.isdir(self.place(before)[1]):
            return {"t": "done"}, b""  # its command was claimed: what is there stays
        if self.is_superseded():
            raise ValueError("a newer agent has taken over this node")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        named_by_it = os.path.basename(path) == header["sha256"]  # such a name alone says that a file is whole
        parts = header.get("parts", False)  # each is compared by itself, and an empty one gives the name
        is_last = header["offset"] == header["size"] if parts else header["offset"] + len(body) == header["size"]
        if parts and body and hashlib.sha256(body).hexdigest() != header["sha256"]:
            raise ValueError("%s arrived damaged" % header["path"])
        try:
            with open(part, "r+b" if header["offset"] else "wb") as f:
                f.seek(header["offset"])
                f.write(body)
                if is_last and named_by_it:
                    f.flush()
                    os.fsync(f.fileno())
            if is_last:
                if os.path.getsize(part) != header["size"] if parts else sha256(part) != header["sha256"]:
                    raise ValueError("%s arrived damaged" % header["path"])
                os.chmod(part, header["mode"])
                os.rename(part, path)
        except FileNotFoundError:  # sent again after a drop, whole already
            if (
                not is_last
                or not header["offset"]
                or not os.path.exists(path)
                or not (named_by_it or sha256(path) == header["sha256"])
            ):
                raise
        except OSError as e:
            if is_full(e) and not parts:
                remove(part)  # half a file takes the room that others need
            raise
        return {"t": "done"}, b""

    def do_get(self, header: Dict[str, Any], body: bytes) -> Reply:
        with open_regular(plain_path(self.root, header["path"])) as f:
            f.seek(header["offset"])
            return {"t": "done"}, f.read(min(int(header["length"]), 4 * CHUNK))

    def do_list(self, header: Dict[str, Any], body: bytes) -> Reply:
        work = plain_path(self.root, header["attempt"])
        return {"t": "done", "manifest": manifest_of(work, header["outputs"], header.get("checksums", True))}, b""

    def do_drop(self, header: Dict[str, Any], body: bytes) -> Reply:
        path = plain_path(self.root, header["attempt"])
        records = os.path.join(path, ".attempt")
        for name in os.listdir(records) if os.path.isdir(records) else []:
            watch = Watch("", os.path.join(records, name), path, {})
            until = watch.since + self.config["grace"] + DROP_WAITS
            if ask_to_end(watch.where):  # one that was given up
                while not watch.is_over() and time.monotonic() < until:
                    time.sleep(POLL)
        remove(path)  # where it is a file
        shutil.rmtree(path, ignore_errors=True)
        return {"t": "done"}, b""

    def do_busy(self, header: Dict[str, Any], body: bytes) -> Reply:
        """Let the switch of this node see that a command runs on another one, which has a home of its own."""
        entry = plain_path(self.lease, header["node"] + "/running/elsewhere")
        if header["on"]:
            os.makedirs(os.path.dirname(entry), exist_ok=True)
            write_whole(entry, b"")
        else:
            remove(entry)
        return {"t": "done"}, b""

    def do_ping(self, header: Dict[str, Any], body: bytes) -> Reply:
        """Do what the driver tells the switch, in this order: a beat, a word how long to wait after it, the end."""
        beat = header.get("beat")
        if beat is not None:
            if not BEAT.match(beat):
                raise ValueError("%r is no beat" % beat)
            write_whole(os.path.join(self.lease, "beat"), (beat + "\n").encode())
            if header.get("keep") is not None:
                write_whole(os.path.join(self.lease, "keep"), ("%d %s\n" % (header["keep"], beat)).encode())
        if header.get("stop"):
            write_whole(os.path.join(self.lease, "stop"), b"")
        said = {}
        for name in ("tick", "ended"):
            said[name] = read_at(os.path.join(self.lease, name), 0, 64).decode("ascii", "replace").strip()
        return dict(said, t="done"), b""


def main(config: Dict[str, Any]) -> None:
    close_inherited({0, 1, 2})
    if hasattr(gc, "freeze"):  # else a collection in a supervisor would write to, and so copy, all of our memory
        gc.freeze()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    Agent(config).serve()
