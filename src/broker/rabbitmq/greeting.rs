//! What a server says first: whether it speaks AMQP at all, and its version, which lapin
//! does not pass on.

use std::io::{Error, ErrorKind, Result};

use futures_util::{AsyncReadExt, AsyncWriteExt};
use lapin::tcp::{AMQPUriTcpExt, OwnedTLSConfig};
use lapin::uri::AMQPUri;

/// How a client opens AMQP 0-9-1.
const PROTOCOL_HEADER: &[u8] = b"AMQP\0\0\x09\x01";
/// A method frame on channel 0, its size left open.
const METHOD_FRAME: [u8; 3] = [1, 0, 0];
/// Class and method of Connection.Start, then the protocol's version.
const CONNECTION_START: &[u8] = &[0, 10, 0, 10, 0, 9];
const MAX_FRAME: u32 = 64 << 10;

/// The server's major version; 0 where it does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ServerVersion {
    major: u32,
}

impl ServerVersion {
    /// Quorum queues give a message up after some returns unless they are told not to.
    pub fn limits_deliveries(self) -> bool {
        self.major >= 4
    }
}

/// Opens a connection of its own, listens to the greeting, and hangs up. Has no timeout.
pub(super) async fn ask(uri: &AMQPUri, tls: &OwnedTLSConfig) -> Result<ServerVersion> {
    let runtime = lapin::runtime::default_runtime().map_err(Error::other)?;
    let mut stream = uri.connect_with_config_async(tls.as_ref(), &runtime).await?;
    stream.write_all(PROTOCOL_HEADER).await?;
    stream.flush().await?;
    let mut header = [0; 7];
    stream.read_exact(&mut header).await?;
    let [kind @ .., a, b, c, d] = header;
    let size = u32::from_be_bytes([a, b, c, d]);
    if kind != METHOD_FRAME || size > MAX_FRAME {
        return Err(Error::new(ErrorKind::InvalidData, "is no AMQP 0-9-1 server"));
    }
    let mut frame = vec![0; size as usize];
    stream.read_exact(&mut frame).await?;
    let properties = frame.strip_prefix(CONNECTION_START);
    let properties =
        properties.ok_or_else(|| Error::new(ErrorKind::InvalidData, "does not greet as AMQP servers do"))?;
    Ok(ServerVersion { major: version(properties).and_then(major).unwrap_or(0) })
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

/// The text of `version` in a field table, which starts with its length.
fn version(table: &[u8]) -> Option<&str> {
    let mut rest = sized(table)?.0;
    while let Some((length, tail)) = rest.split_first() {
        let (key, tail) = tail.split_at_checked(usize::from(*length))?;
        let (kind, tail) = tail.split_first()?;
        let (value, tail) = match kind {
            b'S' | b'F' => sized(tail)?,
            b't' => tail.split_at_checked(1)?,
            b'I' => tail.split_at_checked(4)?,
            _ => return None,
        };
        if key == b"version" {
            return std::str::from_utf8(value).ok();
        }
        rest = tail;
    }
    None
}

/// Bytes after their 32-bit length, and what follows.
fn sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(&str, u8, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (key, kind, value) in entries {
            body.push(key.len() as u8);
            body.extend(key.as_bytes());
            body.push(*kind);
            if matches!(kind, b'S' | b'F') {
                body.extend((value.len() as u32).to_be_bytes());
            }
            body.extend(*value);
        }
        [&(body.len() as u32).to_be_bytes(), &*body].concat()
    }

    #[test]
    fn the_version_is_found_among_other_properties() {
        let table = table(&[
            ("capabilities", b'F', b"\x01at\x01"),
            ("flag", b't', &[1]),
            ("product", b'S', b"RabbitMQ"),
            ("version", b'S', b"4.1.4"),
        ]);
        assert_eq!(version(&table).and_then(major), Some(4));
    }

    #[test]
    fn what_is_cut_off_or_unknown_has_no_version() {
        let whole = table(&[("product", b'S', b"RabbitMQ"), ("version", b'S', b"3.10.8")]);
        assert_eq!(version(&whole), Some("3.10.8"));
        for end in 0..whole.len() {
            assert_eq!(version(&whole[..end]), None, "{end}");
        }
        assert_eq!(version(&table(&[("odd", b'?', &[]), ("version", b'S', b"4")])), None);
    }

    #[test]
    fn only_servers_that_limit_deliveries_are_told_not_to() {
        let limits = |major| ServerVersion { major }.limits_deliveries();
        assert_eq!([0, 3, 4, 5].map(limits), [false, false, true, true]);
    }
}
