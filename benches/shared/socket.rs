//! A Socket.IO client that costs next to nothing: it masks with zeros, reads what there is
//! and hands over whole frames. Frames of a server are not masked, so reading needs no
//! WebSocket library.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What an update begins with on the wire, after Engine.IO's digit.
pub const UPDATE: &[u8] = b"42/messaging,[\"job_update\"";

/// A Socket.IO client on a bare TCP stream.
pub struct Socket {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Bytes in the buffer.
    filled: usize,
}

impl Socket {
    /// Connects, signs in with `auth` and, unless it is empty, sends `join` and waits for its ack.
    pub async fn connect(address: &str, auth: &str, join: &str) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let request = format!(
            "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        let mut socket = Self { stream, buffer: vec![0; 64 * 1024], filled: 0 };
        socket.wait_for(b"0{").await;
        socket.send(&format!("40/messaging,{auth}")).await;
        socket.wait_for(b"40/messaging").await;
        if !join.is_empty() {
            socket.send(&format!("42/messaging,1{join}")).await;
            socket.wait_for(b"43/messaging,1[").await;
        }
        socket.buffer.shrink_to(16 * 1024);
        socket.buffer.resize(16 * 1024, 0);
        socket
    }

    pub async fn send(&mut self, text: &str) {
        let length = text.len();
        // Masked with zeros: the text itself.
        let mut frame = vec![0x81];
        match u8::try_from(length) {
            Ok(short) if short < 126 => frame.push(0x80 | short),
            _ => {
                frame.push(0x80 | 126);
                frame.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(text.as_bytes());
        self.stream.write_all(&frame).await.unwrap();
    }

    async fn wait_for(&mut self, wanted: &[u8]) {
        let mut found = false;
        while !found {
            self.read(|frame| found |= frame.starts_with(wanted)).await;
        }
    }

    /// Reads what there is and hands over every whole frame. Pings, of which the first comes
    /// right after the upgrade, are answered.
    pub async fn read(&mut self, mut frame: impl FnMut(&[u8])) {
        let read = self.stream.read(&mut self.buffer[self.filled..]).await.unwrap();
        assert!(read > 0, "the server has closed");
        self.filled += read;
        let (mut at, mut pinged) = (0, false);
        while let Some((head, length)) = header(&self.buffer[at..self.filled]) {
            if at + head + length > self.filled {
                assert!(head + length <= self.buffer.len(), "a frame of {length} bytes");
                break;
            }
            match &self.buffer[at + head..at + head + length] {
                b"2" => pinged = true,
                other => frame(other),
            }
            at += head + length;
        }
        self.buffer.copy_within(at..self.filled, 0);
        self.filled -= at;
        if pinged {
            self.send("3").await;
        }
    }
}

/// Bytes of the frame's header and of its payload.
fn header(bytes: &[u8]) -> Option<(usize, usize)> {
    match bytes {
        [_, length, ..] if *length < 126 => Some((2, usize::from(*length))),
        [_, 126, a, b, ..] => Some((4, usize::from(u16::from_be_bytes([*a, *b])))),
        [_, 127, rest @ ..] if rest.len() >= 8 => {
            Some((10, usize::try_from(u64::from_be_bytes(rest[..8].try_into().unwrap())).unwrap()))
        }
        _ => None,
    }
}
