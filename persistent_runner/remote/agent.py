"""The program that runs on a node, inside the SSH channel that started it. Standard library, Python 3.6 or later, one file.

It claims commands (`mkdir`), starts each under a supervisor of its own, reports exits and ends with its channel; the
supervisors go on. Frames on stdin and stdout: two big-endian 32-bit lengths, a JSON header, a body (zlib if `z`).

    run   attempt seq hash script env cores timeout files outputs inline follow    -> log* exit
    kill  attempt seq                                                              -> done
    put   path mode offset size sha256 before, get path offset length, list attempt outputs
    drop  attempt (its directory goes), ping beat                                  -> done

Layout: ROOT/STUDY.RUN/ATTEMPT/ is the working directory of an attempt, ATTEMPT/.attempt/SEQ/ holds `command.json`,
`pid`, `log` and `exit.json` of a command. ~/.persistent-runner/LEASE/NODE/ holds `running/` and `epoch/`.
"""
import errno
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
import subprocess
import sys
import time
import zlib

VERSION = 1
GRACE = 10.0  # seconds between TERM and KILL of a tree
CLAIM_WITHOUT_PID = 2.0  # seconds after which a claim whose supervisor never wrote its pid is lost
POLL = 0.05  # seconds between two looks at what no descriptor reports
MARKER = "PERSISTENT_RUNNER_COMMAND"
CHUNK = 1 << 18
FILE_INLINE = 1 << 16  # bytes of one file that may travel in the exit frame
LOG_TAIL = 1 << 16

HAS_PROC = os.path.exists("/proc/self/stat")


# ---------------------------------------------------------------- processes

def boot_id():
    try:
        with open("/proc/sys/kernel/random/boot_id") as f:
            return f.read().strip()
    except (IOError, OSError):
        return ""


def process_stat(pid):
    """(state, parent pid, start time) of a process; None when there is none."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[1]), fields[19].decode()
    except (IOError, OSError, IndexError):
        return None


def is_alive(pid, started, boot):
    """Whether this very process still runs: a reused pid, another boot and a zombie are dead."""
    if not HAS_PROC:
        try:
            os.kill(pid, 0)
        except OSError as e:
            return e.errno == errno.EPERM
        return True
    found = process_stat(pid)
    return found is not None and boot == boot_id() and found[2] == started and found[0] not in "ZX"


def all_parents():
    """{pid: parent pid} of every process that is not a zombie."""
    if HAS_PROC:
        found = {}
        for name in os.listdir("/proc"):
            if name.isdigit():
                s = process_stat(int(name))
                if s and s[0] not in "ZX":
                    found[int(name)] = s[1]
        return found
    out = subprocess.check_output(["ps", "-A", "-o", "pid=,ppid=,state="]).decode("ascii", "replace")
    rows = (line.split() for line in out.splitlines())
    return dict((int(r[0]), int(r[1])) for r in rows if len(r) == 3 and not r[2].startswith("Z"))


def descendants(root):
    parents = all_parents()
    found, grown = set([root]), True
    while grown:
        more = set(p for p, parent in parents.items() if parent in found and p not in found)
        found |= more
        grown = bool(more)
    found.discard(root)
    return found


def marked(command):
    """Processes that carry a command's marker: what is left of it when its supervisor was killed."""
    found, wanted = set(), ("%s=%s" % (MARKER, command)).encode()
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            with open(path, "rb") as f:
                if wanted in f.read().split(b"\0"):
                    found.add(int(path.split("/")[2]))
        except (IOError, OSError):
            pass
    found.discard(os.getpid())
    return found


def send_signal(pids, number):
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:
            pass


# ---------------------------------------------------------------- files

def write_whole(path, data, mode=0o600):
    """Write under a temporary name, then rename: a reader sees all of it or nothing."""
    new = "%s.%d.new" % (path, os.getpid())
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(fd, "wb") as f:
        f.write(data)
    os.rename(new, path)


