//! What handlers ask of a request: who calls, ids, query parameters, bodies.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, header};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use url::form_urlencoded;
use utoipa::ToSchema;
use uuid::Uuid;

use super::AppState;
use super::edge::X_REQUEST_ID;
use super::json::{self, JsonError};
use super::problem::{Kind, Problem, no_token};
use super::shape;
use crate::auth;
use crate::domain::factory::Cause;
use crate::domain::{Id, Principal, Role, Timestamp};
use crate::service::{Context, FieldError};

pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
pub const X_ON_BEHALF_OF: HeaderName = HeaderName::from_static("x-on-behalf-of");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The longest `Idempotency-Key`.
const MAX_KEY: usize = 255;

/// Who may call a route. One of these is enough; none are named: everybody who is signed in.
pub trait Allowed: Send + Sync + 'static {
    const ROLES: &'static [Role];
}

macro_rules! allowed {
    ($($(#[$doc:meta])* $name:ident = [$($role:ident),*];)+) => {
        $($(#[$doc])* #[derive(Debug)] pub struct $name;
        impl Allowed for $name { const ROLES: &'static [Role] = &[$(Role::$role),*]; })+
    };
}

allowed! {
    /// Everybody who is signed in.
    Anyone = [];
    /// Who submits and changes jobs.
    Submitters = [User, Operator];
    /// Who looks at jobs and events.
    Readers = [User, Operator, Auditor];
    /// Who claims and reports.
    Workers = [Worker, Operator];
    /// Who looks after the system.
    Overseers = [Operator, Auditor];
}

/// An authenticated caller with one of the roles of `R`, known before the body is read.
#[derive(Debug)]
pub struct Caller<R = Anyone> {
    pub principal: Principal,
    pub on_behalf_of: Option<Arc<str>>,
    pub cause: Cause,
    pub received_at: Timestamp,
    idempotency_key: Result<Option<Arc<str>>, Problem>,
    allowed: PhantomData<R>,
}

impl<R> Caller<R> {
    /// What a use case gets to know; the `Idempotency-Key` counts.
    pub fn context(self) -> Result<Context, Problem> {
        Ok(Context {
            principal: self.principal,
            on_behalf_of: self.on_behalf_of,
            cause: self.cause,
            idempotency_key: self.idempotency_key?,
            received_at: self.received_at,
        })
    }
}

impl<R: Allowed> FromRequestParts<Arc<AppState>> for Caller<R> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<AppState>) -> Result<Self, Problem> {
        let received_at = Timestamp::now();
        let principal = state.auth.authenticate(bearer(&parts.headers)?).await?;
        state.rate_limits.check(&principal)?;
        if !R::ROLES.is_empty() && !R::ROLES.iter().any(|role| principal.has(*role)) {
            let roles: Vec<&str> = R::ROLES.iter().map(|role| role.as_str()).collect();
            return Err(Problem::new(Kind::Forbidden, format!("this needs the role {}", roles.join(" or "))));
        }
        Ok(Self {
            on_behalf_of: on_behalf_of(&parts.headers, &principal)?,
            principal,
            cause: cause(&parts.headers),
            received_at,
            idempotency_key: idempotency_key(&parts.headers),
            allowed: PhantomData,
        })
    }
}

fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let value = headers.get(header::AUTHORIZATION).ok_or_else(no_token)?;
    let text = value.to_str().map_err(|_| no_token())?;
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => Ok(token.trim()),
        _ => Err(no_token()),
    }
}

fn on_behalf_of(headers: &HeaderMap, principal: &Principal) -> Result<Option<Arc<str>>, Problem> {
    let Some(value) = headers.get(X_ON_BEHALF_OF) else { return Ok(None) };
    if !principal.has(Role::Operator) {
        return Err(Problem::new(Kind::Forbidden, "X-On-Behalf-Of needs the role operator"));
    }
    let wrong = |why: String| Problem::field("X-On-Behalf-Of", "invalid_value", why);
    let user = std::str::from_utf8(value.as_bytes()).map_err(|_| wrong("is not UTF-8".into()))?;
    auth::check_user_id(user).map_err(|why| wrong(format!("the user id {why}")))?;
    Ok(Some(user.into()))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<Arc<str>>, Problem> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    match std::str::from_utf8(value.as_bytes()) {
        Ok(key)
            if values.next().is_none()
                && (1..=MAX_KEY).contains(&key.len())
                && key.bytes().all(|byte| byte.is_ascii_graphic()) =>
        {
            Ok(Some(key.into()))
        }
        _ => Err(Problem::field(
            "Idempotency-Key",
            "invalid_value",
            format!("must be one key of 1 to {MAX_KEY} visible ASCII characters, such as a UUID"),
        )),
    }
}

/// The chain a request belongs to: its trace, else its own id.
fn cause(headers: &HeaderMap) -> Cause {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(traceparent) = text(TRACEPARENT)
        && let Some(trace_id) = trace_id(traceparent)
    {
        return Cause { correlation_id: Id(trace_id), causation_id: None, traceparent: Some(traceparent.into()) };
    }
    match text(X_REQUEST_ID).and_then(|id| id.parse().ok()) {
        Some(correlation_id) => Cause { correlation_id, causation_id: None, traceparent: None },
        None => Cause::root(),
    }
}

/// The trace id of a W3C `traceparent` that is valid: `00-<32 hex>-<16 hex>-<2 hex>`, not
/// all zero, lower case. Later versions may append fields.
pub fn trace_id(traceparent: &str) -> Option<Uuid> {
    let mut parts = traceparent.split('-');
    let mut hex = |len: usize| {
        let part = parts.next()?;
        let good = part.len() == len && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        good.then_some(part)
    };
    let (version, trace, parent, _flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
    let nothing_more = parts.next().is_none();
    let zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    if version == "ff" || version == "00" && !nothing_more || zero(trace) || zero(parent) || traceparent.len() > 255 {
        return None;
    }
    Uuid::try_parse(trace).ok()
}

/// The `{id}` of the path. What is no id names nothing that exists.
#[derive(Clone, Copy, Debug)]
pub struct PathId(pub Id);

impl<S: Send + Sync> FromRequestParts<S> for PathId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|_| Problem::not_found("the id in the path is not text; ids are UUIDs"))?;
        let id = params.iter().find(|(name, _)| *name == "id").and_then(|(_, value)| value.parse().ok());
        id.map(Self).ok_or_else(|| Problem::not_found("the id in the path is no UUID"))
    }
}

