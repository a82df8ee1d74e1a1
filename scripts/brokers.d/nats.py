"""NATS with JetStream, built with Go: three servers."""

import json
import os
import socket

import install
from component import Component
from processes import http_get
from settings import SHARED, Failure

CLUSTER = "event-gateway"
ROUTE_PORT = 6222
REQUEST_LIMIT_S = 10


def program(settings):
    return settings.cache / f"nats-{settings['NATS_VERSION']}" / "nats-server"


class Nats(Component):
    name = "nats"
    nodes = ("nats1", "nats2", "nats3")

    def __init__(self, settings):
        super().__init__(settings)
        self.program = program(settings)
        self.routes = settings.private_ports(ROUTE_PORT)

    def install(self):
        with install.once(self.settings.cache / f"nats-{self.settings['NATS_VERSION']}.done") as todo:
            if todo:
                go = install.go(self.settings)
                env = {**os.environ, "GOBIN": str(self.program.parent), "GOTOOLCHAIN": "auto"}
                module = f"github.com/nats-io/nats-server/v2@v{self.settings['NATS_VERSION']}"
                install.run([go, "install", module], self.settings.logs / "nats-fetch.log", "build nats-server with Go",
                            cwd="/", env=env)

    def launch(self, node):
        data = self.directory / node
        data.mkdir(parents=True, exist_ok=True)
        self.processes[node].launch([self.program, *self.flags(node)], cwd=data)

    def flags(self, node):
        routes = ",".join(f"nats://127.0.0.1:{port}" for port in self.routes)
        return ["-c", SHARED / "nats.conf", "--server_name", node, "-a", "127.0.0.1", "-p", self.port(node),
                "-m", self.monitor(node), "-sd", self.directory / node, "--cluster_name", CLUSTER,
                "--cluster", f"nats://127.0.0.1:{self.routes[self.index(node)]}", "--no_advertise",
                "--routes", routes]

    def port(self, node):
        return self.settings.ports("NATS{}_PORT")[self.index(node)]

    def monitor(self, node):
        return self.settings.ports("NATS{}_MONITOR_PORT")[self.index(node)]

    def healthy(self, node):
        return http_get(f"http://127.0.0.1:{self.monitor(node)}/healthz") is not None

    def complete(self):
        """JetStream has a leader and knows all three."""
        self.processes["nats1"].wait_until(self.has_leader, 60)

    def has_leader(self):
        body = http_get(f"http://127.0.0.1:{self.monitor('nats1')}/jsz")
        cluster = json.loads(body).get("meta_cluster", {}) if body else {}
        return bool(cluster.get("leader")) and cluster.get("cluster_size") == 3

    def request(self, name):
        """Asks JetStream, in NATS' own protocol."""
        inbox = "_INBOX.scripts-brokers"
        lines = ["CONNECT {}", f"SUB {inbox} 1", f"PUB $JS.API.{name} {inbox} 0", ""]
        try:
            with socket.create_connection(("127.0.0.1", self.port("nats1")), timeout=REQUEST_LIMIT_S) as connection:
                connection.sendall("\r\n".join([*lines, ""]).encode())
                with connection.makefile("rb") as answers:
                    for line in answers:
                        if line.startswith(b"MSG "):
                            return self.answer(name, answers.read(int(line.split()[-1])))
        except OSError as error:
            raise Failure(f"NATS, {name}: {error}") from error
        raise Failure(f"NATS, {name}: no answer")

    def answer(self, name, body):
        answer = json.loads(body)
        if "error" in answer:
            raise Failure(f"NATS, {name}: {answer['error'].get('description')}")
        return answer

    def streams(self):
        return self.request("STREAM.NAMES").get("streams") or []
