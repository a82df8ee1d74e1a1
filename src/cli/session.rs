//! Who a command is to the gateway: a token given, or a development sign-in.

use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde_json::json;
use url::Url;

use super::exit::Failure;
use crate::client::{Api, ApiError};
use crate::domain::Role;

/// A call of the command line that takes longer has failed.
pub const CALL_LIMIT: Duration = Duration::from_secs(35);

#[derive(Args)]
pub struct Connection {
    /// The gateway.
    #[arg(long, env = "GATEWAY_URL", default_value = "http://127.0.0.1:8080", value_name = "URL", value_parser = gateway_url)]
    pub url: Url,
    /// A bearer token. Without one, a gateway in development mode is asked for one.
    #[arg(long, env = "GATEWAY_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<String>,
    /// Sign in as this user, in development mode.
    #[arg(long, default_value = "developer", value_name = "USER")]
    pub user: String,
    /// Sign in with this role, in development mode.
    #[arg(long, default_value_t = Role::Operator, value_name = "ROLE")]
    pub role: Role,
}

impl Connection {
    /// The gateway's surface, signed in.
    pub async fn sign_in(&self) -> Result<Api, Failure> {
        let api = api(&self.url)?;
        if let Some(token) = &self.token {
            return Ok(api.with_token(token));
        }
        let token = development_token(&api, &self.user, self.role).await?;
        Ok(api.with_token(&token))
    }
}

pub fn api(url: &Url) -> Result<Api, Failure> {
    Api::new(url.clone(), CALL_LIMIT).map_err(|error| Failure::failed(error.to_string()))
}

/// A token from a gateway in development mode.
pub async fn development_token(api: &Api, user: &str, role: Role) -> Result<String, Failure> {
    #[derive(Deserialize)]
    struct Session {
        token: String,
    }
    let request = api.post("session/dev", &json!({ "user": user, "role": role }));
    match api.json::<Session>(request).await {
        Ok(session) => Ok(session.token),
        Err(ApiError::Refused { status, .. }) if matches!(status.as_u16(), 401 | 403 | 404 | 405) => {
            Err(Failure::not_allowed(
                "this gateway is not in development mode; give --token or GATEWAY_TOKEN \
                 (event-gateway token issue --user U --role R prints one)",
            ))
        }
        Err(error) => Err(error.into()),
    }
}

pub fn gateway_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err("use http://HOST:PORT or https://HOST".to_owned());
    }
    Ok(url)
}