def read_json(path):
    try:
        with open(path, "rb") as f:
            return json.loads(f.read().decode("utf-8"))
    except (IOError, OSError, ValueError):
        return None


def sha256(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            h.update(block)
    return h.hexdigest()


def is_pattern(text):
    return re.search(r"[*?\[]", text) is not None


def pattern(text):
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


def plain_path(root, relative):
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


def outputs_of(folder, patterns):
    """[relative path, lstat] of what the patterns name, in the patterns' order; links are not followed."""
    found = {}
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
                        found[relative] = (n, os.lstat(path))
    return [(path, found[path][1]) for path in sorted(found, key=lambda p: (found[p][0], p))]


def manifest_of(folder, patterns):
    """[{path, size, sha256 | problem}] of the outputs: regular files alone have a checksum."""
    entries = []
    for path, st in outputs_of(folder, patterns):
        entry = {"path": path, "size": st.st_size}
        try:
            path.encode("utf-8")
            if stat.S_ISREG(st.st_mode):
                entry["sha256"] = sha256(os.path.join(folder, path))
            elif stat.S_ISLNK(st.st_mode):
                entry["problem"] = "a symbolic link"
            else:
                entry["problem"] = "not a regular file"
        except (IOError, OSError) as e:
            entry["problem"] = os.strerror(e.errno or errno.EIO)
        except UnicodeEncodeError:
            entry = {"path": path.encode("utf-8", "replace").decode(), "size": st.st_size, "problem": "named in no text"}
        entries.append(entry)
    return entries


# ---------------------------------------------------------------- the supervisor of one command

def become_subreaper():
    """Orphans of the command come to this process, so that none is left behind (Linux)."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    except Exception:
        pass


def close_inherited(keep):
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        names = map(str, range(256))
    for fd in [int(n) for n in names]:
        if fd not in keep:
            try:
                os.close(fd)
            except OSError:
                pass


def sweep(number, until):
    """Signal each process of the tree once and reap until none is left or `until` is past; whether all are gone."""
    told = set()
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
        signal.sigtimedwait([signal.SIGCHLD], min(left, POLL)) if hasattr(signal, "sigtimedwait") else time.sleep(POLL)


def end_tree():
    if not sweep(signal.SIGTERM, time.monotonic() + GRACE):
        sweep(signal.SIGKILL, time.monotonic() + GRACE)


def supervise(where, work, argv, env, timeout, patterns, running, report):
    """Run one command to its end, whatever becomes of the agent; write its record. Never returns."""
    os.setsid()
    block = [signal.SIGTERM, signal.SIGCHLD]
    signal.pthread_sigmask(signal.SIG_BLOCK, block)
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    log = os.open(os.path.join(where, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    close_inherited({0, 1, 2, report})
    become_subreaper()
    me = os.getpid()
    started = (process_stat(me) or ("", 0, ""))[2]
    write_whole(os.path.join(where, "pid"), json.dumps({"pid": me, "started": started, "boot": boot_id()}).encode())
    with open(running, "w"):
        pass

    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            os.close(report)
            os.setpgid(0, 0)
            os.chdir(work)
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, block)
            os.execvpe(argv[0], argv, env)
        except OSError as e:
            os.write(2, ("cannot start %s: %s\n" % (argv[0], e)).encode("utf-8", "replace"))
        os._exit(127)

    status, peak, state = None, 0, "done"
    until = begun + timeout if timeout else None
    while status is None:
        left = max(0.0, until - time.monotonic()) if until else 3600.0
        if hasattr(signal, "sigtimedwait"):
            got = signal.sigtimedwait(block, left)
            asked = got is not None and got.si_signo == signal.SIGTERM
        else:  # macOS
            time.sleep(min(left, POLL))
            asked = signal.SIGTERM in signal.sigpending()
        while True:  # the command and orphans that came to this subreaper
            try:
                pid, code, used = os.wait4(-1, os.WNOHANG)
            except OSError:
                pid = 0
            if not pid:
                break
            if pid == child:
                status, peak = code, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if status is None and (asked or (until and time.monotonic() >= until)):
            state = "killed" if asked else "timeout"
            break
    seconds = time.monotonic() - begun
    end_tree()
    if status is None:
        code = 128 + signal.SIGTERM
    else:
        code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    record = {"state": state, "code": code, "seconds": seconds, "peak_bytes": peak, "manifest": manifest_of(work, patterns)}
    write_whole(os.path.join(where, "exit.json"), json.dumps(record).encode())
    try:
        os.unlink(running)
    except OSError:
        pass
    os.write(report, b"x")
    os._exit(0)


# ---------------------------------------------------------------- the agent

class Watch(object):
    """A command that this agent reports on: `fd` becomes readable at its end (None: look every POLL)."""

    def __init__(self, command, where, work, request, fd):
        self.command, self.where, self.work, self.request, self.fd = command, where, work, request, fd
        self.since = time.monotonic()
        self.sent = request.get("follow")  # bytes of the log that the driver has; None: it does not follow

    def is_over(self):
        """Whether the exit record is there, or never will be."""
        if os.path.exists(os.path.join(self.where, "exit.json")):
            return True
        pid = read_json(os.path.join(self.where, "pid"))
        if pid is None:
            return time.monotonic() - self.since > CLAIM_WITHOUT_PID
        return not is_alive(pid["pid"], pid["started"], pid["boot"])


class Agent(object):
    def __init__(self, config):
        os.umask(0o077)
        self.config = config
        home = os.path.expanduser("~")
        shared = os.path.join(home, "work", "shared")
        base = os.environ.get("RESCALE_WORK_PATH") or (shared if os.path.isdir(shared) else os.path.join(home, "work"))
        self.root = os.path.join(base, config["run"])
        self.lease = os.path.join(home, ".persistent-runner", config["lease"])
        self.node = os.path.join(self.lease, config["node"])
        self.running = os.path.join(self.node, "running")
        for folder in (self.root, self.running, os.path.join(self.node, "epoch")):
            os.makedirs(folder, exist_ok=True)
        self.epoch = self.take_epoch()
        self.env = dict(os.environ)
        self.env.pop("PERSISTENT_RUNNER_PROOF", None)
        self.shell = next(((s, o) for s, o in (("bash", "set -eo pipefail\n"), ("sh", "set -e\n")) if shutil.which(s)), None)
        self.watches = {}  # request id -> Watch
        self.incoming = bytearray()

    def take_epoch(self):
        folder = os.path.join(self.node, "epoch")
        while True:
            number = max([int(n) for n in os.listdir(folder) if n.isdigit()] or [0]) + 1
            try:
                os.mkdir(os.path.join(folder, str(number)))
                return number
            except FileExistsError:
                pass

    def is_superseded(self):
        return os.path.exists(os.path.join(self.node, "epoch", str(self.epoch + 1)))

    # -- frames

    def send(self, header, body=b""):
        if len(body) > 512:
            packed = zlib.compress(body, 1)
            if len(packed) < len(body):
                header, body = dict(header, z=1), packed
        head = json.dumps(header).encode()
        data = memoryview(struct.pack(">II", len(head), len(body)) + head + body)
        while len(data):
            data = data[os.write(1, data):]

    def frames(self):
        """Yield (header, body) of each whole frame that has come in."""
        while len(self.incoming) >= 8:
            head, body = struct.unpack(">II", bytes(self.incoming[:8]))
            if len(self.incoming) < 8 + head + body:
                return
            header = json.loads(bytes(self.incoming[8:8 + head]).decode("utf-8"))
            content = bytes(self.incoming[8 + head:8 + head + body])
            del self.incoming[:8 + head + body]
            yield header, zlib.decompress(content) if header.get("z") else content

    def serve(self):
        os.write(1, b"\n" + self.config["nonce"].encode() + b"\n")
        self.send({"t": "hello", "version": VERSION, "epoch": self.epoch, "root": self.root, "boot": boot_id(),
                   "host": socket.gethostname(), "python": sys.version.split()[0], "cores": os.cpu_count() or 1})
        while True:
            poll = select.poll()
            poll.register(0, select.POLLIN)
            by_fd = {}
            for request_id, watch in self.watches.items():
                if watch.fd is not None:
                    by_fd[watch.fd] = request_id
                    poll.register(watch.fd, select.POLLIN)
            look = any(w.fd is None or w.sent is not None for w in self.watches.values())
            ready = dict(poll.poll(POLL * 1000 if look else None))
            for fd in ready:
                if fd in by_fd:
                    self.report(by_fd[fd])
            for request_id, watch in list(self.watches.items()):
                if watch.sent is not None:
                    self.send_log(request_id, watch)
                if watch.fd is None and watch.is_over():
                    self.report(request_id)
            if 0 in ready:
                data = os.read(0, CHUNK)
                if not data:
                    return
                self.incoming += data
                for header, body in self.frames():
                    self.answer(header, body)

    def answer(self, header, body):
        try:
            reply = getattr(self, "do_" + header["t"])(header, body)
        except (IOError, OSError, ValueError, KeyError) as e:
            kind = "disk" if getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT) else "refused"
            text = "%s: %s" % (os.strerror(e.errno), e.filename) if getattr(e, "errno", None) else str(e)
            reply = {"t": "error", "kind": kind, "text": text}, b""
        if reply is not None:
            self.send(dict(reply[0], id=header["id"]), reply[1])

    # -- requests

    def place(self, header):
        """(working directory, record directory) of the command that a request names."""
        work = plain_path(self.root, header["attempt"])
        return work, os.path.join(work, ".attempt", str(int(header["seq"])))

    def do_run(self, header, body):
        work, where = self.place(header)
        if self.is_superseded():
            raise ValueError("a newer agent has taken over this node")
        os.makedirs(os.path.dirname(where), exist_ok=True)
        try:
            os.mkdir(where)
        except FileExistsError:
            return self.join(header, work, where)
        write_whole(os.path.join(where, "command.json"), json.dumps({"hash": header["hash"]}).encode())
        self.write_files(work, header["files"], body)
        self.start(header, work, where)
        return None

    def write_files(self, work, files, body):
        at = 0
        for path, mode, size in files:
            target = plain_path(work, path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            write_whole(target, body[at:at + size], mode)
            os.chmod(target, mode)
            at += size

    def start(self, header, work, where):
        command = "%s/%s" % (header["attempt"], header["seq"])
        cores = int(header.get("cores") or 1)
        hosts = os.path.join(where, "hosts")
        write_whole(hosts, (socket.gethostname() + "\n").encode() * cores)
        env = dict(self.env, **header["env"])
        env.update({MARKER: os.path.join(self.root, command), "TRIAL_CORES": str(cores), "TRIAL_HOSTS": hosts, "PWD": work})
        if header.get("setup"):
            env["SETUP_DIR"] = plain_path(self.root, header["setup"])
        if self.shell is None:
            raise ValueError("the node has no shell")
        argv = [self.shell[0], "-c", self.shell[1] + header["script"]]
        running = os.path.join(self.running, command.replace("/", "."))
        reads, report = os.pipe()
        if os.fork() == 0:
            try:
                supervise(where, work, argv, env, header.get("timeout"), header["outputs"], running, report)
            finally:
                os._exit(70)
        os.close(report)
        self.watches[header["id"]] = Watch(command, where, work, header, reads)

    def join(self, header, work, where):
        claim = read_json(os.path.join(where, "command.json"))
        if claim is not None and claim["hash"] != header["hash"]:
            return {"t": "exit", "state": "mismatch"}, b""
        command = "%s/%s" % (header["attempt"], header["seq"])
        watch = Watch(command, where, work, header, None)
        self.watches[header["id"]] = watch
        pid = read_json(os.path.join(where, "pid"))
        if pid is not None and hasattr(os, "pidfd_open"):
            try:
                watch.fd = os.pidfd_open(pid["pid"])
            except OSError:
                pass
        if watch.is_over():
            self.report(header["id"])
        return None

    def send_log(self, request_id, watch):
        try:
            with open(os.path.join(watch.where, "log"), "rb") as f:
                f.seek(watch.sent)
                data = f.read(CHUNK)
        except (IOError, OSError):
            return
        if data:
            self.send({"t": "log", "id": request_id, "offset": watch.sent}, data)
            watch.sent += len(data)

    def report(self, request_id):
        """Send the exit of a command with what is small of its results."""
        watch = self.watches.pop(request_id)
        if watch.fd is not None:
            os.close(watch.fd)
            try:
                os.waitpid(-1, os.WNOHANG)
            except OSError:
                pass
        record = read_json(os.path.join(watch.where, "exit.json"))
        if record is None:  # looked at once more, after its supervisor was seen dead
            leftovers = marked(os.path.join(self.root, watch.command)) if HAS_PROC else ()
            send_signal(leftovers, signal.SIGKILL)
            self.send({"t": "exit", "id": request_id, "state": "lost"})
            return
        if watch.sent is not None:
            while os.path.getsize(os.path.join(watch.where, "log")) > watch.sent:
                self.send_log(request_id, watch)
        parts, left = [], int(watch.request.get("inline", 0))
        for entry in record["manifest"]:
            if "sha256" in entry and entry["size"] <= min(left, FILE_INLINE):
                with open(os.path.join(watch.work, entry["path"]), "rb") as f:
                    data = f.read()
                if len(data) == entry["size"]:
                    entry["inline"] = True
                    parts.append(data)
                    left -= len(data)
        with open(os.path.join(watch.where, "log"), "rb") as f:
            size = f.seek(0, 2)
            f.seek(max(0, size - LOG_TAIL))
            tail = f.read(LOG_TAIL)
        record.update({"t": "exit", "id": request_id, "log_size": size, "log_tail": len(tail)})
        self.send(record, tail + b"".join(parts))

    def do_kill(self, header, body):
        _, where = self.place(header)
        pid = read_json(os.path.join(where, "pid"))
        if pid is not None and is_alive(pid["pid"], pid["started"], pid["boot"]):
            send_signal([pid["pid"]], signal.SIGTERM)
        return {"t": "done"}, b""

    def do_put(self, header, body):
        path = plain_path(self.root, header["path"])
        before = header.get("before")
        if before and os.path.isdir(self.place(before)[1]):
            return {"t": "done", "written": False}, b""  # its command was claimed: what is there stays
        os.makedirs(os.path.dirname(path), exist_ok=True)
        part = path + ".part"
        with open(part, "r+b" if header["offset"] else "wb") as f:
            f.seek(header["offset"])
            f.write(body)
        if header["offset"] + len(body) == header["size"]:
            found = sha256(part)
            if found != header["sha256"]:
                raise ValueError("%s arrived damaged" % header["path"])
            os.chmod(part, header["mode"])
            os.rename(part, path)
        return {"t": "done", "written": True}, b""

    def do_get(self, header, body):
        path = plain_path(self.root, header["path"])
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(fd, "rb") as f:
            f.seek(header["offset"])
            return {"t": "done"}, f.read(min(int(header["length"]), 4 * CHUNK))

    def do_list(self, header, body):
        work = plain_path(self.root, header["attempt"])
        return {"t": "done", "manifest": manifest_of(work, header["outputs"])}, b""

    def do_drop(self, header, body):
        shutil.rmtree(plain_path(self.root, header["attempt"]), ignore_errors=True)
        return {"t": "done"}, b""

    def do_ping(self, header, body):
        if header.get("beat") is not None:
            write_whole(os.path.join(self.lease, "beat"), ("%d\n" % header["beat"]).encode())
        states = {}
        for name in ("tick", "ended"):
            try:
                with open(os.path.join(self.lease, name)) as f:
                    states[name] = f.read(64).strip()
            except (IOError, OSError):
                pass
        return dict(states, t="done"), b""


def main(config):
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    Agent(config).serve()
