//! Problem details (RFC 9457): the one shape of every error.
//!
//! [`Kind`] is the list of everything that can go wrong, with its stable `type`. Handlers
//! answer a [`Problem`]; [`super::edge`] adds what only it knows (request id, path),
//! writes the body, counts and logs it, once.

use std::borrow::Cow;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::auth::AuthError;
use crate::domain::job::JobRefusal;
use crate::service::{FieldError, ServiceError};
use crate::telemetry::metrics::Rejected;
use crate::telemetry::readiness::Component;

/// The media type of problem details.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// What every `type` begins with.
const TYPE_PREFIX: &str = "urn:event-gateway:problem:";

/// Wrong fields that one answer names: a short request must not be worth a long answer.
const MAX_ERRORS: usize = 100;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $kind:ident = $slug:literal, $status:ident, $title:literal, $rejected:ident, $retry:literal;)+) => {
        /// What can go wrong. The slug is part of the public surface: never rename one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind {
            $($(#[doc = $doc])+ $kind),+
        }

        impl Kind {
            pub const ALL: &'static [Kind] = &[$(Kind::$kind),+];

            /// The last part of `type`.
            pub fn slug(self) -> &'static str {
                match self { $(Kind::$kind => $slug),+ }
            }

            pub fn status(self) -> StatusCode {
                match self { $(Kind::$kind => StatusCode::$status),+ }
            }

            pub fn title(self) -> &'static str {
                match self { $(Kind::$kind => $title),+ }
            }

            /// When it comes up, for the documentation.
            pub fn about(self) -> &'static str {
                match self { $(Kind::$kind => concat!($($doc),+).trim_ascii()),+ }
            }

            /// May the very same request be sent again without doing anything twice?
            pub fn retry_safe(self) -> bool {
                match self { $(Kind::$kind => $retry),+ }
            }

            fn rejected(self) -> Rejected {
                match self { $(Kind::$kind => Rejected::$rejected),+ }
            }
        }
    };
}

kinds! {
    /// The body is not what its content type says: broken JSON, no text, cut off.
    Malformed = "malformed-body", BAD_REQUEST, "The body cannot be read", Validation, false;
    /// No token came with the request.
    Unauthenticated = "unauthenticated", UNAUTHORIZED, "Sign in first", Unauthenticated, false;
    /// The token is forged, meant for somebody else, or no token at all.
    InvalidToken = "invalid-token", UNAUTHORIZED, "The token is not accepted", Unauthenticated, false;
    /// The token was good and has expired.
    TokenExpired = "token-expired", UNAUTHORIZED, "The token has expired", Unauthenticated, false;
    /// The caller is known and may not do this.
    Forbidden = "forbidden", FORBIDDEN, "Not allowed", Forbidden, false;
    /// There is no such thing, or it is somebody else's.
    NotFound = "not-found", NOT_FOUND, "Not found", NotFound, false;
    /// Nothing is at this path.
    NoSuchRoute = "no-such-route", NOT_FOUND, "There is nothing at this path", NotFound, false;
    /// The path exists, but not for this method; `Allow` lists those it has.
    MethodNotAllowed = "method-not-allowed", METHOD_NOT_ALLOWED, "The method is not allowed here", Validation, false;
    /// The job is not in a state in which this can be done.
    IllegalTransition = "illegal-transition", CONFLICT, "The job's state does not allow this", Conflict, false;
    /// The report is about an attempt that is over.
    StaleAttempt = "stale-attempt", CONFLICT, "The attempt is not the current one", Conflict, false;
    /// Somebody else holds the claim.
    NotClaimant = "not-claimant", CONFLICT, "Somebody else holds the claim", Conflict, false;
    /// There is one of this id already.
    Exists = "exists", CONFLICT, "It exists already", Conflict, false;
    /// The first request with this Idempotency-Key has not been answered yet.
    KeyInFlight = "key-in-flight", CONFLICT, "A request with this key is being processed", Conflict, true;
    /// The request is larger than http.body_limit (http.batch_body_limit for batches).
    BodyTooLarge = "body-too-large", PAYLOAD_TOO_LARGE, "The body is too large", TooLarge, false;
    /// An event would be larger than http.event_limit.
    EventTooLarge = "event-too-large", PAYLOAD_TOO_LARGE, "The event is too large", TooLarge, false;
    /// The body is of a type that is not read here.
    UnsupportedMediaType = "unsupported-media-type", UNSUPPORTED_MEDIA_TYPE, "The content type is not supported", Validation, false;
    /// Fields, parameters or headers are missing or wrong; `errors` has each.
    Invalid = "validation-failed", UNPROCESSABLE_ENTITY, "The request is not valid", Validation, false;
    /// The Idempotency-Key, or the source and id of an event, was used for something else.
    KeyReused = "key-reused", UNPROCESSABLE_ENTITY, "The key was used for another request", Validation, false;
    /// The user makes more requests than http.rate_limit allows; `Retry-After` says when to go on.
    RateLimited = "rate-limited", TOO_MANY_REQUESTS, "Too many requests", RateLimited, true;
    /// A bug here; the log has more under the request id.
    Internal = "internal", INTERNAL_SERVER_ERROR, "Something went wrong inside", Internal, false;
    /// Too much waits to be committed, or too many requests are open.
    Overloaded = "overloaded", SERVICE_UNAVAILABLE, "The gateway is busy", Busy, true;
    /// The store cannot be read or written at the moment.
    StoreUnavailable = "store-unavailable", SERVICE_UNAVAILABLE, "The store is not available", Unavailable, true;
    /// The connection to the store broke while it was committing.
    OutcomeUnknown = "outcome-unknown", SERVICE_UNAVAILABLE, "It may or may not have been done", OutcomeUnknown, false;
    /// The gateway is shutting down.
    Stopping = "stopping", SERVICE_UNAVAILABLE, "The gateway is stopping", ShuttingDown, true;
    /// The answer was not ready within http.request_timeout.
    Timeout = "timeout", SERVICE_UNAVAILABLE, "It took too long", Timeout, false;
    /// The identity provider's keys could not be fetched.
    KeysUnavailable = "keys-unavailable", SERVICE_UNAVAILABLE, "Tokens cannot be checked at the moment", Unavailable, true;
    /// /readyz: components are missing; `missing` lists them.
    NotReady = "not-ready", SERVICE_UNAVAILABLE, "The gateway is not ready", Unavailable, true;
}

