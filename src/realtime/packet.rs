//! Socket.IO packets (protocol 5) of the namespace `/messaging`, as the text that Engine.IO
//! carries. Reading is left to socketioxide's parser; writing is here, because an update
//! is encoded once and shared by every socket of its room.

use std::fmt::Write as _;

use engineioxide::Str;
use serde::Serialize;
use serde_json::value::RawValue;
use socketioxide_core::Value;
use socketioxide_core::packet::PacketData;
use socketioxide_core::parser::{Parse, ParseConfig, ParserState};
use socketioxide_parser_common::CommonParser;

/// The only namespace there is.
pub(super) const NAMESPACE: &str = "/messaging";

/// What a client sent, as far as this namespace understands it.
#[derive(Debug)]
pub(super) enum Incoming {
    /// Asks to come in, with the handshake's `auth`.
    Connect {
        auth: Option<Str>,
    },
    /// Asks for a namespace that does not exist.
    ElsewhereConnect {
        namespace: Str,
    },
    Request(Request),
    /// Acknowledges a packet that asked for it.
    Ack {
        id: i64,
    },
    /// Leaves the namespace.
    Disconnect,
}

/// An event a client emitted.
#[derive(Debug)]
pub(super) struct Request {
    pub event: String,
    /// The first argument.
    pub payload: Option<Box<RawValue>>,
    /// The client wants an answer under this number.
    pub ack: Option<i64>,
}

/// The bytes are no packet that this namespace takes. The connection is closed for it, as
/// the protocol wants.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("not a Socket.IO packet: {0}")]
    Unreadable(String),
    #[error("binary packets are not taken here")]
    Binary,
    #[error("an event is an array that begins with its name")]
    NoEvent,
    #[error("a client cannot send this kind of packet")]
    Kind,
}

/// Reads one text message.
pub(super) fn read(text: Str) -> Result<Incoming, Refused> {
    // Nothing is kept between packets, since attachments are refused.
    let packet =
        CommonParser.decode_str(&ParseConfig::default(), &ParserState::default(), text).map_err(
            |error| match error {
                socketioxide_core::parser::ParseError::NeedsMoreBinaryData => Refused::Binary,
                other => Refused::Unreadable(other.to_string()),
            },
        )?;
    let here = &*packet.ns == NAMESPACE;
    match packet.inner {
        PacketData::Connect(auth) if here => Ok(Incoming::Connect {
            auth: auth.and_then(|auth| match auth {
                Value::Str(text, _) => Some(text),
                Value::Bytes(_) => None,
            }),
        }),
        PacketData::Connect(_) => Ok(Incoming::ElsewhereConnect { namespace: packet.ns }),
        PacketData::BinaryEvent(..) | PacketData::BinaryAck(..) => Err(Refused::Binary),
        PacketData::ConnectError(_) => Err(Refused::Kind),
        _ if !here => Err(Refused::Kind),
        PacketData::Disconnect => Ok(Incoming::Disconnect),
        PacketData::EventAck(_, id) => Ok(Incoming::Ack { id }),
        PacketData::Event(Value::Str(arguments, _), ack) => request(&arguments, ack).map(Incoming::Request),
        PacketData::Event(Value::Bytes(_), _) => Err(Refused::Binary),
    }
}

fn request(arguments: &str, ack: Option<i64>) -> Result<Request, Refused> {
    let mut arguments: Vec<Box<RawValue>> = serde_json::from_str(arguments).map_err(|_| Refused::NoEvent)?;
    if arguments.is_empty() {
        return Err(Refused::NoEvent);
    }
    let mut arguments = arguments.drain(..);
    let name = arguments.next().ok_or(Refused::NoEvent)?;
    let event = serde_json::from_str(name.get()).map_err(|_| Refused::NoEvent)?;
    Ok(Request { event, payload: arguments.next(), ack })
}

