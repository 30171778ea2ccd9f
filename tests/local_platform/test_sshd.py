"""The SSH servers of the nodes, spoken to by paramiko and by OpenSSH's own programs."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import socket
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import paramiko
import pytest
from plain_client import Client, eventually, register, say

from persistent_runner.local_platform.local import LocalRescale
from persistent_runner.local_platform.sshd import NodeSettings, SshHost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

needs_openssh = pytest.mark.skipif(
    not (shutil.which("ssh") and shutil.which("scp") and shutil.which("ssh-keygen")),
    reason="no OpenSSH client programs",
)


@pytest.fixture
def ssh(client: Client, node: str, key: paramiko.PKey) -> Iterator[paramiko.SSHClient]:
    """Give a connection to a sleeping job's machine."""
    with client.connect(node, key) as found:
        yield found


def exec_channel(ssh: paramiko.SSHClient, command: str) -> paramiko.Channel:
    transport = ssh.get_transport()
    assert transport is not None
    channel = transport.open_session()
    channel.settimeout(20)
    channel.exec_command(command)
    return channel


def read_all(channel: paramiko.Channel) -> bytes:
    return b"".join(iter(lambda: channel.recv(1 << 16), b""))


def test_exec_gives_output_errors_and_exit_code(ssh: paramiko.SSHClient) -> None:
    """Standard output, standard error and the exit code come back apart, to the last byte."""
    _, out, err = ssh.exec_command("echo out; echo err >&2; exit 3")
    assert (out.read(), err.read(), out.channel.recv_exit_status()) == (b"out\n", b"err\n", 3)


def test_a_big_output_is_whole(ssh: paramiko.SSHClient) -> None:
    """Nothing is cut off when a command prints much and ends at once."""
    channel = exec_channel(ssh, "head -c 20000000 /dev/zero; echo end >&2; exit 5")
    assert len(read_all(channel)) == 20_000_000
    assert (channel.recv_stderr(100), channel.recv_exit_status()) == (b"end\n", 5)


def test_a_big_input_is_whole(ssh: paramiko.SSHClient) -> None:
    """A slow reader slows the sender down; end of input arrives."""
    content = hashlib.shake_128(b"in").digest(8 << 20)
    channel = exec_channel(ssh, "sleep 0.2; sha512sum")
    channel.sendall(content)
    channel.shutdown_write()
    assert read_all(channel).split()[0].decode() == hashlib.sha512(content).hexdigest()


def test_a_frame_goes_out_and_back_at_once(ssh: paramiko.SSHClient) -> None:
    """A program in a channel can talk in small frames without line ends: nothing waits for more."""
    channel = exec_channel(ssh, "cat")
    for number in range(50):
        frame = f"frame{number}".encode()
        channel.sendall(frame)
        found = b""
        while len(found) < len(frame):
            found += channel.recv(100)
        assert found == frame
    channel.shutdown_write()
    assert (read_all(channel), channel.recv_exit_status()) == (b"", 0)


def test_many_channels_on_one_connection(ssh: paramiko.SSHClient) -> None:
    """More commands at a time than OpenSSH allows by default run on one connection."""
    channels = [exec_channel(ssh, f"read line; echo {number} $line") for number in range(20)]
    for channel in channels:
        channel.sendall(b"there\n")
    assert [read_all(channel) for channel in channels] == [f"{number} there\n".encode() for number in range(20)]


def test_a_command_ended_by_a_signal_says_so(ssh: paramiko.SSHClient) -> None:
    """A killed command does not look like a success."""
    channel = exec_channel(ssh, "kill -9 $$")
    assert channel.recv_exit_status() != 0


def test_home_and_environment(ssh: paramiko.SSHClient, node: str) -> None:
    """A command starts in $HOME, `work` exists, RESCALE_* and the job's own variables come with a login shell."""
    home = say(ssh, "pwd").strip()
    assert say(ssh, "echo $HOME; ls -d work; id -un >&2; echo $USER").split("\n")[:3] == [home, "work", f"uprod_{node}"]
    plain, login = say(ssh, "env"), say(ssh, "bash -lc env")
    assert "RESCALE_" not in plain
    assert f"RESCALE_JOB_ID={node}\n" in login
    assert f"RESCALE_WORK_PATH={home}/work\n" in login
    assert "RESCALE_IG_RESTART_COUNT=0\n" in login
    assert "LICENCE=1055@licence host\n" in login


@pytest.mark.parametrize("shell", ["sh -c", "bash -lc"])
@pytest.mark.parametrize("name", ["python", "python3"])
def test_python_is_the_drivers_own(ssh: paramiko.SSHClient, shell: str, name: str) -> None:
    """What is installed beside the driver can be used on a node without any set-up."""
    (said,) = say(ssh, f"{shell} '{name} -c \"import sys; print(sys.prefix)\"'").splitlines()
    assert said == sys.prefix


