"""Kafka from Maven: three nodes, each broker and controller (KRaft)."""

import subprocess

import install
from component import Component
from processes import port_open
from settings import SHARED, Failure

POM = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>brokers</groupId><artifactId>kafka</artifactId><version>1</version><dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{version}</version></dependency>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>{version}</version></dependency>
</dependencies></project>
"""
LOGGING = """Configuration:
  Appenders:
    Console: { name: STDOUT, PatternLayout: { pattern: "%d %p %c %m%n" } }
  Loggers:
    Root: { level: WARN, AppenderRef: [ { ref: STDOUT } ] }
"""
CONTROLLER_PORT = 19093
# A proxy of the tests stands in front of the second, at the first, which brokers name to its clients.
PROXY_PORT = 23092
PROXIED_PORT = 23095


def programs(settings):
    return settings.cache / f"kafka-{settings['KAFKA_VERSION']}"


def libraries(settings):
    """The directory of the jars."""
    return programs(settings) / "libs"


class Kafka(Component):
    name = "kafka"
    nodes = ("kafka1", "kafka2", "kafka3")

    def __init__(self, settings):
        super().__init__(settings)
        self.programs = programs(settings)
        self.libraries = libraries(settings)
        self.controllers = [CONTROLLER_PORT + 2 * node + settings.shift for node in range(3)]
        self.proxies = settings.private_ports(PROXY_PORT)
        self.proxied = settings.private_ports(PROXIED_PORT)

    def install(self):
        install.java(self.settings)
        with install.once(self.settings.cache / f"{self.programs.name}.done") as todo:
            if todo:
                install.maven(self.settings)
                self.programs.mkdir(exist_ok=True)
                pom = self.programs / "pom.xml"
                pom.write_text(POM.format(version=self.settings["KAFKA_VERSION"]))
                command = ["mvn", "-q", "-B", "-f", pom, "dependency:copy-dependencies",
                           f"-DoutputDirectory={self.libraries}"]
                install.run(command, self.settings.logs / "kafka-fetch.log", "fetch Kafka with Maven")

    def java(self, *arguments):
        logging = self.directory / "log4j2.yaml"
        return ["java", "-XX:+UseSerialGC", "-cp", f"{self.libraries}/*",
                f"-Dlog4j2.configurationFile={logging}", *arguments]

    def launch_all(self, nodes):
        (self.directory / "log4j2.yaml").write_text(LOGGING)
        super().launch_all(nodes)

    def launch(self, node):
        data = self.directory / node
        data.mkdir(parents=True, exist_ok=True)
        properties = self.directory / f"{node}.properties"
        properties.write_text(self.properties(node))
        if not (data / "meta.properties").exists():
            tool = self.java("-Xmx128m", "-XX:TieredStopAtLevel=1", "kafka.tools.StorageTool", "format", "-t",
                             self.settings["KAFKA_CLUSTER_ID"], "-c", properties, "--ignore-formatted")
            install.run(tool, self.settings.logs / f"{node}-format.log", f"format the storage of {node}")
        server = self.java(*self.jvm(), "kafka.Kafka", properties)
        self.processes[node].launch(server, cwd=self.directory)

    def jvm(self):
        """Options of a broker's Java."""
        return [*self.settings["KAFKA_HEAP"].split(), *self.settings["KAFKA_JVM"].split()]

    def properties(self, node):
        return (SHARED / "kafka.properties").read_text() + self.own_properties(node)

    def own_properties(self, node):
        index = self.index(node)
        port, controller = self.port(node), self.controllers[index]
        proxy, proxied = self.proxies[index], self.proxied[index]
        voters = ",".join(f"{n + 1}@127.0.0.1:{p}" for n, p in enumerate(self.controllers))
        return (f"node.id={self.number(node)}\n"
                f"controller.quorum.voters={voters}\n"
                f"listeners=CLIENT://127.0.0.1:{port},PROXIED://127.0.0.1:{proxied},"
                f"CONTROLLER://127.0.0.1:{controller}\n"
                f"advertised.listeners=CLIENT://127.0.0.1:{port},PROXIED://127.0.0.1:{proxy}\n"
                "listener.security.protocol.map=CLIENT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT\n"
                "inter.broker.listener.name=CLIENT\n"
                f"log.dirs={self.directory / node}\n")

    def ways(self):
        """For each node, where a proxy has to stand, and in front of what."""
        return [f"127.0.0.1:{proxy}=127.0.0.1:{proxied}" for proxy, proxied in zip(self.proxies, self.proxied)]

    def port(self, node):
        return self.settings.ports("KAFKA{}_PORT")[self.index(node)]

    def healthy(self, node):
        return port_open(self.port(node))

    def complete(self):
        """All three are registered and unfenced."""
        self.processes[self.nodes[0]].wait_until(self.all_registered, self.start_limit_s)

    def all_registered(self):
        servers = ",".join(self.settings.addresses("KAFKA{}_PORT"))
        tool = self.java("-Xmx96m", "-XX:TieredStopAtLevel=1",
                         "org.apache.kafka.tools.BrokerApiVersionsCommand", "--bootstrap-server", servers)
        try:
            answer = subprocess.run(tool, capture_output=True, text=True, timeout=30, check=False).stdout
        except subprocess.TimeoutExpired:
            return False
        return sum(line.startswith("127.0.0.1:") and "isFenced: false" in line for line in answer.splitlines()) == 3

    def tool(self, name, arguments):
        """Runs one of Kafka's own tools, e.g. TopicCommand --list; with a dot it is a whole class name."""
        servers = ",".join(self.settings.addresses("KAFKA{}_PORT"))
        tool = name if "." in name else f"org.apache.kafka.tools.{name}"
        command = self.java("-Xmx128m", tool, "--bootstrap-server", servers, *arguments)
        if subprocess.run(command, check=False).returncode:
            raise Failure(f"{name} failed")
