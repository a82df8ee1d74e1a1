"""Reads a topic with confluent-kafka's own AvroDeserializer, as any team outside this project
would, and prints one JSON document a record: key, partition, headers and the decoded value.

usage: read.py BOOTSTRAP REGISTRY TOPIC COUNT
"""
import datetime
import json
import sys
import time
import uuid

from confluent_kafka import Consumer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

PATIENCE = 30


def plain(value):
    """What JSON has no form for."""
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.timezone.utc).isoformat(timespec="milliseconds")
    if isinstance(value, uuid.UUID):
        return str(value)
    raise TypeError(type(value))


def main(bootstrap, registry, topic, count):
    deserialize = AvroDeserializer(SchemaRegistryClient({"url": registry}))
    consumer = Consumer({
        "bootstrap.servers": bootstrap,
        "group.id": f"stock-{uuid.uuid4()}",
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
    })
    consumer.subscribe([topic])
    limit = time.monotonic() + PATIENCE
    read = 0
    try:
        while read < count:
            if time.monotonic() > limit:
                sys.exit(f"{read} of {count} records came within {PATIENCE} s")
            message = consumer.poll(0.2)
            if message is None:
                continue
            if message.error():
                sys.exit(str(message.error()))
            value = deserialize(message.value(), SerializationContext(topic, MessageField.VALUE))
            record = {
                "key": message.key().decode(),
                "partition": message.partition(),
                "headers": {name: value.decode() for name, value in message.headers()},
                "value": value,
            }
            print(json.dumps(record, default=plain))
            read += 1
    finally:
        consumer.close()


main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
