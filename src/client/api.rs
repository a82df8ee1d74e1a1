//! REST: requests with a token, answers as types, refusals as problems.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, StatusCode, header};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use url::Url;

/// A gateway's REST surface. Clones share their connections.
#[derive(Clone)]
pub struct Api {
    http: reqwest::Client,
    base: Url,
    token: Option<Arc<str>>,
}

/// What a refusal says (RFC 9457).
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Problem {
    pub r#type: String,
    pub title: String,
    pub detail: Option<String>,
    /// Field errors, as the gateway sends them.
    pub errors: Vec<serde_json::Value>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.title)?;
        // With field errors the detail is a summary of them.
        if let Some(detail) = self.detail.as_ref().filter(|detail| !detail.is_empty() && self.errors.is_empty()) {
            write!(f, ": {detail}")?;
        }
        for error in &self.errors {
            let text = |name: &str| error.get(name).and_then(serde_json::Value::as_str);
            match (text("field"), text("message")) {
                (Some(field), Some(message)) => write!(f, "\n  {field}: {message}")?,
                _ => write!(f, "\n  {error}")?,
            }
        }
        Ok(())
    }
}

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No connection, or it broke: whether the gateway acted is not known.
    #[error("the gateway at {url} cannot be reached: {reason}")]
    Unreachable { url: String, reason: String },
    /// It answered, and the answer is no.
    #[error("{status}: {problem}")]
    Refused { status: StatusCode, problem: Problem, retry_after: Option<Duration> },
    #[error("the gateway at {url} sent an answer that cannot be read: {reason}")]
    Unreadable { url: String, reason: String },
}

impl ApiError {
    /// May the same request succeed a little later, as far as the answer tells?
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, problem, .. } => {
                matches!(status.as_u16(), 408 | 429 | 502 | 503 | 504)
                    // Its first attempt is still being worked on.
                    || status.as_u16() == 409 && problem.r#type.contains("in-flight")
            }
            Self::Unreadable { .. } => false,
        }
    }

    /// How long the gateway asks to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

impl Api {
    /// A client of the gateway at `base`; each call takes at most `timeout`.
    pub fn new(base: Url, timeout: Duration) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .timeout(timeout)
            .connect_timeout(timeout.min(Duration::from_secs(5)))
            .tcp_nodelay(true)
            .user_agent(concat!("event-gateway/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { http, base, token: None })
    }

    /// The same gateway with this bearer token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.into()), ..self.clone() }
    }

    pub fn base(&self) -> &Url {
        &self.base
    }

    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// A request for `path` below `/api/v1`, e.g. `jobs/42?limit=1`. Segments and queries
    /// that come from users must be encoded: see [`Api::path`].
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}/api/v1/{path}", self.base.as_str().trim_end_matches('/'));
        let request = self.http.request(method, url);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    pub fn post(&self, path: &str, body: &impl Serialize) -> RequestBuilder {
        self.request(Method::POST, path).json(body)
    }

    /// `segments` as a path, each percent-encoded.
    pub fn path(segments: &[&str]) -> String {
        let mut url = Url::parse("http://x").expect("is a URL");
        if let Ok(mut path) = url.path_segments_mut() {
            path.clear().extend(segments);
        }
        url.path().trim_start_matches('/').to_owned()
    }

    /// Sends `request` and reads the JSON answer.
    pub async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ApiError> {
        let body = self.bytes(request).await?;
        serde_json::from_slice(&body).map_err(|error| self.unreadable(error.to_string()))
    }

    /// Sends `request`; the body of the answer, which may be empty.
    pub async fn bytes(&self, request: RequestBuilder) -> Result<bytes::Bytes, ApiError> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let retry_after = response.headers().get(header::RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok()).map(Duration::from_secs);
        let body = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        if status.is_success() {
            return Ok(body);
        }
        let problem = serde_json::from_slice(&body).unwrap_or_else(|_| Problem {
            title: status.canonical_reason().unwrap_or("refused").to_owned(),
            detail: Some(String::from_utf8_lossy(&body[..body.len().min(500)]).into_owned()),
            ..Problem::default()
        });
        Err(ApiError::Refused { status, problem, retry_after })
    }

    fn unreachable(&self, error: &reqwest::Error) -> ApiError {
        // The innermost cause says it ("connection refused"); the outer ones only where.
        let mut cause: &dyn std::error::Error = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        let reason = if error.is_timeout() { "it took too long".to_owned() } else { cause.to_string() };
        ApiError::Unreachable { url: self.base.to_string(), reason }
    }

    fn unreadable(&self, reason: String) -> ApiError {
        ApiError::Unreadable { url: self.base.to_string(), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_cannot_escape_their_place() {
        assert_eq!(Api::path(&["jobs", "a/b?c#d e", "events"]), "jobs/a%2Fb%3Fc%23d%20e/events");
    }

    #[test]
    fn a_problem_lists_its_field_errors() {
        let problem: Problem = serde_json::from_value(serde_json::json!({
            "type": "validation", "title": "Not valid", "detail": "2 fields", "status": 422,
            "errors": [{"field": "agent", "code": "unknown", "message": "there is no such agent"}, {"odd": 1}]
        }))
        .unwrap();
        assert_eq!(problem.to_string(), "Not valid\n  agent: there is no such agent\n  {\"odd\":1}");
    }
}