/// The query string as a `T`. A parameter without a value is refused: `?user=$UNSET` must not
/// become the list of everybody.
#[derive(Clone, Copy, Debug)]
pub struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default();
        let pairs = || form_urlencoded::parse(query.as_bytes());
        let empty = pairs().filter(|(_, value)| value.is_empty());
        let errors: Vec<_> = empty
            .map(|(name, _)| FieldError::new(name, "empty", "has no value; give it one or leave the parameter out"))
            .collect();
        if !errors.is_empty() {
            return Err(Problem::invalid(errors));
        }
        let deserializer = serde_urlencoded::Deserializer::new(pairs());
        serde_path_to_error::deserialize(deserializer).map(Self).map_err(|error| {
            let path = error.path().to_string();
            let path = if path == "." { "" } else { &path };
            Problem::invalid(vec![json::field_error(path, &error.inner().to_string())])
        })
    }
}

/// A JSON body of at most `http.body_limit` bytes, and its bytes.
#[derive(Debug)]
pub struct JsonBody<T> {
    pub value: T,
    pub raw: Bytes,
}

impl<T: DeserializeOwned + ToSchema> FromRequest<Arc<AppState>> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &Arc<AppState>) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        require_json(&parts.headers)?;
        let raw = read(&parts.headers, body, state.options.body_limit).await?;
        match json::parse_object(&raw) {
            Ok(value) => Ok(Self { value, raw }),
            Err(JsonError::Field(first)) => Err(Problem::invalid(shape::all::<T>(first, &raw))),
            Err(syntax) => Err(syntax.into()),
        }
    }
}

/// Any body of at most `http.batch_body_limit` bytes.
#[derive(Debug)]
pub struct LargeBody {
    pub headers: HeaderMap,
    pub raw: Bytes,
}

impl FromRequest<Arc<AppState>> for LargeBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &Arc<AppState>) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let raw = read(&parts.headers, body, state.options.batch_body_limit).await?;
        Ok(Self { headers: parts.headers, raw })
    }
}

/// The media type of a body, without parameters, in lower case; empty when there is none.
pub fn media_type(headers: &HeaderMap) -> String {
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Is this the media type of some JSON?
pub fn is_json(media_type: &str) -> bool {
    media_type == "application/json" || media_type.starts_with("application/") && media_type.ends_with("+json")
}

pub fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    let media_type = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    // What nearly everybody sends, without a copy.
    if media_type == b"application/json" || is_json(&self::media_type(headers)) {
        return Ok(());
    }
    Err(Problem::new(Kind::UnsupportedMediaType, "send JSON with the header Content-Type: application/json"))
}

/// So much more of a body that is too large is read, for so long: a connection that closes with
/// bytes unread is reset, and the answer may be lost with it.
const DRAINED: usize = 8 << 20;
const DRAINING: Duration = Duration::from_secs(2);

async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, Problem> {
    let too_large = || Problem::new(Kind::BodyTooLarge, format!("the limit is {limit} bytes; send less at once"));
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > (limit + DRAINED) as u64) {
        return Err(too_large());
    }
    let mut data = body.into_data_stream();
    let mut read = BytesMut::new();
    while let Some(part) = data.next().await {
        let part = part.map_err(|_| Problem::new(Kind::Malformed, "the body broke off before its end"))?;
        if read.len() + part.len() > limit {
            drain(data).await;
            return Err(too_large());
        }
        read.extend_from_slice(&part);
    }
    Ok(read.freeze())
}

async fn drain(mut data: BodyDataStream) {
    let mut left = DRAINED;
    let draining = async {
        while let Some(Ok(part)) = data.next().await {
            left = left.saturating_sub(part.len());
            if left == 0 {
                return;
            }
        }
    };
    // Whoever sends slowly has heard enough.
    let _ = tokio::time::timeout(DRAINING, draining).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_id_comes_from_valid_traceparents_only() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(trace_id(good).map(|id| id.simple().to_string()).as_deref(), Some(&good[3..35]));
        assert!(trace_id(&format!("01{}-extra", &good[2..])).is_some(), "a later version may append");
        for bad in [
            "",
            "00",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-extra",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        ] {
            assert_eq!(trace_id(bad), None, "{bad}");
        }
    }

    #[test]
    fn json_media_types() {
        for (text, json) in [
            ("application/json", true),
            ("application/json; charset=utf-8", true),
            ("APPLICATION/JSON", true),
            ("application/cloudevents+json", true),
            ("text/plain", false),
            ("application/jsonp", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, text.parse().unwrap());
            assert_eq!(require_json(&headers).is_ok(), json, "{text}");
        }
    }
}
