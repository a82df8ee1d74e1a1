"""What each broker and the gateway are set to, in the Compose file and by scripts/brokers: the same,
but for the differences named here."""

from fnmatch import fnmatch

import environment
import postgres
from settings import ROOT

ADDRESS = "containers have an address each, native nodes have ports of one machine"
PLACE = "where its data is"

# What may differ, and why. Everything else that differs is wrong, and so is what no longer does.
DIFFERENCES = {
    "gateway": {
        "GATEWAY__HTTP__LISTEN": ADDRESS,
        "GATEWAY__AUTH__JWT_SECRET": "development mode, without a secret, is for loopback alone",
    },
    "rabbitmq": {
        # Decision 9 says what follows from it.
        "version": "natively it is Debian's (3.10 on Debian 12), older than the image's: Debian has no other",
        "listeners.tcp.*": ADDRESS,
        "management.tcp.*": ADDRESS,
        "prometheus.tcp.*": ADDRESS,
        "cluster_formation.*": ADDRESS,
        "erl -kernel": ADDRESS,
        "loopback_users": "a container's clients are never on its loopback",
        "listeners.ssl.*": "only the tests' brokers have a TLS port",
        "ssl_options.*": "only the tests' brokers have a TLS port",
    },
    "kafka": {
        "controller.quorum.voters": ADDRESS,
        "listeners": ADDRESS,
        "advertised.listeners": ADDRESS,
        "listener.security.protocol.map": "names the listeners",
        "inter.broker.listener.name": "names a listener",
        "log.dirs": PLACE,
    },
    "registry": {
        "quarkus.http.*": ADDRESS,
        "quarkus.datasource.jdbc.url file": PLACE,
    },
    "nats": {
        "-a": ADDRESS,
        "-p": ADDRESS,
        "-m": ADDRESS,
        "--cluster": ADDRESS,
        "--routes": ADDRESS,
        "--no_advertise": "a container's address is good for the other containers",
        "-sd": PLACE,
    },
    "postgres": {
        "version": "natively it is Debian's (15 on Debian 12): a release has one major version",
        "port": ADDRESS,
        "listen_addresses": ADDRESS,
        "unix_socket_directories": "natively the default belongs to Debian's own cluster",
    },
}


def assignments(text):
    """The `name = value` lines of a file."""
    lines = (line.strip() for line in text.splitlines())
    pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {name.strip(): value.strip() for name, value in pairs}


def flags(arguments):
    """A command line as names and values; a name may go without."""
    found, name = {}, None
    for argument in map(str, arguments):
        if argument.startswith("-"):
            name = argument
            found[name] = ""
        else:
            found[name] = argument
    return found


def mounts(service):
    """The files of the repository by their paths in the container, in the order of these."""
    pairs = (volume.split(":")[:2] for volume in service["volumes"] if volume.startswith("./"))
    return {inside: ROOT / outside for outside, inside in sorted(pairs, key=lambda pair: pair[1])}


def erlang(arguments):
    """Arguments of the Erlang machine; -kernel sets an address."""
    before, _, kernel = arguments.partition("-kernel ")
    rest = kernel.split()
    return {"erl": before.split() + rest[2:]} | ({"erl -kernel": rest[:2]} if rest else {})


def jdbc(url):
    """An H2 database: its file, and everything else."""
    start, file = url.split(";")[0].rsplit(":", 1)
    return {"quarkus.datasource.jdbc.url": [start, *url.split(";")[1:]], "quarkus.datasource.jdbc.url file": file}


def native_kafka(kafka, node):
    return assignments(kafka.properties(node)) | {
        "cluster id": kafka.settings["KAFKA_CLUSTER_ID"], "java": kafka.jvm()}


def compose_kafka(service):
    """The image appends what the environment says to the mounted file."""
    given = dict(service["environment"])
    java = given.pop("KAFKA_HEAP_OPTS").split() + given.pop("KAFKA_JVM_PERFORMANCE_OPTS").split()
    cluster = given.pop("CLUSTER_ID")
    properties = {name.removeprefix("KAFKA_").lower().replace("_", "."): str(value) for name, value in given.items()}
    shared = mounts(service)["/mnt/shared/config/server.properties"]
    return assignments(shared.read_text()) | properties | {"cluster id": cluster, "java": java}