def test_the_host_key_can_be_read_over_https(client: Client, ssh: paramiko.SSHClient) -> None:
    """The login environment says where the node's public host key lies, and it is the one that the server shows."""
    transport = ssh.get_transport()
    assert transport is not None
    shown = transport.get_remote_server_key().get_base64()
    assert shown in say(ssh, "bash -lc 'cat \"$PERSISTENT_RUNNER_HOST_KEYS\"/ssh_host_*_key.pub'")


def test_a_shell_with_a_terminal(ssh: paramiko.SSHClient) -> None:
    """An interactive shell has a terminal of the size asked for and is a login shell."""
    channel = ssh.invoke_shell(width=101, height=33)
    channel.settimeout(20)
    channel.sendall(b"stty size; test -t 0 && echo terminal; shopt -q login_shell; exit $((7+$?))\n")
    said = read_all(channel)
    assert b"33 101" in said
    assert b"\r\nterminal\r\n" in said
    assert channel.recv_exit_status() == 7


def test_a_lost_connection_kills_nothing(
    client: Client, node: str, key: paramiko.PKey, ssh: paramiko.SSHClient
) -> None:
    """As with OpenSSH: a silent command runs on, a printing one meets a broken pipe, one with a terminal is hung up."""
    other = client.connect(node, key)
    for command in (
        "echo x; sleep 0.3; touch silent-ended",
        "trap 'touch pipe-broke; exit' PIPE; while true; do echo x; sleep 0.05; done",
    ):
        assert exec_channel(other, command).recv(1) == b"x"
    shell = other.invoke_shell()
    shell.sendall(b"trap 'touch hung-up; exit' HUP; echo re''ady; while true; do sleep 0.05; done\n")
    said = b""
    while b"ready" not in said:
        said += shell.recv(1000)
    other.close()
    wanted = {"silent-ended", "pipe-broke", "hung-up"}
    eventually(lambda: wanted <= set(say(ssh, "ls").split()), "the marks of the three commands")


def test_end_of_input_reaches_a_command_when_the_connection_goes(
    client: Client, node: str, key: paramiko.PKey, ssh: paramiko.SSHClient
) -> None:
    """A program that lives in its channel learns that the channel has ended."""
    other = client.connect(node, key)
    assert exec_channel(other, "echo x; cat >/dev/null; touch input-ended").recv(1) == b"x"
    other.close()
    eventually(lambda: "input-ended" in say(ssh, "ls").split(), "the end of input")


def test_sftp(ssh: paramiko.SSHClient) -> None:
    """Relative paths start in $HOME, absolute ones work, modes and sizes are kept."""
    with ssh.open_sftp() as sftp:
        content = bytes(range(256)) * 1000
        with sftp.open("work/sftp ü.bin", "wb") as stream:
            stream.write(content)
        sftp.chmod("work/sftp ü.bin", 0o640)
        home = sftp.normalize(".")
        assert home == say(ssh, "pwd").strip()
        found = sftp.stat(f"{home}/work/sftp ü.bin")
        assert (found.st_size, stat.S_IMODE(found.st_mode or 0)) == (len(content), 0o640)
        with sftp.open("work/sftp ü.bin", "rb") as stream:
            assert stream.read() == content
        sftp.mkdir("work/folder")
        sftp.rename("work/sftp ü.bin", "work/folder/x")
        assert sftp.listdir("work/folder") == ["x"]
        with pytest.raises(FileNotFoundError):
            sftp.stat("nothing")


def test_who_may_log_in(tmp_path: Path) -> None:
    """Keys of the file, read anew at each login, and the job's own key; no other key, user or password."""
    with LocalRescale(tmp_path) as platform:
        client = Client(platform.base_url, platform.api_key)
        own, late, second = (paramiko.ECDSAKey.generate() for _ in range(3))
        rsa = paramiko.RSAKey.generate(2048)
        platform.authorized_keys.write_text("# a comment\n\nnot a key\n", encoding="utf-8")
        job_id = client.start("sleep inf", publicKey=f"{own.get_name()} {own.get_base64()} me")
        client.connect(job_id, own).close()
        for key in (late, rsa):
            with pytest.raises(paramiko.AuthenticationException):
                client.connect(job_id, key)
            register(platform.authorized_keys, key)
            client.connect(job_id, key).close()
        with client.connect(job_id, own) as ssh:
            line = f"{second.get_name()} {second.get_base64()}"
            say(ssh, f"mkdir -p .ssh && echo {line} >> .ssh/authorized_keys")
            client.connect(job_id, second).close()
        node = client.rows(f"jobs/{job_id}/instances/")[0]
        with paramiko.SSHClient() as other:
            other.set_missing_host_key_policy(paramiko.AutoAddPolicy())
            options = {"port": node["sshPort"], "allow_agent": False, "look_for_keys": False}
            with pytest.raises(paramiko.AuthenticationException):
                other.connect("127.0.0.1", username="root", pkey=own, **options)
            with pytest.raises(paramiko.SSHException):
                other.connect("127.0.0.1", username=node["username"], password="secret", **options)
        client.session.close()


