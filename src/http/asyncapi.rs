//! The AsyncAPI document: the Socket.IO namespace, which is the same everywhere, and what goes
//! to the brokers, made from this gateway's catalogue.

use serde_json::{Map, Value, json};

use crate::broker::cloudevents::Attribute;
use crate::domain::Broker;
use crate::domain::catalogue::{Catalogue, EventType, ExchangeKind};

/// Everything but the brokers.
const FRAME: &str = include_str!("asyncapi.json");

const AVRO: &str = "application/vnd.apache.avro;version=1.9.0";

/// The document.
pub(super) fn document(catalogue: &Catalogue) -> Value {
    let mut document: Value = serde_json::from_str(FRAME).unwrap_or_default();
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    for broker in Broker::ALL {
        document["components"]["schemas"][headers_name(broker)] = headers(broker);
    }
    for event_type in catalogue.types() {
        for (broker, target, key) in event_type.route_templates() {
            let (id, channel) = channel(catalogue, broker, &target, &key);
            if document["channels"][&id].is_null() {
                document["channels"][&id] = channel;
                document["operations"][format!("send.{id}")] =
                    json!({ "action": "send", "channel": { "$ref": format!("#/channels/{id}") } });
            }
            let message = format!("{}.{broker}", event_type.name);
            document["channels"][&id]["messages"][&*event_type.name] =
                json!({ "$ref": format!("#/components/messages/{message}") });
            document["components"]["messages"][message] = described(event_type, broker, &key);
        }
    }
    document
}

/// A topic, a subject, or a routing key of an exchange: its name in the document, and itself
/// without messages.
fn channel(catalogue: &Catalogue, broker: Broker, target: &str, key: &str) -> (String, Value) {
    let plain = |text: &str| text.replace(['{', '}'], "");
    match broker {
        Broker::Rabbitmq => {
            let kind = catalogue.exchanges().iter().find(|exchange| &*exchange.name == target);
            let kind = kind.map_or("topic", |exchange| match exchange.kind {
                ExchangeKind::Topic => "topic",
                ExchangeKind::Direct => "direct",
            });
            let exchange = json!({ "name": target, "type": kind, "durable": true, "autoDelete": false });
            let bindings = json!({ "amqp": { "is": "routingKey", "exchange": exchange, "bindingVersion": "0.3.0" } });
            let title = format!("RabbitMQ: exchange {target}");
            (format!("rabbitmq.{target}.{}", plain(key)), addressed(key, title, bindings))
        }
        Broker::Kafka => {
            let topic = catalogue.topics().iter().find(|topic| &*topic.name == target);
            let mut binding = json!({ "topic": target, "bindingVersion": "0.5.0" });
            if let Some(topic) = topic {
                let kept = u64::try_from(topic.retention.as_millis()).unwrap_or(u64::MAX);
                binding["partitions"] = topic.partitions.into();
                binding["topicConfiguration"] = json!({ "retention.ms": kept });
            }
            (format!("kafka.{target}"), addressed(target, "Kafka".to_owned(), json!({ "kafka": binding })))
        }
        Broker::Nats => {
            let title = match catalogue.stream_of(target) {
                Some(stream) => format!("NATS JetStream: stream {}", stream.name),
                None => "NATS JetStream".to_owned(),
            };
            (format!("nats.{}", plain(target)), addressed(target, title, json!({})))
        }
    }
}

fn addressed(address: &str, title: String, bindings: Value) -> Value {
    let fields = address.split('{').skip(1).filter_map(|rest| rest.split_once('}')).map(|(field, _)| field);
    let parameters: Map<String, Value> =
        fields.map(|field| (field.to_owned(), json!({ "description": "A field of the payload" }))).collect();
    json!({ "address": address, "title": title, "parameters": parameters, "messages": {}, "bindings": bindings })
}

