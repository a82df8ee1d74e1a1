"""The brokers' addresses as environment variables: for the gateway and for the tests."""

import kafka
import nats
from certificates import Certificates
from rabbitmq import RabbitMq


def urls(settings):
    login = f"{settings['RABBITMQ_USER']}:{settings['RABBITMQ_PASSWORD']}"
    database = settings["POSTGRES_DATABASE"]
    return {
        "RABBITMQ": ",".join(f"amqp://{login}@{address}/%2f" for address in settings.addresses("RABBITMQ{}_PORT")),
        "KAFKA": ",".join(settings.addresses("KAFKA{}_PORT")),
        "NATS": ",".join(f"nats://{address}" for address in settings.addresses("NATS{}_PORT")),
        "REGISTRY": f"http://127.0.0.1:{settings.port('REGISTRY_PORT')}{settings['REGISTRY_PATH']}",
        # Where the server asks for none, the password is ignored.
        "POSTGRES": f"postgres://{settings['POSTGRES_USER']}:{settings['POSTGRES_PASSWORD']}"
                    f"@127.0.0.1:{settings.port('POSTGRES_PORT')}/{database}",
    }


def for_tests(settings):
    values = {f"EVENT_GATEWAY_TEST_{name}": value for name, value in urls(settings).items()}
    login = f"{settings['RABBITMQ_USER']}:{settings['RABBITMQ_PASSWORD']}"
    # Tests that kill and freeze nodes start some of their own.
    return values | {
        "EVENT_GATEWAY_TEST_NATS_SERVER": str(nats.program(settings)),
        "EVENT_GATEWAY_TEST_RABBITMQ_MANAGEMENT":
            f"http://{login}@127.0.0.1:{settings.port('RABBITMQ1_MANAGEMENT_PORT')}",
        "EVENT_GATEWAY_TEST_RABBITMQ_TLS": RabbitMq(settings).secured_urls(),
        "EVENT_GATEWAY_TEST_CERTIFICATES": str(Certificates(settings).directory),
        "EVENT_GATEWAY_TEST_KAFKA_LIBS": str(kafka.libraries(settings)),
        "EVENT_GATEWAY_TEST_KAFKA_PROXIED": ",".join(kafka.Kafka(settings).ways()),
    }


def for_gateway(settings):
    value = urls(settings)
    return {
        "GATEWAY__BROKERS__MODE": "external",
        "GATEWAY__RABBITMQ__URLS": value["RABBITMQ"],
        "GATEWAY__KAFKA__BROKERS": value["KAFKA"],
        "GATEWAY__KAFKA__PARTITIONS": settings["KAFKA_PARTITIONS"],
        "GATEWAY__NATS__URLS": value["NATS"],
        "GATEWAY__KAFKA__SCHEMA_REGISTRY_URL": value["REGISTRY"],
        "GATEWAY__STORE__URL": value["POSTGRES"],
    }
