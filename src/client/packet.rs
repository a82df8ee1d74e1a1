//! Engine.IO 4 and Socket.IO 5 packets as text frames. Binary attachments are not used
//! by the gateway and refused here.

use serde_json::Value;

/// What the other side sends.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Packet {
    /// Engine.IO: the connection's parameters.
    Open {
        ping_interval_ms: u64,
        ping_timeout_ms: u64,
    },
    /// Engine.IO: answer with [`PONG`].
    Ping,
    /// Engine.IO: the connection ends.
    Close,
    /// Nothing to do.
    Noop,
    /// Socket.IO: this namespace is joined.
    Connected,
    /// Socket.IO: the namespace refuses.
    Refused(String),
    /// Socket.IO: the namespace ends.
    Disconnected,
    Event {
        ack: Option<u64>,
        name: String,
        data: Value,
    },
    Ack {
        id: u64,
        data: Value,
    },
}

pub(super) const PONG: &str = "3";

/// Reads one text frame of `namespace`.
pub(super) fn parse(frame: &str, namespace: &str) -> Result<Packet, String> {
    let mut chars = frame.chars();
    match chars.next() {
        Some('0') => open(chars.as_str()),
        Some('1') => Ok(Packet::Close),
        Some('2') => Ok(Packet::Ping),
        Some('3' | '6') => Ok(Packet::Noop),
        Some('4') => message(chars.as_str(), namespace),
        _ => Err("unknown Engine.IO packet".to_owned()),
    }
}

fn open(text: &str) -> Result<Packet, String> {
    let open: Value = serde_json::from_str(text).map_err(|error| format!("open packet: {error}"))?;
    let number = |name: &str| open[name].as_u64().ok_or_else(|| format!("open packet without {name}"));
    Ok(Packet::Open { ping_interval_ms: number("pingInterval")?, ping_timeout_ms: number("pingTimeout")? })
}

fn message(text: &str, namespace: &str) -> Result<Packet, String> {
    let mut chars = text.chars();
    let kind = chars.next().ok_or("empty Socket.IO packet")?;
    let rest = match chars.as_str().strip_prefix(namespace).and_then(|rest| rest.strip_prefix(',')) {
        Some(rest) => rest,
        // A packet without payload may omit the comma.
        None if chars.as_str() == namespace => "",
        None => return Err("packet of another namespace".to_owned()),
    };
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (id, payload) = rest.split_at(digits);
    let id = if id.is_empty() { None } else { Some(id.parse::<u64>().map_err(|error| format!("packet id: {error}"))?) };
    let json = || serde_json::from_str::<Value>(payload).map_err(|error| format!("packet payload: {error}"));
    match kind {
        '0' => Ok(Packet::Connected),
        '1' => Ok(Packet::Disconnected),
        '2' => {
            let Value::Array(mut items) = json()? else { return Err("event without arguments".to_owned()) };
            if items.is_empty() {
                return Err("event without a name".to_owned());
            }
            let Value::String(name) = items.remove(0) else { return Err("event without a name".to_owned()) };
            Ok(Packet::Event { ack: id, name, data: items.into_iter().next().unwrap_or(Value::Null) })
        }
        '3' => {
            let Value::Array(items) = json()? else { return Err("ack without arguments".to_owned()) };
            let id = id.ok_or("ack without an id")?;
            Ok(Packet::Ack { id, data: items.into_iter().next().unwrap_or(Value::Null) })
        }
        '4' => {
            let refusal = json()?;
            let message = refusal["message"].as_str().or(refusal.as_str()).unwrap_or("refused");
            Ok(Packet::Refused(message.to_owned()))
        }
        _ => Err("binary Socket.IO packet".to_owned()),
    }
}

pub(super) fn connect(namespace: &str, auth: &Value) -> String {
    format!("40{namespace},{auth}")
}

pub(super) fn event(namespace: &str, ack: Option<u64>, name: &str, data: &Value) -> String {
    let id = ack.map(|id| id.to_string()).unwrap_or_default();
    format!("42{namespace},{id}{}", Value::Array(vec![Value::from(name), data.clone()]))
}

/// With an argument: socketioxide takes an ack without one for a decoding error.
pub(super) fn ack(namespace: &str, id: u64) -> String {
    format!("43{namespace},{id}[true]")
}

pub(super) fn disconnect(namespace: &str) -> String {
    format!("41{namespace},")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NS: &str = "/messaging";

    #[test]
    fn packets_of_a_conversation_are_read() {
        let open = r#"0{"sid":"x","upgrades":[],"pingInterval":30000,"pingTimeout":20000,"maxPayload":1000000}"#;
        assert_eq!(parse(open, NS), Ok(Packet::Open { ping_interval_ms: 30_000, ping_timeout_ms: 20_000 }));
        assert_eq!(parse("2", NS), Ok(Packet::Ping));
        assert_eq!(parse("6", NS), Ok(Packet::Noop));
        assert_eq!(parse(r#"40/messaging,{"sid":"y"}"#, NS), Ok(Packet::Connected));
        assert_eq!(parse(r#"44/messaging,{"message":"bad token"}"#, NS), Ok(Packet::Refused("bad token".into())));
        assert_eq!(parse("41/messaging,", NS), Ok(Packet::Disconnected));
        assert_eq!(parse("41/messaging", NS), Ok(Packet::Disconnected));
        assert_eq!(
            parse(r#"42/messaging,["job_update",{"offset":3}]"#, NS),
            Ok(Packet::Event { ack: None, name: "job_update".into(), data: json!({"offset": 3}) })
        );
        assert_eq!(
            parse(r#"42/messaging,17["job_update",[1]]"#, NS),
            Ok(Packet::Event { ack: Some(17), name: "job_update".into(), data: json!([1]) })
        );
        assert_eq!(
            parse(r#"42/messaging,["bare"]"#, NS),
            Ok(Packet::Event { ack: None, name: "bare".into(), data: Value::Null })
        );
        assert_eq!(
            parse(r#"43/messaging,5[{"joined":true}]"#, NS),
            Ok(Packet::Ack { id: 5, data: json!({"joined": true}) })
        );
    }

    #[test]
    fn junk_is_refused_without_a_panic() {
        for junk in [
            "",
            "9",
            "0{}",
            "4",
            "42",
            "42/other,[\"x\"]",
            "42/messaging,[]",
            "42/messaging,[1]",
            "43/messaging,[1]",
            "43/messaging,99999999999999999999[1]",
            "45/messaging,1-[\"x\"]",
            "42/messaging,{",
            "ü",
        ] {
            assert!(parse(junk, NS).is_err(), "{junk}");
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let data = json!({"jobId": "1", "text": "a,\"b\"/messaging,"});
        assert_eq!(
            parse(&event(NS, Some(3), "join", &data), NS),
            Ok(Packet::Event { ack: Some(3), name: "join".into(), data })
        );
        assert_eq!(ack(NS, 9), "43/messaging,9[true]");
        assert_eq!(connect(NS, &json!({"token": "t"})), r#"40/messaging,{"token":"t"}"#);
    }
}