fn described(event_type: &EventType, broker: Broker, key: &str) -> Value {
    let does = if event_type.command { "Asks for something" } else { "Says that something has happened" };
    let mut message = json!({
        "name": &*event_type.name,
        "summary": format!("{does}. Version {}, aggregate {}.", event_type.version, event_type.aggregate),
        "headers": { "$ref": format!("#/components/schemas/{}", headers_name(broker)) },
    });
    let schema = if broker == Broker::Kafka {
        message["contentType"] = "application/vnd.confluent.avro".into();
        message["description"] = "The whole envelope as one Avro record, in the Confluent wire format.".into();
        message["bindings"] = json!({ "kafka": {
            "key": { "type": "string", "description": key }, "schemaIdLocation": "payload",
            "schemaIdPayloadEncoding": "confluent", "bindingVersion": "0.5.0",
        } });
        serde_json::from_str(event_type.schema_text()).unwrap_or_default()
    } else {
        message["description"] = "The payload as plain JSON: a value of a union is not wrapped in its type.".into();
        serde_json::to_value(event_type.payload_schema()).unwrap_or_default()
    };
    message["payload"] = json!({ "schemaFormat": AVRO, "schema": schema });
    message
}

fn headers_name(broker: Broker) -> String {
    format!("{broker}-headers")
}

/// The CloudEvents attributes, named as the broker's binding does.
fn headers(broker: Broker) -> Value {
    let prefix = match broker {
        Broker::Rabbitmq => "cloudEvents_",
        Broker::Kafka => "ce_",
        Broker::Nats => "ce-",
    };
    let name = |attribute: Attribute| match (broker, attribute) {
        (Broker::Kafka, Attribute::Traceparent) => "traceparent".to_owned(),
        _ => format!("{prefix}{}", attribute.name()),
    };
    let text = json!({ "type": "string" });
    let properties: Map<String, Value> =
        Attribute::ALL.into_iter().map(|attribute| (name(attribute), text.clone())).collect();
    json!({ "type": "object", "description": "The envelope as CloudEvents 1.0 attributes.", "properties": properties })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `$ref` below, with the place that has it.
    fn references<'a>(value: &'a Value, at: &str, found: &mut Vec<(String, &'a str)>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value.as_str() {
                        Some(target) if name == "$ref" => found.push((at.to_owned(), target)),
                        _ => references(value, &format!("{at}/{name}"), found),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, at, found)),
            _ => {}
        }
    }

    #[test]
    fn every_route_of_the_catalogue_is_in_it_and_every_reference_leads_somewhere() {
        let catalogue = Catalogue::load(&[]).unwrap();
        let document = document(&catalogue);
        let mut found = Vec::new();
        references(&document, "#", &mut found);
        assert!(found.len() > 100, "{found:?}");
        for (at, target) in found {
            assert!(document.pointer(target.trim_start_matches('#')).is_some(), "{at}: {target}");
        }
        for event_type in catalogue.types() {
            for (broker, target, _) in event_type.route_templates() {
                let channels = document["channels"].as_object().unwrap().iter();
                let mut carrying = channels.filter(|(id, channel)| {
                    id.starts_with(broker.as_str()) && channel["messages"].get(&*event_type.name).is_some()
                });
                assert!(carrying.next().is_some(), "{event_type:?} {broker} {target}");
                let message = &document["components"]["messages"][format!("{}.{broker}", event_type.name)];
                assert_eq!(message["payload"]["schema"]["type"], "record", "{message}");
            }
            if !event_type.audience.is_empty() {
                let told = &document["channels"]["sockets"]["messages"][&*event_type.socket_event];
                assert!(told.is_object(), "{event_type:?}");
            }
        }
        let status = &document["channels"]["rabbitmq.job.events.job.job_id.status"];
        assert_eq!(status["address"], "job.{job_id}.status");
        assert!(status["parameters"]["job_id"].is_object(), "{status}");
        assert_eq!(document["channels"]["kafka.job-lifecycle"]["bindings"]["kafka"]["partitions"], 10);
    }
}
