//! Who one is here, and the one-click sign-in of development mode.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{ConnectInfo, FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::extract::{Anyone, Caller, LargeBody, require_json};
use super::json;
use super::openapi::OPTIONAL;
use super::problem::{Kind, Problem};
use crate::auth::{self, IssueError};
use crate::domain::{Principal, Role, Timestamp};

/// Who signs in without saying as whom.
const DEFAULT_USER: &str = "developer";

/// How one signs in.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SignInMode {
    /// By one call of /session/dev, on this machine only.
    Development,
    /// With a token from elsewhere.
    Token,
}

/// What a page must know before anybody has signed in.
#[derive(Serialize, ToSchema)]
pub struct SessionInfo {
    mode: SignInMode,
    version: &'static str,
    instance_id: String,
}

/// How one signs in here. Needs no token.
#[utoipa::path(
    get,
    path = "/api/v1/session",
    operation_id = "getSession",
    tag = "session",
    security(()),
    responses((status = 200, description = "The mode, and what answers", body = SessionInfo)),
)]
pub async fn session(State(state): State<Arc<AppState>>) -> Json<SessionInfo> {
    Json(SessionInfo {
        mode: if state.auth.is_development() { SignInMode::Development } else { SignInMode::Token },
        version: env!("CARGO_PKG_VERSION"),
        instance_id: state.options.instance_id.clone(),
    })
}

/// As whom to sign in. An empty body or object: as `developer`, an operator.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DevSignIn {
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128)]
    user: Option<String>,
    #[serde(default)]
    role: Option<Role>,
}

/// A token, and whom it stands for.
#[derive(Serialize, ToSchema)]
pub struct IssuedToken {
    token: String,
    #[serde(flatten)]
    me: Me,
}

/// Sign in for development.
///
/// There only while neither a secret nor a JWKS URL is configured, and only for programs
/// and pages on this machine.
#[utoipa::path(
    post,
    path = "/api/v1/session/dev",
    operation_id = "signInForDevelopment",
    tag = "session",
    security(()),
    request_body(content = DevSignIn, description = OPTIONAL),
    responses(
        (status = 200, description = "Signed in", body = IssuedToken),
        (status = 403, description = "From another machine"),
        (status = 404, description = "Not in development mode"),
    ),
)]
pub async fn development(
    State(state): State<Arc<AppState>>,
    local: Result<Local, Problem>,
    body: LargeBody,
) -> Result<Response, Problem> {
    if !state.auth.is_development() {
        return Err(Problem::not_found("this gateway is not in development mode; sign in with a token"));
    }
    local?;
    let DevSignIn { user, role } = sign_in(&body.headers, &body.raw)?;
    let user = user.unwrap_or_else(|| DEFAULT_USER.to_owned());
    auth::check_user_id(&user).map_err(|why| Problem::field("user", "out_of_range", format!("the user id {why}")))?;
    let roles = vec![role.unwrap_or(Role::Operator)];
    let expires_at = Timestamp::now().plus_ms(i64::try_from(state.options.development_ttl.as_millis()).unwrap_or(0));
    let token = state.auth.issue_token(&user, &roles, state.options.development_ttl).map_err(|error| match error {
        IssueError::NoSecret | IssueError::User(_) | IssueError::Sign(_) => Problem::internal(error.to_string()),
    })?;
    let me = Me { user_id: user.into(), roles, expires_at };
    let mut response = Json(IssuedToken { token, me }).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn sign_in(headers: &HeaderMap, body: &Bytes) -> Result<DevSignIn, Problem> {
    if body.is_empty() {
        return Ok(DevSignIn::default());
    }
    require_json(headers)?;
    Ok(json::parse_object(body)?)
}

/// Somebody on this machine, asking this machine by a name of its own: not a page that
/// pointed its own name here, and nobody behind a proxy.
pub struct Local;

impl<S: Send + Sync> FromRequestParts<S> for Local {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>();
        let near = peer.is_some_and(|ConnectInfo(peer)| peer.ip().to_canonical().is_loopback());
        let proxied = ["forwarded", "x-forwarded-for"].iter().any(|name| parts.headers.contains_key(*name));
        let host = parts
            .headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok())
            .or(parts.uri.authority().map(|a| a.as_str()));
        if near && !proxied && host.is_none_or(is_local_name) {
            return Ok(Self);
        }
        Err(Problem::new(Kind::Forbidden, "the development sign-in is for this machine only; use a token"))
    }
}

fn is_local_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whom a token stands for.
#[derive(Serialize, ToSchema)]
pub struct Me {
    #[schema(value_type = String)]
    user_id: Arc<str>,
    roles: Vec<Role>,
    expires_at: Timestamp,
}

impl From<Principal> for Me {
    fn from(principal: Principal) -> Self {
        Self { user_id: principal.user_id, roles: principal.roles, expires_at: principal.expires_at }
    }
}

/// Whom the token stands for.
#[utoipa::path(
    get,
    path = "/api/v1/me",
    operation_id = "getMe",
    tag = "session",
    responses((status = 200, description = "The caller", body = Me)),
)]
pub async fn me(caller: Caller<Anyone>) -> Json<Me> {
    Json(caller.principal.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine() {
        for (host, local) in [
            ("localhost:8080", true),
            ("LOCALHOST", true),
            ("127.0.0.1:8080", true),
            ("127.0.0.2", true),
            ("[::1]:8080", true),
            ("[::1]", true),
            ("evil.example:8080", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("192.168.0.4:8080", false),
            ("", false),
        ] {
            assert_eq!(is_local_name(host), local, "{host}");
        }
    }
}
