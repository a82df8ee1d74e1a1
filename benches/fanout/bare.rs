//! The baseline: a socketioxide room and nothing else, with a channel that holds the whole
//! run, so that it can lose nothing.

use std::time::{Duration, Instant};

use axum::serve::ListenerExt;
use socketioxide::SocketIo;
use socketioxide::extract::SocketRef;

use crate::{Crowd, Figures, cpu_seconds, gateway, resident_bytes};

pub async fn run(sockets: usize, updates: usize) -> Figures {
    let (layer, io) =
        SocketIo::builder().max_buffer_size(updates + 16).ping_interval(Duration::from_secs(300)).build_layer();
    io.ns("/messaging", async |socket: SocketRef| socket.join("job"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
    let serving = event_gateway::task::spawn("bare", async move {
        axum::serve(listener, axum::Router::new().layer(layer)).await.unwrap();
    });
    let before = resident_bytes();
    let mut crowd = Crowd::gather(address, sockets, "{}", "").await;
    while io.of("/messaging").unwrap().within("job").sockets().len() < sockets {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let idle_bytes = (resident_bytes() - before) / sockets as f64;
    let body: serde_json::Value = serde_json::from_str(&gateway::envelope()).unwrap();
    let (cpu, start) = (cpu_seconds(), Instant::now());
    for _ in 0..updates {
        io.of("/messaging").unwrap().within("job").emit("job_update", &body).await.unwrap();
        tokio::task::yield_now().await;
    }
    let expected = (sockets * updates) as u64;
    let (received, end) = crowd.received(expected).await;
    let cpu_seconds = cpu_seconds() - cpu;
    crowd.end().await;
    io.close().await;
    serving.abort();
    Figures { expected, received, seconds: (end - start).as_secs_f64(), cpu_seconds, idle_bytes, bytes: 0 }
}
