"""Where things are: directories, ports, versions."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT / "deploy" / "brokers"
NODES = (1, 2, 3)


class Failure(Exception):
    """What went wrong, in words for whoever called."""


def read_env(path):
    """The assignments of an env file."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


class Settings:
    def __init__(self):
        self.values = read_env(SHARED / "brokers.env")
        self.directory = Path(os.environ.get("BROKERS_DIR") or ROOT / "target" / "brokers").resolve()
        # Added to every port, so that a second set can run beside the first.
        self.shift = int(os.environ.get("BROKERS_SHIFT") or 0)
        self.cache = Path(os.environ.get("BROKERS_CACHE") or self.directory / "cache").resolve()
        self.data = self.directory / "data"
        self.logs = self.directory / "log"
        self.run = self.directory / "run"

    def __getitem__(self, name):
        return self.values[name]

    def make_directories(self):
        for directory in (self.cache, self.data, self.logs, self.run):
            directory.mkdir(parents=True, exist_ok=True)

    def port(self, name):
        """The port NAME of brokers.env, shifted."""
        return int(self.values[name]) + self.shift

    def ports(self, pattern):
        """One port a node: `pattern` has {} for the node's number."""
        return [self.port(pattern.format(node)) for node in NODES]

    def private_ports(self, first):
        """Three ports that only the nodes themselves use."""
        return [first + node + self.shift for node in range(3)]

    def addresses(self, pattern):
        return [f"127.0.0.1:{port}" for port in self.ports(pattern)]
