//! The namespace's door: Engine.IO connections in, links out, and the routes that carry them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use engineioxide::config::EngineIoConfig;
use engineioxide::handler::EngineIoHandler;
use engineioxide::service::EngineIoService;
use engineioxide::{DisconnectReason, Str};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::link::{Connection, ENGINE_CHANNEL, EngineSocket, Link};
use super::origin::Origins;
use super::packet::{self, Incoming};
use super::{Shared, session};
use crate::domain::Timestamp;

/// Where Socket.IO clients connect.
const PATH: &str = "/socket.io";

/// What Engine.IO tells about its connections.
#[derive(Clone)]
struct Door(Arc<Shared>);

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Door")
    }
}

impl EngineIoHandler for Door {
    type Data = Connection;

    fn on_connect(self: Arc<Self>, socket: Arc<EngineSocket>) {
        let shared = &self.0;
        let id = shared.next_link.fetch_add(1, Ordering::Relaxed);
        let link = Link::new(id, &socket, shared.options.queue_len);
        // A new socket has none yet.
        let _ = socket.data.link.set(link.clone());
        shared.links.lock().insert(id, link.clone());
        if shared.is_closing() {
            link.stop();
        }
        // Ends with the connection, or when the gateway stops; `Realtime::run` waits for it.
        crate::task::spawn("socket", shared.tasks.track_future(session::run(shared.clone(), link)));
    }

    fn on_disconnect(&self, socket: Arc<EngineSocket>, _reason: DisconnectReason) {
        if let Some(link) = socket.data.link.get() {
            link.gone();
        }
    }

    fn on_message(self: &Arc<Self>, text: Str, socket: Arc<EngineSocket>) {
        let Some(link) = socket.data.link.get() else { return };
        match packet::read(text) {
            Ok(Incoming::Ack { id }) => {
                if let Some(occurred_at) = link.acknowledged(id) {
                    let ms = Timestamp::now().ms_since(occurred_at);
                    self.0.metrics.submit_to_screen_seconds.observe(ms as f64 / 1000.0);
                }
            }
            Ok(incoming) => link.receive(incoming),
            Err(error) => {
                tracing::debug!(link = link.id, %error, "a socket sent something else than Socket.IO; it is closed");
                link.close(DisconnectReason::PacketParsingError);
            }
        }
    }

    fn on_binary(self: &Arc<Self>, _data: Bytes, socket: Arc<EngineSocket>) {
        if let Some(link) = socket.data.link.get() {
            tracing::debug!(link = link.id, "a socket sent bytes; it is closed");
            link.close(DisconnectReason::PacketParsingError);
        }
    }
}

/// The routes of the namespace.
pub(super) fn routes(shared: &Arc<Shared>) -> Router {
    let options = &shared.options;
    let config = EngineIoConfig::builder()
        .req_path(PATH)
        .ping_interval(options.ping_interval)
        .ping_timeout(options.ping_timeout)
        .max_buffer_size(ENGINE_CHANNEL)
        .max_payload(options.frame_limit as u64)
        .ws_max_message_size(options.frame_limit)
        .ws_max_frame_size(options.frame_limit)
        .build();
    let service = EngineIoService::with_config(Arc::new(Door(shared.clone())), config);
    let origins = Arc::new(Origins::new(&options.allowed_origins));
    let trusted = origins.clone();
    let cors = CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(move |origin, request| {
            trusted.allow_origin(origin, request.headers.get(header::HOST))
        }))
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE]);
    Router::new()
        .route_service(PATH, service.clone())
        .route_service("/socket.io/", service)
        .layer(cors)
        .layer(middleware::from_fn_with_state(origins, check_origin))
}

/// Refuses pages of other sites before anything is upgraded.
async fn check_origin(State(origins): State<Arc<Origins>>, request: Request, next: Next) -> Response {
    if origins.allow(request.headers()) {
        return next.run(request).await;
    }
    let body = serde_json::json!({
        "type": "origin-refused",
        "title": "This origin may not connect",
        "status": 403,
        "detail": "Pages of this origin may not connect to the gateway; the operator allows origins in live.allowed_origins.",
    });
    let media = (header::CONTENT_TYPE, "application/problem+json");
    (StatusCode::FORBIDDEN, [media], body.to_string()).into_response()
}
