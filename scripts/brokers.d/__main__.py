"""Real brokers on this machine without Docker.

  scripts/brokers up [COMPONENT...]            install what is missing, start, wait until healthy; idempotent
  scripts/brokers down [--wipe] [COMPONENT...] stop; --wipe removes the data, too
  scripts/brokers status [COMPONENT...]        node, state, port, pid, MiB; exit code 0 when all are up
  scripts/brokers env [tests|gateway]          addresses as shell assignments (default: both)
  scripts/brokers kill|start|pause|resume NODE...
                                               SIGKILL, start again, SIGSTOP, SIGCONT: for fault tests
  scripts/brokers fresh COMMAND ARGS...        runs it with the gateway's variables, as on brokers that nobody has used
                                               (not beside a gateway: its NATS streams of commands are deleted)
  scripts/brokers kafka TOOL ARGS...           one of Kafka's tools, e.g. TopicCommand --list
  scripts/brokers rabbitmqctl NODE ARGS...     e.g. rabbit1 cluster_status
  scripts/brokers psql SQL                     one statement

Components: kafka rabbitmq nats registry postgres. Nodes: kafka1..3, rabbit1..3, nats1..3, registry, postgres.
BROKERS_DIR (default target/brokers) holds downloads, data, logs and pids; BROKERS_CACHE moves the downloads.
BROKERS_SHIFT=100 moves every port up by 100: a second set beside the first, in a directory of its own.
"""

import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import environment
import world
from component import at_once
from kafka import Kafka
from nats import Nats
from postgres import Postgres
from processes import resident_mib
from rabbitmq import RabbitMq
from registry import Registry
from settings import Failure, Settings

COMPONENTS = (Postgres, Nats, Kafka, Registry, RabbitMq)
LOCK_S = 900


class Brokers:
    def __init__(self):
        self.settings = Settings()
        self.all = {component.name: component(self.settings) for component in COMPONENTS}

    def chosen(self, names):
        unknown = [name for name in names if name not in self.all]
        if unknown:
            raise Failure(f"unknown component {unknown[0]}; there are {' '.join(self.all)}")
        return [component for name, component in self.all.items() if not names or name in names]

    def owner(self, node):
        for component in self.all.values():
            if node in component.nodes:
                return component
        raise Failure(f"unknown node {node}; there are {' '.join(n for c in self.all.values() for n in c.nodes)}")

    @contextmanager
    def locked(self):
        """One command at a time per directory."""
        self.settings.make_directories()
        with open(self.settings.directory / ".lock", "w") as lock:
            end = time.monotonic() + LOCK_S
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise Failure(f"another command has held {lock.name} for {LOCK_S} s") from None
                    time.sleep(0.2)
            yield

    def up(self, names):
        components = self.chosen(names)
        started = time.monotonic()
        with self.locked():
            failures, nodes = zip(*at_once(up, components))
        if any(failures):
            raise Failure("\n".join(filter(None, failures)))
        how = f"up in {time.monotonic() - started:.1f} s" if any(nodes) else "were up already; nothing started"
        print(f"brokers: {' '.join(c.name for c in components)} {how}")

    def down(self, names):
        wipe = "--wipe" in names
        components = self.chosen([name for name in names if name != "--wipe"])
        with self.locked():
            at_once(lambda component: component.stop(), components)
            for directory in (d for c in components if wipe for d in c.data_directories()):
                shutil.rmtree(directory, ignore_errors=True)
        print(f"brokers: {' '.join(c.name for c in components)} down")

    def status(self, names):
        all_up = True
        print(f"{'node':<10} {'state':<8} {'port':>6} {'pid':>8} {'MiB':>6}")
        for component in self.chosen(names):
            for node in component.nodes:
                pid = component.processes[node].pid()
                state = "down" if pid is None else "up" if component.healthy(node) else "sick"
                all_up &= state == "up"
                memory = resident_mib(pid) if pid else ""
                print(f"{node:<10} {state:<8} {component.port(node):>6} {pid or '':>8} {memory:>6}")
        return 0 if all_up else 1

    def env(self, names):
        wanted = names or ["tests", "gateway"]
        sets = {"tests": environment.for_tests, "gateway": environment.for_gateway}
        for name in wanted:
            if name not in sets:
                raise Failure(f"unknown set of variables {name}; there are tests and gateway")
            for key, value in sets[name](self.settings).items():
                print(f"{key}={shlex.quote(value)}")

    def kill(self, nodes):
        for node in nodes:
            pid = self.owner(node).processes[node].kill()
            print(f"brokers: killed {node} ({pid})")

    def start(self, nodes):
        owners = [(self.owner(node), node) for node in nodes]
        with self.locked():
            at_once(lambda pair: pair[0].start(pair[1]), owners)
        print(f"brokers: {' '.join(nodes)} up")

    def freeze(self, nodes, number):
        for node in nodes:
            self.owner(node).processes[node].freeze(number)

    def fresh(self, command):
        parts = (self.all[name] for name in ("rabbitmq", "nats", "postgres"))
        return world.run(world.World(self.settings, *parts), command)

    def rabbitmqctl(self, node, arguments):
        env, command = self.all["rabbitmq"].control(node)
        return subprocess.run([*command, *arguments], env=env, check=False).returncode


def up(component):
    """None, or why it did not come up; and the nodes that were started."""
    try:
        return None, component.up()
    except (Failure, OSError, subprocess.SubprocessError) as error:
        return f"{component.name}: {error}", []


def main(arguments):
    brokers = Brokers()
    match arguments:
        case ["up", *names]:
            return brokers.up(names)
        case ["down", *names]:
            return brokers.down(names)
        case ["status", *names]:
            return brokers.status(names)
        case ["env", *names]:
            return brokers.env(names)
        case ["kill", *nodes] if nodes:
            return brokers.kill(nodes)
        case ["start", *nodes] if nodes:
            return brokers.start(nodes)
        case ["pause", *nodes] if nodes:
            return brokers.freeze(nodes, signal.SIGSTOP)
        case ["resume", *nodes] if nodes:
            return brokers.freeze(nodes, signal.SIGCONT)
        case ["fresh", *command] if command:
            return brokers.fresh(command)
        case ["kafka", tool, *rest]:
            return brokers.all["kafka"].tool(tool, rest)
        case ["rabbitmqctl", node, *rest]:
            return brokers.rabbitmqctl(node, rest)
        case ["psql", sql]:
            return print(brokers.all["postgres"].query(sql))
        case ["help" | "-h" | "--help"]:
            return print(__doc__.strip())
    print(__doc__.strip(), file=sys.stderr)
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Failure as failure:
        sys.exit("\n".join(f"brokers: {line}" for line in str(failure).splitlines()))
    except KeyboardInterrupt:
        os._exit(130)
