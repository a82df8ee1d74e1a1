"""RabbitMQ from Debian: three nodes with an epmd of their own; 2 and 3 join 1 at their first start."""

import base64
import contextlib
import json
import os
import shutil
import sys
import time
import urllib.parse
from pathlib import Path

import install
from certificates import Certificates
from component import Component, at_once
from processes import Failure, http_get, http_send, port_open
from settings import SHARED

PROGRAMS = Path("/usr/lib/rabbitmq/bin")
PLUGINS = "[rabbitmq_management,rabbitmq_prometheus]."
EPMD_PORT = 14369
DISTRIBUTION_PORT = 25672
PROMETHEUS_PORT = 15692
TLS_PORT = 5771
# Whom only the right password lets in; clients fall back on guest by themselves.
TLS_USER = "gateway"
TLS_PASSWORD = "by-tls-only"
# How long a virtual host is given to start before it is asked to again.
VHOST_START_S = 15


class RabbitMq(Component):
    name = "rabbitmq"
    nodes = ("epmd", "rabbit1", "rabbit2", "rabbit3")
    # A node that starts after the others were killed waits for them.
    start_limit_s = 240

    def __init__(self, settings):
        super().__init__(settings)
        self.epmd_port = EPMD_PORT + settings.shift
        self.distribution = settings.private_ports(DISTRIBUTION_PORT)
        self.prometheus = settings.private_ports(PROMETHEUS_PORT)
        self.tls = settings.private_ports(TLS_PORT)
        self.certificates = Certificates(settings)
        self.vhosts_started = {}
        login = f"{settings['RABBITMQ_USER']}:{settings['RABBITMQ_PASSWORD']}"
        self.authorization = "Basic " + base64.b64encode(login.encode()).decode()

    def install(self):
        if not (PROGRAMS / "rabbitmq-server").exists() or not shutil.which("epmd"):
            install.packages(self.settings, ["rabbitmq-server"])
        self.certificates.make()

    def launch_all(self, nodes):
        self.share_cookie()
        (self.directory / "plugins").write_text(PLUGINS + "\n")
        rabbits = [node for node in nodes if node != "epmd"]
        if "epmd" in nodes:
            self.start("epmd")
        if (self.directory / "mnesia" / "rabbit3@localhost").exists():
            # Nodes of a cluster wait for each other: all at once.
            super().launch_all(rabbits)
        else:
            for node in rabbits:
                self.start(node)

    def share_cookie(self):
        cookie = self.directory / ".erlang.cookie"
        if not cookie.exists():
            cookie.touch(mode=0o600)
            cookie.write_text("EVENTGATEWAYBROKERS")
            cookie.chmod(0o400)

    def launch(self, node):
        if node == "epmd":
            env = {**os.environ, "ERL_EPMD_ADDRESS": "127.0.0.1"}
            self.processes[node].launch(["epmd", "-port", self.epmd_port], env=env, cwd=self.directory)
            return
        (self.directory / f"{node}.conf").write_text(self.config(node))
        server = [PROGRAMS / "rabbitmq-server"]
        self.processes[node].launch(server, env=self.environment(node), cwd=self.directory)

    def version(self):
        return "Debian's"

    def config(self, node):
        return (SHARED / "rabbitmq.conf").read_text() + self.own_settings(node)

    def own_settings(self, node):
        lines = [f"listeners.tcp.1 = 127.0.0.1:{self.port(node)}",
                 "management.tcp.ip = 127.0.0.1",
                 f"management.tcp.port = {self.management_port(node)}",
                 "prometheus.tcp.ip = 127.0.0.1",
                 f"prometheus.tcp.port = {self.prometheus[self.index(node)]}",
                 f"listeners.ssl.1 = 127.0.0.1:{self.tls[self.index(node)]}",
                 f"ssl_options.cacertfile = {self.certificates['ca']}",
                 f"ssl_options.certfile = {self.certificates['server']}",
                 f"ssl_options.keyfile = {self.certificates['server-key']}",
                 "ssl_options.verify = verify_peer",
                 "ssl_options.fail_if_no_peer_cert = true"]
        if node != "rabbit1":
            # Joining at the first start is three times faster than stop_app, join_cluster, start_app.
            lines += ["cluster_formation.peer_discovery_backend = classic_config",
                      "cluster_formation.classic_config.nodes.1 = rabbit1@localhost",
                      f"cluster_formation.classic_config.nodes.2 = {node}@localhost"]
        return "\n".join(["", *lines, ""])

    def environment(self, node):
        return {
            **os.environ,
            "HOME": str(self.directory),
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"{node}@localhost",
            "RABBITMQ_DIST_PORT": str(self.distribution[self.index(node)]),
            # Three nodes on one machine: schedulers must not be bound to the same processors, nor
            # spin when idle.
            "RABBITMQ_SCHEDULER_BIND_TYPE": "u",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS":
                "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none",
            "RABBITMQ_CONFIG_FILE": str(self.directory / f"{node}.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(self.directory / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.settings.logs),
            "RABBITMQ_PID_FILE": str(self.directory / f"{node}.pid"),
            # The start script then becomes the server: one pid to stop and to kill.
            "RUNNING_UNDER_SYSTEMD": "1",
        }

    def control(self, node, tool="rabbitmqctl"):
        """Environment and command of rabbitmqctl for a node."""
        env = self.environment(node)
        for name in ("RABBITMQ_DIST_PORT", "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"):
            del env[name]
        return env, [str(PROGRAMS / tool), "-n", f"{node}@localhost"]

    def port(self, node):
        return self.epmd_port if node == "epmd" else self.settings.ports("RABBITMQ{}_PORT")[self.index(node)]

    def management_port(self, node):
        return self.settings.ports("RABBITMQ{}_MANAGEMENT_PORT")[self.index(node)]

    def management(self, node, path):
        body = http_get(f"http://127.0.0.1:{self.management_port(node)}/api/{path}", self.authorization)
        return None if body is None else json.loads(body)

    def put(self, path, value):
        self.ask("PUT", "rabbit1", path, json.dumps(value).encode())

    def ask(self, method, node, path, body=b""):
        http_send(method, f"http://127.0.0.1:{self.management_port(node)}/api/{path}", body, self.authorization)

    def secured_urls(self):
        login = f"{TLS_USER}:{TLS_PASSWORD}"
        return ",".join(f"amqps://{login}@localhost:{port}/%2f" for port in self.tls)

    def healthy(self, node):
        if node == "epmd":
            return port_open(self.epmd_port)
        return (port_open(self.port(node))
                and self.management(node, "health/checks/local-alarms") is not None
                and self.management(node, "health/checks/virtual-hosts") is not None)

    def start(self, node):
        super().start(node)
        # Those that had paused as a minority begin again only now.
        others = (other for other in self.nodes if other not in ("epmd", node) and self.processes[other].pid())
        at_once(self.wait, others)

    def wait(self, node):
        if node == "epmd":
            super().wait(node)
            return
        self.processes[node].wait_until(lambda: self.healthy(node) or self.start_virtual_hosts(node), self.start_limit_s)

    def start_virtual_hosts(self, node):
        """A virtual host whose recovery has failed, as it may on a slow machine whose nodes all start at once,
        refuses every client of this node until an operator starts it."""
        for host in self.management(node, "vhosts?columns=name,cluster_state") or []:
            state = host.get("cluster_state", {}).get(f"{node}@localhost")
            started = self.vhosts_started.get((node, host["name"]), float("-inf"))
            if state == "stopped" and time.monotonic() - started >= VHOST_START_S:
                self.vhosts_started[node, host["name"]] = time.monotonic()
                print(f"brokers: {node}: virtual host {host['name']} is down; starting it", file=sys.stderr)
                place = urllib.parse.quote(host["name"], safe="")
                with contextlib.suppress(Failure):
                    self.ask("POST", node, f"vhosts/{place}/start/{node}@localhost")

    def complete(self):
        self.processes["rabbit1"].wait_until(self.is_cluster, 60)
        self.put(f"users/{TLS_USER}", {"password": TLS_PASSWORD, "tags": ""})
        self.put(f"permissions/%2f/{TLS_USER}", {"configure": ".*", "write": ".*", "read": ".*"})

    def is_cluster(self):
        nodes = self.management("rabbit1", "nodes?columns=name,running") or []
        return sum(node.get("running", False) for node in nodes) == 3

    def stop(self):
        at_once(lambda node: self.processes[node].stop(), (node for node in self.nodes if node != "epmd"))
        self.processes["epmd"].stop()
