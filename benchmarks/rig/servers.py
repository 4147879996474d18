"""Server processes under measure: started, pinned, their CPU read, ended.

In: a command and the name of the process that answers HTTP. Out: a Server whose `cpu()` is the CPU time in seconds of
that one process, all its threads, ended ones too, without its children. It has one core for itself; whatever it
started, an engine core above all, shares the other cores with the load. Refuses to know what is served.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

START_SECONDS = 180


@dataclass(frozen=True, slots=True)
class Program:
    """What is started, and gets its port as a flag. `api` is what the process that answers HTTP is called, where it is
    not the started one itself."""

    name: str
    command: Sequence[str]
    port: int
    env: Mapping[str, str] = field(default_factory=dict)
    api: str = ""


class StartFailed(RuntimeError):
    """A server that did not come up; the message has the end of its log."""


class Server:
    """A running Program; `pid` is the API process."""

    def __init__(self, program: Program, log: Path) -> None:
        self.program, self.port, self._log = program, program.port, log
        with log.open("wb") as out:
            env = {**os.environ, **program.env}
            self._process = subprocess.Popen(
                [*program.command, "--port", str(program.port)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def wait(self) -> None:
        """Until it answers; then each process gets its cores."""
        deadline = time.monotonic() + START_SECONDS
        while not answers(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                lines = self._log.read_text(errors="replace").splitlines()
                raise StartFailed(f"{self.program.name} did not start:\n" + "\n".join(lines[-15:]))
            time.sleep(0.2)
        family = [self._process.pid, *descendants(self._process.pid)]
        if self.program.api:
            self.pid = next(pid for pid in family if name_of(pid) == self.program.api)
        first, others = cores()
        for pid in family:
            pin(pid, first if pid == self.pid else others)

    def cpu(self) -> float:
        return cpu_seconds(self.pid)

    def rest_cpu(self) -> float:
        """CPU seconds of the other processes of the server: the engine core."""
        return sum(cpu_seconds(pid) for pid in [self._process.pid, *descendants(self._process.pid)] if pid != self.pid)

    def ended(self, within_s: float) -> int:
        """Its exit status. Raises TimeoutExpired."""
        return self._process.wait(within_s)

    def stop(self) -> None:
        if self._process.poll() is not None:
            return
        family = [self._process.pid, *descendants(self._process.pid)]
        self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(15)
        for pid in family:  # whatever did not go by itself
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()


def cores() -> tuple[set[int], set[int]]:
    """The core of the measured process, and the others: of all that this program may use, as it was started."""
    mine = sorted(_ALL)
    return {mine[0]}, set(mine[1:]) or {mine[0]}


_ALL = os.sched_getaffinity(0)


def pin(pid: int, where: set[int]) -> None:
    """All threads of a process; those it starts later inherit it."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), where)


def cpu_seconds(pid: int) -> float:
    """utime + stime as of /proc/PID/stat, from the process's CPU clock: nanoseconds, where stat counts in 10 ms."""
    return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3)


def machine_cpu() -> float:
    """CPU seconds that the whole machine has spent, whoever asked for them."""
    user, nice, system, _idle, _wait, *rest = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    return sum(map(int, (user, nice, system, *rest))) / os.sysconf("SC_CLK_TCK")


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield int(child)
            with suppress(FileNotFoundError):
                yield from descendants(int(child))


def answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.settimeout(5)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return b" 200 " in connection.recv(4096)[:16]
    return False


@contextmanager
def profiled(pid: int, path: Path | None) -> Iterator[None]:
    """py-spy (`pip install py-spy`), where there is a path, on a process meanwhile: collapsed stacks, one line each."""
    if path is None:
        yield
        return
    py_spy = str(Path(sys.executable).with_name("py-spy"))
    command = [py_spy, "record", "--pid", str(pid), "--rate", "500", "--format", "raw", "--output", str(path)]
    spy = subprocess.Popen([*command, "--duration", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1)
    try:
        yield
    finally:
        spy.send_signal(signal.SIGINT)
        spy.wait(30)


# Threads that wait, which py-spy takes for running.
_IDLE = ("_worker (concurrent/futures/thread.py", "select (selectors.py", "wait (threading.py")


def top_of(path: Path, count: int = 40) -> str:
    """Where the time went: the share of samples with a function on the stack, and with it on top."""
    on_top: Counter[str] = Counter()
    on_stack: Counter[str] = Counter()
    for line in path.read_text().splitlines():
        stack, _, samples = line.rpartition(" ")
        frames = [re.sub(r":\d+\)$", ")", frame) for frame in stack.split(";")]
        if not any(idle in frames[-1] for idle in _IDLE):
            on_top[frames[-1]] += int(samples)
            on_stack.update({frame: int(samples) for frame in frames})
    total = on_top.total() or 1
    names = sorted({*dict(on_stack.most_common(count)), *dict(on_top.most_common(count))}, key=lambda n: -on_stack[n])
    lines = [f"{100 * on_stack[n] / total:7.1f}{100 * on_top[n] / total:7.1f}  {n}" for n in names]
    return f"{total} samples: % on the stack, % on top\n" + "\n".join(lines)
