"""Runs a command where only this machine can be reached, and records what it looked up, connected to and wrote.

`strace` sees every system call of every process and thread, whatever language made it; a namespace without network
(`unshare`) refuses what is recorded. Names are looked up at a server that is not there, so that they are in the record.
Linux alone. Begin at `record`; `missing` says why a machine cannot.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
_NETWORK = "connect,sendto,sendmsg,sendmmsg,bind,io_uring_setup"  # calls through io_uring would not be seen
_FILES = "open,openat,openat2,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,truncate"
# Run as root of the namespace: bring the loopback up, and put another resolver in the place of the machine's.
_ENTER = """
import fcntl, os, socket, struct, subprocess, sys
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 0x49))  # SIOCSIFFLAGS: up, loopback, running
for ours, theirs in (("resolv.conf", "/etc/resolv.conf"), ("nsswitch.conf", "/etc/nsswitch.conf"),
                     ("/dev/null", "/run/nscd/socket")):
    if os.path.exists(theirs):
        place = os.path.join(sys.argv[1], ours)
        subprocess.run(["mount", "--bind", place, os.path.realpath(theirs)], check=True)
os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Record:
    """What a command and all that it started did.

    Attributes:
        status: the exit status of the command.
        said: its stdout and stderr.
        lookups: names that were looked up.
        connections: addresses beyond the loopback that were connected to, sent to or listened on, refused or not.
        written: files and folders that were made, or opened to be written; absolute paths.
        threads: how many threads were recorded, each process has at least one.
    """

    status: int
    said: str
    lookups: set[str]
    connections: set[str]
    written: set[str]
    threads: int

    def written_outside(self, *folders: Path) -> list[str]:
        """What was written below none of `folders`."""
        inside = tuple(f"{folder}/" for folder in folders)
        return sorted(path for path in self.written if not f"{path}/".startswith(inside))


@cache
def missing() -> str:
    """Why nothing can be recorded here; empty where it can."""
    for program in ("strace", "unshare", "mount"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    try:
        tried = ["unshare", "-rnm", "strace", "-f", "--seccomp-bpf", "-o", os.devnull, "true"]
        done = subprocess.run(tried, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return "strace does not answer in a namespace"
    return "" if done.returncode == 0 else f"no namespace, or no tracing in it: {done.stderr.strip()[:100]}"


def record(
    command: Sequence[str], root: Path, *, environment: Mapping[str, str] | None = None, timeout_s: float = 900
) -> Record:
    """Run `command` in ``root/work``, with the home ``root/home`` and the temporary folder ``root/tmp``.

    Nothing else of this process's environment is passed on, such as the variables of CI services, at which some
    libraries fall silent.

    Raises:
        subprocess.TimeoutExpired: it took longer; all its processes are ended.
    """
    for folder in ("work", "home", "tmp", "trace"):
        (root / folder).mkdir(exist_ok=True)
    (root / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    (root / "nsswitch.conf").write_text("hosts: files dns\n")
    traced = ["strace", "-ff", "--seccomp-bpf", "-qq", "-y", "-s", "256", "-o", str(root / "trace" / "t")]
    traced += ["-e", f"trace={_NETWORK},{_FILES}", *command]
    with subprocess.Popen(
        ["unshare", "-rnm", sys.executable, "-c", _ENTER, str(root), *traced],
        cwd=root / "work",
        env=_environment(root) | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    lookups, connections, written = set[str](), set[str](), set[str]()
    traces = list((root / "trace").iterdir())
    for trace in traces:
        lines = trace.read_text(encoding="utf-8", errors="replace").splitlines()
        lookups.update(_lookups(lines))
        connections.update(address for line in lines for address in _beyond(line))
        written.update(path for line in lines for path in _written(line))
    return Record(process.returncode, said, lookups, connections, written, len(traces))


def _environment(root: Path) -> dict[str, str]:
    return {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin", "/usr/sbin", "/sbin"]),
        "LANG": "C.UTF-8",
        "HOME": str(root / "home"),
        "TMPDIR": str(root / "tmp"),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }


# ---- what a line of strace says


_ADDRESS = re.compile(
    r'sin_port=htons\((\d+)\), sin_addr=inet_addr\("([^"]+)"\)|sin6_port=htons\((\d+)\).*?AF_INET6, "([^"]+)"'
)


def _addresses(line: str) -> Iterator[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]]:
    for port, address, port6, address6 in _ADDRESS.findall(line):
        found = ipaddress.ip_address(address or address6)
        yield getattr(found, "ipv4_mapped", None) or found, int(port or port6)


def _beyond(line: str) -> Iterator[str]:
    if line.startswith("io_uring_setup(") and " = -1" not in line:
        yield "io_uring, which cannot be recorded"
    if line.startswith(("connect(", "sendto(", "sendmsg(", "sendmmsg(", "bind(")):
        yield from (f"{address} port {port}" for address, port in _addresses(line) if not address.is_loopback)


def _lookups(lines: Sequence[str]) -> Iterator[str]:
    """Names in the questions that a thread sends to port 53."""
    asking = False
    for line in lines:
        if line.startswith("connect("):
            asking = any(port == 53 for _, port in _addresses(line))
        elif asking and (question := re.search(r'"((?:[^"\\]|\\.)*)"', line)):
            content = question[1].encode("latin-1", "replace").decode("unicode_escape")[12:]
            labels = []
            while content and (length := ord(content[0])):
                labels.append(content[1 : 1 + length])
                content = content[1 + length :]
            yield ".".join(labels)


def _written(line: str) -> Iterator[str]:
    """Files by the path of the descriptor that was opened, whatever the folder that the process was in."""
    call, _, rest = line.partition("(")
    if " = -1 " in line:
        return
    if call in ("open", "openat", "openat2", "creat"):
        opened = re.search(r"\) = \d+<([^>]+)>", rest)
        if opened and (call == "creat" or re.search(r"O_WRONLY|O_RDWR|O_CREAT", rest)):
            yield from _real(opened[1])
    elif call == "bind" and (bound := re.search(r'sun_path="(/[^"]*)"', rest)):
        yield from _real(bound[1])
    elif call in _FILES.split(","):
        # The last name is the one that is made; a relative one begins in the folder of the run.
        yield from _real(re.findall(r'"(/[^"]*)"', rest)[-1:])


def _real(paths: str | Sequence[str]) -> Iterator[str]:
    """Without devices, which include the memory that processes share, and without the kernel's own files."""
    for path in [paths] if isinstance(paths, str) else paths:
        if path.startswith("/") and not path.startswith(("/dev/", "/proc/")):
            yield os.path.normpath(path)
