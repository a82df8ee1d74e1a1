"""Server processes that outlive this program: started detached, known by a pid file."""

import os
import signal
import socket
import subprocess
import time
import urllib.request
from http.client import HTTPException

from settings import Failure

POLL_S = 0.2


def port_open(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


def http_get(url, authorization=None):
    """The body of a 2xx answer; None for anything else."""
    request = urllib.request.Request(url, headers={"Authorization": authorization} if authorization else {})
    try:
        with urllib.request.urlopen(request, timeout=3) as answer:
            return answer.read()
    except (OSError, HTTPException):
        # Another program at this port may speak another protocol.
        return None


def http_send(method, url, body, authorization):
    """PUT or POST. Fails unless the answer is 2xx."""
    headers = {"Authorization": authorization, "Content-Type": "application/json"}
    request = urllib.request.Request(url, data=body, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10):
            pass
    except (OSError, HTTPException) as error:
        raise Failure(f"{method} {url}: {error}") from error


def stat_fields(pid):
    """State and start time of a process; None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], fields[19]


def children(pid):
    """The pids of a process's children."""
    found = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += map(int, file.read().split())
    except OSError:
        pass
    return found


def resident_mib(pid):
    """Memory of a process and its descendants."""
    total = 0
    try:
        with open(f"/proc/{pid}/status") as file:
            total = sum(int(line.split()[1]) // 1024 for line in file if line.startswith("VmRSS"))
    except OSError:
        pass
    return total + sum(map(resident_mib, children(pid)))


class Process:
    """One server process. The pid file holds pid and start time, so that a number given to
    another process later is never mistaken for ours."""

    def __init__(self, name, settings):
        self.name = name
        self.pid_file = settings.run / f"{name}.pid"
        self.log = settings.logs / f"{name}.log"

    def pid(self):
        """Its pid while it runs."""
        try:
            pid, started = self.pid_file.read_text().split()
        except (OSError, ValueError):
            return None
        fields = stat_fields(pid)
        return int(pid) if fields and fields[0] != "Z" and fields[1] == started else None

    def launch(self, command, env=None, cwd="/"):
        # A log from an earlier start would explain the wrong failure.
        with open(self.log, "wb") as log:
            child = subprocess.Popen(
                [str(part) for part in command], env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True)
        fields = stat_fields(child.pid)
        if fields:
            self.pid_file.write_text(f"{child.pid} {fields[1]}")

    def wait_until(self, healthy, seconds):
        """Waits for `healthy()`; fails when the process dies or takes longer."""
        end = time.monotonic() + seconds
        while not healthy():
            if self.pid() is None:
                raise Failure(f"{self.name} died; the end of {self.log}:\n{self.tail()}")
            if time.monotonic() > end:
                raise Failure(f"{self.name} is not healthy after {seconds} s; the end of {self.log}:\n{self.tail()}")
            time.sleep(POLL_S)

    def tail(self):
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])
        except OSError:
            return "(no log)"

    def send(self, number):
        pid = self.pid()
        if pid is None:
            raise Failure(f"{self.name} does not run")
        os.kill(pid, number)
        return pid

    def freeze(self, number):
        """SIGSTOP or SIGCONT, for its children, too: PostgreSQL's sessions are processes."""
        pid = self.send(number)
        for child in children(pid):
            try:
                os.kill(child, number)
            except ProcessLookupError:
                pass

    def stop(self, number=signal.SIGTERM, seconds=30):
        """Asks it to end, then kills it."""
        if self.pid() is not None:
            self.freeze(signal.SIGCONT)
            self.send(number)
            end = time.monotonic() + seconds
            while self.pid() is not None and time.monotonic() < end:
                time.sleep(POLL_S)
            if self.pid() is not None:
                self.kill()
        self.pid_file.unlink(missing_ok=True)

    def kill(self):
        """SIGKILL, and waits until it is gone."""
        pid = self.send(signal.SIGKILL)
        while self.pid() is not None:
            time.sleep(0.02)
        self.pid_file.unlink(missing_ok=True)
        return pid