def test_connections_end_with_the_cluster(client: Client, platform: LocalRescale, key: paramiko.PKey) -> None:
    """When the cluster stops its connections drop and nothing listens there any more."""
    register(platform.authorized_keys, key)
    job_id = client.start("sleep inf")
    port = client.rows(f"jobs/{job_id}/instances/")[0]["sshPort"]
    ssh = client.connect(job_id, key)
    channel = exec_channel(ssh, "echo x; sleep 300")
    assert channel.recv(2) == b"x\n"
    client.stop(job_id)
    assert channel.recv(1) == b""
    ssh.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


@needs_openssh
@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_openssh_programs(client: Client, platform: LocalRescale, node: str, tmp_path: Path, kind: str) -> None:
    """`ssh`, and `scp` by its old and its new protocol, work with keys of every kind."""
    identity = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(identity)], check=True)
    with platform.authorized_keys.open("a", encoding="utf-8") as stream:
        stream.write(identity.with_suffix(".pub").read_text(encoding="utf-8"))
    machine = client.rows(f"jobs/{node}/instances/")[0]
    options = ["-F", "none", "-i", str(identity), "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR"]
    options += ["-o", f"UserKnownHostsFile={tmp_path / 'known'}", "-o", "BatchMode=yes"]
    login = f"{machine['username']}@{machine['publicIp']}"
    port = str(machine["sshPort"])
    piped = subprocess.run(
        ["ssh", *options, "-p", port, login, "tr a-z A-Z; exit 4"], input=b"shout", capture_output=True, check=False
    )
    assert (piped.returncode, piped.stdout, piped.stderr) == (4, b"SHOUT", b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x y.txt").write_text(kind, encoding="utf-8")
    for protocol in ("-O", "-s"):
        target = f"copy-{kind}{protocol}"
        scp = ["scp", protocol, "-q", "-r", *options, "-P", port]
        subprocess.run([*scp, str(tmp_path / "folder"), f"{login}:work/{target}"], check=True)
        subprocess.run([*scp, f"{login}:~/work/{target}", str(tmp_path / target)], check=True)
        assert (tmp_path / target / "x y.txt").read_text(encoding="utf-8") == kind


def test_connections_at_once(client: Client, node: str, key: paramiko.PKey) -> None:
    """Several drivers can log in at the same moment."""
    said: list[str] = []

    def work() -> None:
        with client.connect(node, key) as ssh:
            said.append(say(ssh, "echo here"))

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == ["here\n"] * 5


# -- a machine's server by itself


@pytest.fixture
def host() -> Iterator[SshHost]:
    """Give the thread that serves machines."""
    host = SshHost()
    host.start()
    yield host
    host.stop()


def settings_of(home: Path, key: paramiko.PKey, reachable: Callable[[str, int], int | None]) -> NodeSettings:
    line = f"{key.get_name()} {key.get_base64()}"
    return NodeSettings("me", home, "/bin/sh", {}, lambda: [line], reachable)


def test_a_closed_machine_hears_nobody(host: SshHost, key: paramiko.PKey, tmp_path: Path) -> None:
    """Not even one that was about to listen again."""
    for wait in range(20):
        node = host.open_node(settings_of(tmp_path, key, lambda *_: None))
        node.refuse(0.001 * wait / 10)
        node.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", node.port), timeout=20).close()


def test_one_who_comes_while_a_machine_closes_is_let_go(host: SshHost, key: paramiko.PKey, tmp_path: Path) -> None:
    """No connection outlives its machine."""
    for _ in range(50):
        node = host.open_node(settings_of(tmp_path, key, lambda *_: None))
        with socket.create_connection(("127.0.0.1", node.port), timeout=20) as caller:
            node.close()
            with contextlib.suppress(ConnectionResetError):
                while caller.recv(100):
                    pass


def test_a_forwarded_connection_ends_with_the_one_it_is_for(host: SshHost, key: paramiko.PKey, tmp_path: Path) -> None:
    """Even when that is lost while the way is being opened."""
    with socket.create_server(("127.0.0.1", 0)) as target:
        target.settimeout(20)

        def reachable(name: str, port: int) -> int:
            for connection in list(node.connections):
                asyncio.get_running_loop().call_soon(connection.abort)
            return int(target.getsockname()[1])

        node = host.open_node(settings_of(tmp_path, key, reachable))
        with paramiko.Transport(("127.0.0.1", node.port)) as transport:
            transport.connect(username="me", pkey=key)
            with pytest.raises((paramiko.SSHException, EOFError)):
                transport.open_channel("direct-tcpip", ("worker", 22), ("127.0.0.1", 0), timeout=20)
            reached, _ = target.accept()
            with reached:
                reached.settimeout(20)
                assert reached.recv(1) == b""
        node.close()