/// An error on its way out.
#[derive(Clone, Debug)]
pub struct Problem {
    pub kind: Kind,
    parts: Box<Parts>,
}

#[derive(Clone, Debug)]
struct Parts {
    detail: Cow<'static, str>,
    errors: Vec<FieldError>,
    retry_safe: bool,
    /// Seconds.
    retry_after: Option<u32>,
    missing: Vec<Component>,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// For the log only.
    internal: Option<String>,
}

/// Why a request was not answered as asked (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody<'a> {
    /// Identifies the kind of problem; stable.
    #[schema(example = "urn:event-gateway:problem:validation-failed")]
    r#type: String,
    title: &'a str,
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What is wrong here and what to do.
    detail: &'a str,
    /// The path that was asked.
    instance: &'a str,
    /// What to name when asking for help; also in the log.
    request_id: &'a str,
    /// Sending the same request again cannot do anything twice.
    retry_safe: bool,
    /// Everything wrong with the request.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(required = false)]
    errors: &'a [FieldError],
    /// Of `not-ready`: the components that are not up.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(required = false)]
    missing: &'a [Component],
}

impl Problem {
    pub fn new(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        let retry_after = (kind.status() == StatusCode::SERVICE_UNAVAILABLE || kind == Kind::KeyInFlight).then_some(1);
        let parts = Parts {
            detail: detail.into(),
            errors: Vec::new(),
            retry_safe: kind.retry_safe(),
            retry_after,
            missing: Vec::new(),
            headers: Vec::new(),
            internal: None,
        };
        Self { kind, parts: Box::new(parts) }
    }

    /// Wrong fields. The answer names [`MAX_ERRORS`] of them at most.
    pub fn invalid(mut errors: Vec<FieldError>) -> Self {
        let detail = match errors.as_slice() {
            [one] if one.field.is_empty() => one.message.clone(),
            [one] => format!("{}: {}", one.field, one.message),
            all if all.len() > MAX_ERRORS => {
                format!("{} fields are wrong; errors names the first {MAX_ERRORS}", all.len())
            }
            all => format!("{} fields are wrong; errors names each", all.len()),
        };
        errors.truncate(MAX_ERRORS);
        let mut problem = Self::new(Kind::Invalid, detail);
        problem.parts.errors = errors;
        problem
    }

    /// One wrong field.
    pub fn field(field: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        Self::invalid(vec![FieldError::new(field, code, message)])
    }

    /// Something that must not happen; `why` goes to the log only.
    pub fn internal(why: impl Into<String>) -> Self {
        Self::new(Kind::Internal, "nothing you can mend; report it with the request id").because(why)
    }

    pub fn not_found(what: &'static str) -> Self {
        Self::new(Kind::NotFound, what)
    }

