//! Connections: one that falls silent is closed, and at shutdown all end in order.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

/// Serves until `stop`, and then what is being answered.
///
/// `axum::serve` would do but for this: it lets a client hold a connection for ever with half
/// a request, or none. Here the head of a request has `silence` to arrive, the first and the
/// next one alike. (Its body has `http.request_timeout`, an answer that nobody takes the TCP
/// time-out of the connection.)
pub async fn serve<L>(mut listener: L, routes: Router, silence: Duration, stop: CancellationToken)
where
    L: Listener<Addr = SocketAddr>,
{
    let mut http = Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(silence);
    // Once here, not once a request.
    let routes = routes.with_state(());
    let connections = TaskTracker::new();
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let connection = connection(http.clone(), stream, peer, routes.clone(), stop.clone());
        crate::task::spawn("connection", connections.track_future(connection));
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Answers the requests of one connection. Its errors are the client's affair.
async fn connection(
    http: Builder,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    routes: Router,
    stop: CancellationToken,
) {
    let service = service_fn(move |request: axum::http::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        let mut routes = routes.clone();
        async move { Ok::<_, Infallible>(routes.call(request).await.unwrap_or_else(|never| match never {})) }
    });
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service).with_upgrades());
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::trace!(%error, %peer, "a connection broke off");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::Notify;
    use tokio::task::JoinHandle;

    use super::*;

    struct Served {
        address: SocketAddr,
        /// `/slow` has begun; what it waits for.
        begun: Arc<Notify>,
        gate: Arc<Notify>,
        stop: CancellationToken,
        ended: JoinHandle<()>,
    }

    async fn served(silence: Duration) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (begun, gate, stop) = (Arc::new(Notify::new()), Arc::new(Notify::new()), CancellationToken::new());
        let (begins, opened) = (begun.clone(), gate.clone());
        let slow = move || async move {
            begins.notify_one();
            opened.notified().await;
            "at last"
        };
        let caller = |ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() };
        let routes = Router::new().route("/caller", get(caller)).route("/slow", get(slow));
        let ended = crate::task::spawn("test", serve(listener, routes, silence, stop.clone()));
        Served { address, begun, gate, stop, ended }
    }

    async fn rest(stream: &mut TcpStream) -> String {
        let mut said = String::new();
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut said)).await;
        read.expect("it closes").unwrap();
        said
    }

    #[tokio::test]
    async fn a_client_that_falls_silent_is_not_waited_for() {
        let served = served(Duration::from_millis(300)).await;
        for start in ["", "GET /cal", "GET /caller HTTP/1.1\r\nhost: x\r\nx-more:"] {
            let mut stream = TcpStream::connect(served.address).await.unwrap();
            stream.write_all(start.as_bytes()).await.unwrap();
            let said = rest(&mut stream).await;
            assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{start:?}: {said}");
        }
        // After an answer, too; and the caller is known.
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(b"GET /caller HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let said = rest(&mut stream).await;
        assert!(said.ends_with(&stream.local_addr().unwrap().to_string()), "{said}");
    }

    #[tokio::test]
    async fn a_stop_lets_nothing_in_and_finishes_what_is_being_answered() {
        let served = served(Duration::from_secs(60)).await;
        let mut idle = TcpStream::connect(served.address).await.unwrap();
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        served.begun.notified().await;

        served.stop.cancel();
        assert_eq!(rest(&mut idle).await, "");
        assert!(TcpStream::connect(served.address).await.is_err());
        served.gate.notify_one();
        assert!(rest(&mut stream).await.ends_with("at last"));
        tokio::time::timeout(Duration::from_secs(10), served.ended).await.expect("it ends").unwrap();
    }
}
