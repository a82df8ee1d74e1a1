//! Tokens of a run: given, made from `auth.jwt_secret`, or fetched in development mode.

use std::sync::Arc;
use std::time::Duration;

use super::super::Global;
use super::super::exit::Failure;
use super::super::session::development_token;
use crate::auth::Authenticator;
use crate::client::Api;
use crate::domain::Role;

/// As long as a working day: a run is minutes.
const TTL: Duration = Duration::from_secs(12 * 3600);

pub struct Tokens {
    api: Api,
    /// Signs with the configured secret; `None`: there is none.
    issuer: Option<Arc<Authenticator>>,
    operator: Option<String>,
    worker: Option<String>,
}

impl Tokens {
    pub fn new(api: &Api, global: &Global, operator: Option<String>, worker: Option<String>) -> Result<Self, Failure> {
        let config = global.load()?.config;
        let issuer = match &config.auth.jwt_secret {
            Some(_) => Some(
                Authenticator::new(&config.auth, &config.data.dir)
                    .map_err(|error| Failure::configuration(error.to_string()))?,
            ),
            None => None,
        };
        Ok(Self { api: api.clone(), issuer, operator, worker })
    }

    pub async fn operator(&self) -> Result<String, Failure> {
        match &self.operator {
            Some(token) => Ok(token.clone()),
            None => self.make("trace-operator", Role::Operator).await,
        }
    }

    pub async fn worker(&self) -> Result<String, Failure> {
        match &self.worker {
            Some(token) => Ok(token.clone()),
            None => self.make("trace-worker", Role::Worker).await,
        }
    }

    /// A token of one of the log's users; `None` where tokens can only be given.
    pub async fn user(&self, user: &str) -> Result<Option<String>, Failure> {
        let made = self.make(user, Role::User).await;
        match made {
            Err(_) if self.operator.is_some() => Ok(None),
            other => other.map(Some),
        }
    }

    async fn make(&self, user: &str, role: Role) -> Result<String, Failure> {
        match &self.issuer {
            Some(issuer) => issuer.issue_token(user, &[role], TTL).map_err(|error| Failure::failed(error.to_string())),
            None => development_token(&self.api, user, role).await,
        }
    }
}
