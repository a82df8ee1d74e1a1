"""PostgreSQL from Debian, on a data directory of its own."""

import hashlib
import os
import signal
import subprocess
import time
from pathlib import Path

import install
from component import Component
from processes import POLL_S, stat_fields
from settings import SHARED, Failure

SYSTEM_USER = "postgres"
# Text is compared byte by byte, whatever the machine's language is.
CLUSTER = ["--encoding=UTF8", "--no-locale"]
ORPHANS_S = 10


def forget_killed(lock):
    """Removes the lock file of a server that was killed but is not reaped yet: PostgreSQL takes a
    zombie for a running server. Its backends have to be gone first."""
    try:
        lines = lock.read_text().splitlines()
        fields = stat_fields(lines[0])
        if fields is None or fields[0] != "Z":
            return
        segment = lines[6].split()[1]
    except (OSError, IndexError):
        return
    end = time.monotonic() + ORPHANS_S
    while attached(segment) and time.monotonic() < end:
        time.sleep(POLL_S)
    if not attached(segment):
        lock.unlink(missing_ok=True)


def attached(segment):
    """How many processes use a shared memory segment."""
    rows = (line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:])
    return sum(int(row[6]) for row in rows if row[1] == segment)


PROGRAMS = Path("/usr/lib/postgresql")


def installed():
    """The major versions that are on this machine."""
    return [int(initdb.parts[-3]) for initdb in PROGRAMS.glob("*/bin/initdb")]


class Postgres(Component):
    name = "postgres"
    nodes = ("postgres",)

    def __init__(self, settings):
        super().__init__(settings)
        # What Compose has, until it is known which one Debian has: each release has one major version.
        self.major = max(installed(), default=int(settings["POSTGRES_VERSION"].split(".")[0]))

    @property
    def programs(self):
        return PROGRAMS / str(self.major) / "bin"

    def version(self):
        return f"Debian's {self.major}"

    def install(self):
        if not installed():
            install.packages(self.settings, ["postgresql"])
            self.major = max(installed())

    def as_server(self):
        """PostgreSQL refuses to run as root."""
        if os.geteuid() != 0:
            return []
        return ["setpriv", f"--reuid={SYSTEM_USER}", f"--regid={SYSTEM_USER}", "--init-groups"]

    def place(self):
        """The data directory: below ours, or where the system user may go if it cannot come in here."""
        probe = [*self.as_server(), "test", "-x", str(self.directory.parent)]
        if subprocess.run(probe, check=False).returncode == 0:
            return self.directory
        return Path("/var/lib/postgresql") / f"brokers-{hashlib.sha256(str(self.directory).encode()).hexdigest()[:12]}"

    def launch(self, node):
        data = self.place()
        if not (data / "PG_VERSION").exists():
            self.initialise(data)
        forget_killed(data / "postmaster.pid")
        # A copy, since the checkout may be closed to the system user.
        config = data / "shared.conf"
        config.write_text(self.config(node))
        settings = {"config_file": config, **self.own_settings(node)}
        flags = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        self.processes[node].launch([*self.as_server(), self.programs / "postgres", "-D", data, *flags])

    def config(self, node):
        return (SHARED / "postgresql.conf").read_text()

    def own_settings(self, node):
        return {"port": self.port(node), "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}

    def initialise(self, data):
        data.mkdir(parents=True, exist_ok=True)
        data.chmod(0o700)
        if self.as_server():
            subprocess.run(["chown", SYSTEM_USER, str(data)], check=True)
        command = [*self.as_server(), self.programs / "initdb", "-D", data, "-A", "trust",
                   "-U", self.settings["POSTGRES_USER"], *CLUSTER]
        install.run(command, self.settings.logs / "postgres-initdb.log", "create the PostgreSQL cluster", cwd="/")

    def port(self, node):
        return self.settings.port("POSTGRES_PORT")

    def healthy(self, node):
        ready = [self.programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port(node))]
        return subprocess.run(ready, check=False).returncode == 0

    def complete(self):
        database = self.settings["POSTGRES_DATABASE"]
        if self.query(f"select 1 from pg_database where datname = '{database}'") != "1":
            self.query(f'create database "{database}"')

    def query(self, sql):
        command = [self.programs / "psql", "-X", "-h", "127.0.0.1", "-p", str(self.port("postgres")),
                   "-U", self.settings["POSTGRES_USER"], "-d", "postgres", "-tAc", sql]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, cwd="/")
        if done.returncode:
            raise Failure(done.stderr.strip())
        return done.stdout.strip()

    def stop(self):
        # INT is its fast shutdown; TERM waits for clients.
        self.processes["postgres"].stop(signal.SIGINT)

    def data_directories(self):
        return [self.directory, self.place()]
