//! A client of the gateway's own surface: REST and Socket.IO. The command line and the
//! benches use it; the server does not.

mod api;
mod packet;
mod socket;
#[cfg(test)]
mod tests;

pub use api::{Api, ApiError, Problem};
pub use socket::{Event, Incoming, Socket, SocketError};