def native_rabbitmq(rabbitmq, node):
    given = rabbitmq.environment(node)
    return assignments(rabbitmq.config(node)) | erlang(given["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"]) | {
        "scheduler bind type": given["RABBITMQ_SCHEDULER_BIND_TYPE"],
        "user": [rabbitmq.settings["RABBITMQ_USER"], rabbitmq.settings["RABBITMQ_PASSWORD"]]}


def compose_rabbitmq(service):
    given = service["environment"]
    files = "\n".join(file.read_text() for inside, file in mounts(service).items() if "/conf.d/" in inside)
    return assignments(files) | erlang(given["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"]) | {
        "scheduler bind type": given["RABBITMQ_SCHEDULER_BIND_TYPE"],
        "user": [given["RABBITMQ_DEFAULT_USER"], given["RABBITMQ_DEFAULT_PASS"]]}


def native_nats(nats, node):
    return flags(nats.flags(node))


def compose_nats(service):
    found = flags(service["command"])
    return found | {"-c": str(mounts(service)[found["-c"]])}


def native_registry(registry, node):
    given = {name: str(value) for name, value in registry.own_settings(node).items()}
    return given | jdbc(given["quarkus.datasource.jdbc.url"])


def compose_registry(service):
    given = {name.lower().replace("_", "."): value for name, value in service["environment"].items()}
    return given | jdbc(given["quarkus.datasource.jdbc.url"])


def native_postgres(server, node):
    given = {name: str(value) for name, value in server.own_settings(node).items()}
    names = ("POSTGRES_USER", "POSTGRES_DATABASE")
    return assignments(server.config(node)) | given | {
        "initdb": postgres.CLUSTER, "user and database": [server.settings[name] for name in names]}


def compose_postgres(service):
    given = assignments("\n".join(part for part in service["command"] if "=" in part))
    shared = mounts(service)[given.pop("config_file")]
    names = ("POSTGRES_USER", "POSTGRES_DB")
    return assignments(shared.read_text()) | given | {
        "initdb": service["environment"]["POSTGRES_INITDB_ARGS"].split(),
        "user and database": [service["environment"][name] for name in names]}


READERS = {
    "rabbitmq": (native_rabbitmq, compose_rabbitmq),
    "kafka": (native_kafka, compose_kafka),
    "registry": (native_registry, compose_registry),
    "nats": (native_nats, compose_nats),
    "postgres": (native_postgres, compose_postgres),
}


def ways_in(services, components):
    """Each node's address, for a native gateway and for one in a container."""
    for component in components:
        for node in (node for node in component.nodes if node in services):
            service = services[node]
            # Kafka has an address of its own for containers; the others publish the one they have.
            internal = service.get("environment", {}).get("KAFKA_ADVERTISED_LISTENERS", "").partition("INTERNAL://")[2]
            port = service["ports"][0].split(":")[2]
            yield node, f"127.0.0.1:{component.port(node)}", internal or f"{node}:{port}"


def by_name(values, ways, which):
    """Values in which nodes are named instead of addressed."""
    for node, *addresses in ways:
        values = {name: value.replace(addresses[which], f"<{node}>") for name, value in values.items()}
    return values


def differences(services, components):
    """Everything in which the Compose file and the native recipe are not the same, and may not differ."""
    used = set()

    def compare(kind, what, native, compose):
        for name in sorted(native.keys() | compose.keys()):
            if native.get(name) == compose.get(name):
                continue
            allowed = [pattern for pattern in DIFFERENCES[kind] if fnmatch(name, pattern)]
            used.update((kind, pattern) for pattern in allowed)
            if not allowed:
                yield f"{what}: {name} is {compose.get(name)}, and {native.get(name)} in scripts/brokers"

    for component in components:
        native, compose = READERS[component.name]
        for node in (node for node in component.nodes if node in services):
            version = services[node]["image"].split(":")[1].split("-")[0]
            yield from compare(component.name, node, native(component, node) | {"version": component.version()},
                               compose(services[node]) | {"version": version})
    ways = list(ways_in(services, components))
    yield from compare("gateway", "gateway", by_name(environment.for_gateway(components[0].settings), ways, 0),
                       by_name(services["gateway"]["environment"], ways, 1))
    for kind, names in DIFFERENCES.items():
        for pattern in names:
            if (kind, pattern) not in used:
                yield f"{kind}: {pattern} does not differ any more; take it out of tests/compose/parity.py"
