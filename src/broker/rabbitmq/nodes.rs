//! Which nodes take connections. The gateway is connected to one of them, and would learn too late that
//! those it may have to go to are away.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use lapin::uri::AMQPUri;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::connection::{ConnectorOptions, shown};
use super::health::{Board, Warning};

const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Looks now and then until `stop`. A connection without a word leaves nothing in a node's log; so a
/// node that is frozen passes for one that is there, until somebody has to do with it.
pub(super) async fn watch(options: Arc<ConnectorOptions>, board: Arc<Board>, stop: CancellationToken) {
    let looking = async {
        loop {
            board.warn(Warning::Nodes, look(&options.nodes, options.timeout).await);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    if options.nodes.len() > 1 {
        stop.run_until_cancelled(looking).await;
    }
}

/// Names those that take none; empty when all do.
async fn look(nodes: &[AMQPUri], limit: Duration) -> String {
    let tries = join_all(nodes.iter().map(async |node| {
        let authority = &node.authority;
        let connecting = TcpStream::connect((authority.host.as_str(), authority.port));
        match tokio::time::timeout(limit, connecting).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(format!("{} ({error})", shown(node))),
            Err(_) => Some(format!("{} (no answer within {limit:?})", shown(node))),
        }
    }));
    let away: Vec<String> = tries.await.into_iter().flatten().collect();
    if away.is_empty() {
        return String::new();
    }
    format!("{} of {} nodes take no connections: {}", away.len(), nodes.len(), away.join(", "))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_node_that_takes_no_connections_is_named() {
        let there = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let away = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let of = |port: u16| format!("amqp://user:secret@127.0.0.1:{port}/%2f").parse::<AMQPUri>().unwrap();
        let (first, second) = (there.local_addr().unwrap().port(), away.local_addr().unwrap().port());
        let nodes = [of(first), of(second)];
        assert_eq!(look(&nodes, Duration::from_secs(5)).await, "");
        drop(away);
        let said = look(&nodes, Duration::from_secs(5)).await;
        let expected = format!("1 of 2 nodes take no connections: 127.0.0.1:{second} (");
        assert!(said.starts_with(&expected), "{said}");
    }
}