    /// A plain error status that somebody else answered.
    pub fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::NOT_FOUND => Self::new(Kind::NoSuchRoute, "check the path; /api/docs lists every call"),
            StatusCode::METHOD_NOT_ALLOWED => {
                Self::new(Kind::MethodNotAllowed, "use one of the methods in the Allow header")
            }
            StatusCode::PAYLOAD_TOO_LARGE => Self::new(Kind::BodyTooLarge, "send less at once"),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Self::new(Kind::UnsupportedMediaType, "send application/json"),
            StatusCode::SERVICE_UNAVAILABLE => Self::new(Kind::Overloaded, "try again in a moment"),
            status if status.is_client_error() => Self::new(Kind::Malformed, "the request cannot be understood"),
            status => Self::internal(format!("a bare status {status}")),
        }
    }

    #[must_use]
    pub fn retry_safe(mut self, safe: bool) -> Self {
        self.parts.retry_safe = safe;
        self
    }

    /// Seconds until it is worth while to ask again.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.parts.retry_after = Some(seconds);
        self
    }

    #[must_use]
    pub fn missing(mut self, missing: Vec<Component>) -> Self {
        self.parts.missing = missing;
        self
    }

    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.parts.headers.push((name, value));
        self
    }

    fn because(mut self, internal: impl Into<String>) -> Self {
        self.parts.internal = Some(internal.into());
        self
    }

    /// What is only in the log.
    pub fn internal_cause(&self) -> Option<&str> {
        self.parts.internal.as_deref()
    }

    pub fn detail(&self) -> &str {
        &self.parts.detail
    }

    pub fn rejected(&self) -> Rejected {
        self.kind.rejected()
    }

    /// The body as it is sent.
    pub fn encode(&self, instance: &str, request_id: &str) -> Vec<u8> {
        let body = ProblemBody {
            r#type: format!("{TYPE_PREFIX}{}", self.kind.slug()),
            title: self.kind.title(),
            status: self.kind.status().as_u16(),
            detail: &self.parts.detail,
            instance,
            request_id,
            retry_safe: self.parts.retry_safe,
            errors: &self.parts.errors,
            missing: &self.parts.missing,
        };
        // Text and numbers always serialise.
        serde_json::to_vec(&body).unwrap_or_default()
    }
}

/// Carries the problem to [`super::edge`], which writes it.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.kind.status().into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(seconds) = self.parts.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        for (name, value) in &self.parts.headers {
            headers.append(name.clone(), value.clone());
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<ServiceError> for Problem {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::Invalid(errors) => Self::invalid(errors),
            ServiceError::NotFound => Self::not_found("there is no such thing here, or it is not yours"),
            ServiceError::Forbidden(why) => Self::new(Kind::Forbidden, why),
            ServiceError::Conflict(refusal) => refusal.into(),
            ServiceError::KeyReused => {
                Self::new(Kind::KeyReused, "this Idempotency-Key came with another body before; use a new key")
            }
            ServiceError::KeyInFlight => Self::new(
                Kind::KeyInFlight,
                "the first request with this Idempotency-Key is still being processed; repeat it in a moment",
            ),
            ServiceError::TooLarge { size, limit } => {
                Self::new(Kind::EventTooLarge, format!("encoded it takes {size} bytes, the limit is {limit}"))
            }
            ServiceError::Overloaded => {
                Self::new(Kind::Overloaded, "too much waits to be committed; try again in a moment")
            }
            ServiceError::Unavailable(why) => {
                Self::new(Kind::StoreUnavailable, "nothing was written; try again in a moment").because(why)
            }
            ServiceError::OutcomeUnknown(why) => Self::new(
                Kind::OutcomeUnknown,
                "with an Idempotency-Key, repeat the request; without one, look first whether it was done",
            )
            .because(why),
            ServiceError::Stopping => Self::new(Kind::Stopping, "try again; another start or instance takes it"),
            ServiceError::Internal(why) => Self::internal(why),
        }
    }
}

impl From<JobRefusal> for Problem {
    fn from(refusal: JobRefusal) -> Self {
        let detail = refusal.to_string();
        let kind = match refusal {
            JobRefusal::NotFound => Kind::NotFound,
            JobRefusal::Exists => Kind::Exists,
            JobRefusal::IllegalTransition { .. } => Kind::IllegalTransition,
            JobRefusal::StaleAttempt { .. } => Kind::StaleAttempt,
            JobRefusal::NotClaimant { .. } => Kind::NotClaimant,
        };
        Self::new(kind, detail)
    }
}

impl From<AuthError> for Problem {
    fn from(error: AuthError) -> Self {
        let kind = match &error {
            AuthError::KeysUnavailable(_) => return Self::new(Kind::KeysUnavailable, error.to_string()),
            AuthError::Expired => Kind::TokenExpired,
            AuthError::Malformed(_)
            | AuthError::Algorithm
            | AuthError::Signature
            | AuthError::UnknownKey
            | AuthError::NotYetValid
            | AuthError::Issuer
            | AuthError::Audience
            | AuthError::MissingClaim(_)
            | AuthError::Subject(_) => Kind::InvalidToken,
        };
        let challenge = r#"Bearer realm="event-gateway", error="invalid_token""#;
        Self::new(kind, error.to_string()).header(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
    }
}

/// The request came without a token.
pub fn no_token() -> Problem {
    let challenge = HeaderValue::from_static(r#"Bearer realm="event-gateway""#);
    Problem::new(Kind::Unauthenticated, "send the header Authorization: Bearer <token>")
        .header(header::WWW_AUTHENTICATE, challenge)
}
