"""Brokers and a database as a gateway finds them on its first day, for one command."""

import os
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager

import environment
from processes import POLL_S, Failure

VHOST_LIMIT_S = 30
# What a gateway sends runners, under names that all gateways of these servers share.
COMMAND_STREAMS = "COMMANDS_"


class World:
    """A virtual host, a database and a prefix of topics, of one name."""

    def __init__(self, settings, rabbitmq, nats, postgres):
        self.settings, self.rabbitmq, self.nats, self.postgres = settings, rabbitmq, nats, postgres
        self.name = f"w{uuid.uuid4().hex}"

    def make(self):
        self.postgres.query(f'create database "{self.name}"')
        self.rabbitmq.put(f"vhosts/{self.name}", {})
        rights = {"configure": ".*", "write": ".*", "read": ".*"}
        self.rabbitmq.put(f"permissions/{self.name}/{self.settings['RABBITMQ_USER']}", rights)
        end = time.monotonic() + VHOST_LIMIT_S
        while not self.runs_everywhere():
            if time.monotonic() > end:
                raise Failure(f"virtual host {self.name} does not run on all nodes after {VHOST_LIMIT_S} s")
            time.sleep(POLL_S)
        # They hold commands of jobs that no database knows any more.
        for stream in self.nats.streams():
            if stream.startswith(COMMAND_STREAMS):
                self.nats.request(f"STREAM.DELETE.{stream}")

    def runs_everywhere(self):
        host = self.rabbitmq.management("rabbit1", f"vhosts/{self.name}") or {}
        states = host.get("cluster_state", {}).values()
        return len(states) == 3 and set(states) == {"running"}

    def variables(self):
        values = environment.for_gateway(self.settings)
        values["GATEWAY__RABBITMQ__URLS"] = values["GATEWAY__RABBITMQ__URLS"].replace("/%2f", f"/{self.name}")
        values["GATEWAY__STORE__URL"] = values["GATEWAY__STORE__URL"].rpartition("/")[0] + f"/{self.name}"
        return values | {"GATEWAY__KAFKA__TOPIC_PREFIX": f"{self.name}-"}

    def is_used(self):
        """Has a gateway been here? It declares its queues when it starts."""
        return bool(self.rabbitmq.management("rabbit1", f"queues/{self.name}?columns=name"))

    def remove(self):
        """Topics stay: they go with the directory of the brokers."""
        self.postgres.query(f'drop database if exists "{self.name}" with (force)')
        self.rabbitmq.ask("DELETE", "rabbit1", f"vhosts/{self.name}")


@contextmanager
def removed(world):
    try:
        yield
    finally:
        # What the command did is more important than what it left.
        try:
            world.remove()
        except (Failure, OSError, subprocess.SubprocessError) as error:
            print(f"brokers: cannot remove {world.name}: {error}", file=sys.stderr)


def run(world, command):
    """The command's exit code."""
    with removed(world):
        world.make()
        code = subprocess.run(command, env={**os.environ, **world.variables()}, check=False).returncode
        if code == 0 and not world.is_used():
            raise Failure(f"{command[0]} has declared nothing: does it give its gateway the GATEWAY__ variables?")
        return code