/// `["event", argument]` for everyone who gets the same.
pub(super) fn event(name: &str, argument_json: &str) -> String {
    let name = json(name);
    let mut text = String::with_capacity(NAMESPACE.len() + name.len() + argument_json.len() + 8);
    // Writing to a String cannot fail.
    let _ = write!(text, "2{NAMESPACE},[{name},{argument_json}]");
    text
}

/// The same event, asking for an acknowledgement under `id`.
pub(super) fn asking(event: &str, id: i64) -> String {
    let head = NAMESPACE.len() + 2;
    let mut text = String::with_capacity(event.len() + 20);
    text.push_str(&event[..head]);
    let _ = write!(text, "{id}");
    text.push_str(&event[head..]);
    text
}

/// The answer to request `id`.
pub(super) fn ack(id: i64, answer: &impl Serialize) -> String {
    format!("3{NAMESPACE},{id}[{}]", json(answer))
}

/// Lets a client in.
pub(super) fn connected(sid: &str) -> String {
    #[derive(Serialize)]
    struct Connected<'a> {
        sid: &'a str,
    }
    format!("0{NAMESPACE},{}", json(&Connected { sid }))
}

/// Keeps a client out. `code` is for programs, `message` for people.
pub(super) fn connect_error(namespace: &str, code: &str, message: &str) -> String {
    #[derive(Serialize)]
    struct Refusal<'a> {
        message: &'a str,
        data: Data<'a>,
    }
    #[derive(Serialize)]
    struct Data<'a> {
        code: &'a str,
    }
    format!("4{namespace},{}", json(&Refusal { message, data: Data { code } }))
}

/// Ends a client's stay; it does not come back by itself.
pub(super) fn disconnect() -> String {
    format!("1{NAMESPACE},")
}

/// JSON of our own types, whose keys are strings: it always works.
pub(super) fn json(value: &(impl Serialize + ?Sized)) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| {
        tracing::error!(%error, "an answer could not be encoded");
        "null".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_reads_as_request() {
        let packet = read(Str::from(r#"2/messaging,7["join_job_channel",{"jobId":"x"},"more"]"#)).unwrap();
        let Incoming::Request(request) = packet else { panic!("{packet:?}") };
        assert_eq!(request.event, "join_job_channel");
        assert_eq!(request.payload.unwrap().get(), r#"{"jobId":"x"}"#);
        assert_eq!(request.ack, Some(7));
    }

    #[test]
    fn what_is_no_packet_is_refused_and_never_panics() {
        for text in [
            "",
            "9",
            "x",
            "2",
            "2/messaging",
            "2/messaging,",
            "2/messaging,[]",
            "2/messaging,[1]",
            "2/messaging,[{}]",
            "2/messaging,{\"a\":1}",
            "2/messaging,99999999999999999999999[\"a\"]",
            "2/messaging,[\"a\"",
            "2/other,[\"a\"]",
            "51-/messaging,[\"a\",{\"_placeholder\":true,\"num\":0}]",
            "61-/messaging,1[{\"_placeholder\":true,\"num\":0}]",
            "50-/messaging,[\"a\"]",
            "4/messaging,{}",
            "3/messaging,[]",
            "2é",
        ] {
            let read = read(Str::from(text));
            let harmless = matches!(&read, Ok(Incoming::Request(request)) if request.event == "a");
            assert!(read.is_err() || harmless, "{text}: {read:?}");
        }
    }

    #[test]
    fn packets_are_written_as_the_protocol_wants() {
        let update = event("job_update", r#"{"a":1}"#);
        assert_eq!(update, r#"2/messaging,["job_update",{"a":1}]"#);
        assert_eq!(asking(&update, 12), r#"2/messaging,12["job_update",{"a":1}]"#);
        assert_eq!(ack(3, &"ok"), r#"3/messaging,3["ok"]"#);
        assert_eq!(disconnect(), "1/messaging,");
        assert_eq!(connected("s"), r#"0/messaging,{"sid":"s"}"#);
        assert_eq!(
            connect_error("/other", "invalid_namespace", "no"),
            r#"4/other,{"message":"no","data":{"code":"invalid_namespace"}}"#
        );
    }
}
