"""docker-compose.events.yml, read as Compose reads it, held against its schema and against the
native recipe: same versions, ports, nodes and settings, but for what parity.py names. The Dockerfile's
images are pinned, too."""

import json
import re
import sys
from pathlib import Path

import jsonschema
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "brokers.d"))
sys.dont_write_bytecode = True

import parity  # noqa: E402
from kafka import Kafka  # noqa: E402
from nats import Nats  # noqa: E402
from postgres import Postgres  # noqa: E402
from rabbitmq import RabbitMq  # noqa: E402
from registry import Registry  # noqa: E402
from settings import Settings  # noqa: E402

# ${NAME}, ${NAME:-default}, ${NAME:?message}.
VARIABLE = re.compile(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}")
SHARED_FILES = {"rabbit": "rabbitmq.conf", "kafka": "kafka.properties", "nats": "nats.conf", "postgres": "postgresql.conf"}
# To the patch; PostgreSQL has two numbers, Debian's images have a date.
PINNED = re.compile(r"(:v?\d+\.\d+\.\d+|^postgres:\d+\.\d+|^debian:\w+-\d{8})[\w.-]*$")
wrong = []


def expect(good, message):
    if not good:
        wrong.append(message)


def interpolate(item, values):
    """Replaces variables as Compose does: in the whole file, before it looks at profiles. A name that neither
    `values` nor a default of its own gives would stop every profile, or leave a hole."""
    if isinstance(item, dict):
        return {key: interpolate(value, values) for key, value in item.items()}
    if isinstance(item, list):
        return [interpolate(value, values) for value in item]
    if not isinstance(item, str):
        return item

    def value(match):
        name, operator, rest = match.groups()
        if values.get(name):
            return values[name]
        expect(operator == ":-", f"${{{name}}} is not set in deploy/brokers/brokers.env: no profile starts without it")
        return rest if operator == ":-" else ""
    replaced = VARIABLE.sub(value, item)
    expect("$" not in replaced, f"{item}: write ${{NAME}}, ${{NAME:-default}} or ${{NAME:?message}}")
    return replaced


def without_extensions(document):
    return {key: value for key, value in document.items() if not key.startswith("x-")}


def check_schema(document):
    schema = json.loads((ROOT / "tests/compose/compose-spec.json").read_text())
    for error in jsonschema.Draft7Validator(schema).iter_errors(document):
        wrong.append(f"schema: {'/'.join(map(str, error.path))}: {error.message[:200]}")


def check_services(services):
    for name, service in services.items():
        image = service.get("image", "")
        expect(PINNED.search(image) or "build" in service, f"{name}: image {image} is not pinned to the patch")
        expect("healthcheck" in service, f"{name}: no health check")
        expect(service.get("profiles"), f"{name}: in no profile")
        for needed in service.get("depends_on", {}):
            expect(needed in services, f"{name}: depends on {needed}, which is no service")
        for port in service.get("ports", []):
            expect(port.startswith("127.0.0.1:"), f"{name}: port {port} is published beyond loopback")


def check_files(document):
    volumes = document["volumes"]
    for name, service in document["services"].items():
        sources = [volume.split(":")[0] for volume in service.get("volumes", [])]
        for source in sources:
            known = (ROOT / source).exists() if source.startswith("./") else source in volumes
            expect(known, f"{name}: volume {source} is neither a file nor a declared volume")
        shared = SHARED_FILES.get(name.rstrip("123"))
        if shared:
            expect(f"./deploy/brokers/{shared}" in sources, f"{name}: does not read deploy/brokers/{shared}")


def check_nodes(services, components):
    """Every native node is a service under the same port, in the version of brokers.env."""
    for component in components:
        version = component.settings[f"{component.name.upper()}_VERSION"]
        for node in (node for node in component.nodes if node != "epmd"):
            if node not in services:
                wrong.append(f"{node}: not in the Compose file")
                continue
            published = [port.split(":")[1] for port in services[node]["ports"]]
            expect(str(component.port(node)) in published, f"{node}: port {component.port(node)} is not published")
            expect(services[node]["profiles"] == ["core"], f"{node}: not in profile core")
            expect(re.search(f":{re.escape(version)}(-|$)", services[node]["image"]), f"{node}: not version {version}")


def check_gateway(services):
    """Off loopback it does not start in development mode: without the operator's secret it says so and ends."""
    given = services["gateway"]["environment"]
    expect(given["GATEWAY__AUTH__JWT_SECRET"] == "", "gateway: a secret is in the file")
    expect(given["GATEWAY__HTTP__LISTEN"].startswith("0.0.0.0:"), "gateway: listens on loopback, with anybody let in")


def check_dockerfile():
    images = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for image in images:
        expect(PINNED.search(image), f"Dockerfile: {image} is not pinned to the patch")
    expect(images, "Dockerfile: it is built on nothing")
    last = (ROOT / "Dockerfile").read_text().rsplit("FROM ", 1)[1]
    expect(re.match(r"debian:\S+-slim\n", last), "Dockerfile: what runs is built on more than a slim Debian")
    expect(re.search(r"^USER [1-9]\d*$", last, re.MULTILINE), "Dockerfile: it does not run as a user by number, other than root")


def main():
    settings = Settings()
    settings.shift = 0
    # With what `--env-file deploy/brokers/brokers.env` gives and nothing else, as `make brokers` does.
    text = (ROOT / "docker-compose.events.yml").read_text()
    document = interpolate(without_extensions(yaml.safe_load(text)), settings.values)
    check_schema(document)
    check_services(document["services"])
    check_files(document)
    components = [kind(settings) for kind in (RabbitMq, Kafka, Nats, Registry, Postgres)]
    check_nodes(document["services"], components)
    check_gateway(document["services"])
    check_dockerfile()
    wrong.extend(parity.differences(document["services"], components))
    profiles = {profile for service in document["services"].values() for profile in service["profiles"]}
    expect(profiles == {"core", "gateway", "ui", "observability"}, f"profiles are {sorted(profiles)}")
    if wrong:
        sys.exit("docker-compose.events.yml or Dockerfile:\n  " + "\n  ".join(wrong))
    print(f"compose: {len(document['services'])} services ok")


main()
