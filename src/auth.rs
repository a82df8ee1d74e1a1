//! Tokens in, principals out: JWT signed with a shared secret (HS256) or with keys of an
//! identity provider (JWKS: RS256, ES256, EdDSA).
//!
//! Which kind of key may check a token follows from the configuration, never from the
//! token: the secret checks HS256 and nothing else, a public key only its own algorithm.

mod cache;
mod development;
mod jwks;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use crate::config;
use crate::domain::{Principal, Role, Timestamp};

use cache::VerifiedTokens;
use jwks::Jwks;
pub use jwks::KeysUnavailable;

/// Tokens longer than this are not looked at.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// The longest user id.
pub const MAX_USER_ID_CHARS: usize = 128;

/// Why a token was not accepted. Messages may be shown to the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("the token is not a JWT that this gateway can read: {0}")]
    Malformed(String),
    #[error("tokens signed with this algorithm are not accepted here")]
    Algorithm,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token was signed with a key that is not known here")]
    UnknownKey,
    #[error("the token has expired; sign in again")]
    Expired,
    #[error("the token is not valid yet; check the clocks")]
    NotYetValid,
    #[error("the token comes from another issuer (iss)")]
    Issuer,
    #[error("the token is meant for somebody else (aud)")]
    Audience,
    #[error("the token lacks the claim {0}")]
    MissingClaim(String),
    #[error("the token's subject (sub) {0}")]
    Subject(SubjectError),
    /// Not the caller's fault: try again.
    #[error(transparent)]
    KeysUnavailable(#[from] KeysUnavailable),
}

impl AuthError {
    /// May the same token be accepted a little later?
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::KeysUnavailable(_))
    }
}

/// What is wrong with a user id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    #[error("is empty")]
    Empty,
    #[error("is longer than {MAX_USER_ID_CHARS} characters")]
    TooLong,
    #[error("has control characters")]
    Control,
}

/// Checks a user id: 1 to 128 characters, none of them a control character.
pub fn check_user_id(user: &str) -> Result<(), SubjectError> {
    if user.is_empty() {
        return Err(SubjectError::Empty);
    }
    if user.chars().nth(MAX_USER_ID_CHARS).is_some() {
        return Err(SubjectError::TooLong);
    }
    if user.chars().any(char::is_control) {
        return Err(SubjectError::Control);
    }
    Ok(())
}

/// The authenticator could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("development secret {path}: {source}")]
    DevelopmentSecret { path: String, source: std::io::Error },
    #[error("client for auth.jwks_url: {0}")]
    Client(#[from] reqwest::Error),
}

/// A token could not be issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error("tokens come from the identity provider of auth.jwks_url; set auth.jwt_secret to issue them here")]
    NoSecret,
    #[error("the user id {0}")]
    User(#[from] SubjectError),
    #[error("the token could not be signed: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
}

/// Checks tokens, and issues them where there is a secret.
pub struct Authenticator {
    secret: Option<SharedSecret>,
    jwks: Option<Jwks>,
    /// Tokens that a public key has verified: that costs 18 to 40 us each time, and looking
    /// one up 1 us. The shared secret's 3 us are not worth it.
    verified: VerifiedTokens,
    /// The checks of every token, for each algorithm.
    validations: Vec<(Algorithm, Validation)>,
    development: bool,
    issuer: Option<String>,
    audience: Vec<String>,
}

struct SharedSecret {
    encoding: EncodingKey,
    decoding: DecodingKey,
}

/// The claims that mean something here.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    /// Seconds since 1970; fractions are allowed (RFC 7519, NumericDate).
    exp: f64,
    #[serde(default)]
    role: RoleClaim,
    #[serde(default)]
    roles: RoleClaim,
}

/// `["operator", "user"]` or `"operator user"`.
#[derive(Default, Deserialize)]
#[serde(untagged)]
enum RoleClaim {
    List(Vec<String>),
    Text(String),
    /// Absent, or of a shape that names no roles.
    #[default]
    None,
    Other(serde::de::IgnoredAny),
}

impl RoleClaim {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match self {
            Self::List(names) => Box::new(names.iter().map(String::as_str)),
            Self::Text(names) => Box::new(names.split_whitespace()),
            Self::None | Self::Other(_) => Box::new(std::iter::empty()),
        }
    }
}

#[derive(Serialize)]
struct NewClaims<'a> {
    sub: &'a str,
    roles: Vec<&'static str>,
    iat: i64,
    exp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    aud: &'a [String],
}

impl Authenticator {
    /// Development mode (neither secret nor JWKS URL) uses a random secret that is kept in
    /// `data_dir`, so that tokens survive a restart.
    pub fn new(config: &config::Auth, data_dir: &Path) -> Result<Arc<Self>, SetupError> {
        let secret = match &config.jwt_secret {
            Some(secret) => Some(secret.expose().to_owned()),
            None if config.is_development() => Some(development::secret(data_dir)?),
            None => None,
        };
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = config.leeway.as_secs();
        validation.validate_nbf = true;
        validation.validate_aud = !config.audience.is_empty();
        let mut required = vec!["exp", "sub"];
        if let Some(issuer) = &config.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        if !config.audience.is_empty() {
            validation.set_audience(&config.audience);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        let for_algorithm = |algorithm| {
            let mut validation = validation.clone();
            validation.algorithms = vec![algorithm];
            (algorithm, validation)
        };
        Ok(Arc::new(Self {
            validations: [Algorithm::HS256].into_iter().chain(jwks::ALGORITHMS).map(for_algorithm).collect(),
            secret: secret.map(|secret| SharedSecret {
                encoding: EncodingKey::from_secret(secret.as_bytes()),
                decoding: DecodingKey::from_secret(secret.as_bytes()),
            }),
            jwks: config.jwks_url.clone().map(|url| Jwks::new(url, config)).transpose()?,
            verified: VerifiedTokens::new(config.jwks_max_age),
            development: config.is_development(),
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
        }))
    }

    /// Sign-in by one click; loopback only, which the configuration has checked.
    pub fn is_development(&self) -> bool {
        self.development
    }

    /// Checks a bearer token. May wait for the identity provider's keys, bounded by
    /// `auth.jwks_timeout`.
    pub async fn authenticate(&self, token: &str) -> Result<Principal, AuthError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(AuthError::Malformed(format!("it is longer than {MAX_TOKEN_BYTES} bytes")));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|error| refusal(&error))?;
        match (&self.secret, &self.jwks) {
            (Some(secret), _) if header.alg == Algorithm::HS256 => {
                principal(&self.verify(token, &secret.decoding, Algorithm::HS256)?)
            }
            (_, Some(jwks)) if jwks::ALGORITHMS.contains(&header.alg) => {
                if let Some(principal) = self.verified.get(token) {
                    return Ok(principal);
                }
                let keys = jwks.keys_for(header.kid.as_deref(), header.alg).await?;
                let principal = principal(&self.verify_with_any(token, &keys, header.alg)?)?;
                self.verified.put(token, &principal);
                Ok(principal)
            }
            _ => Err(AuthError::Algorithm),
        }
    }

    /// The claims, if one of `keys` signed them; else what the key that fitted best says.
    fn verify_with_any(&self, token: &str, keys: &[DecodingKey], algorithm: Algorithm) -> Result<Claims, AuthError> {
        let mut refused = AuthError::UnknownKey;
        for key in keys {
            match self.verify(token, key, algorithm) {
                Ok(claims) => return Ok(claims),
                Err(AuthError::Signature) if refused != AuthError::UnknownKey => {}
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    /// A token for `user`, signed with the shared secret.
    pub fn issue_token(&self, user: &str, roles: &[Role], ttl: Duration) -> Result<String, IssueError> {
        check_user_id(user)?;
        let secret = self.secret.as_ref().ok_or(IssueError::NoSecret)?;
        let now = Timestamp::now().0 / 1000;
        let claims = NewClaims {
            sub: user,
            roles: roles.iter().map(|role| role.as_str()).collect(),
            iat: now,
            exp: now.saturating_add(i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX)),
            iss: self.issuer.as_deref(),
            aud: &self.audience,
        };
        Ok(jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &secret.encoding)?)
    }

    fn verify(&self, token: &str, key: &DecodingKey, algorithm: Algorithm) -> Result<Claims, AuthError> {
        let (_, validation) =
            self.validations.iter().find(|(known, _)| *known == algorithm).ok_or(AuthError::Algorithm)?;
        let data = jsonwebtoken::decode(token, key, validation).map_err(|error| refusal(&error))?;
        Ok(data.claims)
    }
}

/// Roles that are not ours are another system's; without one of ours the caller is a user.
fn principal(claims: &Claims) -> Result<Principal, AuthError> {
    check_user_id(&claims.sub).map_err(AuthError::Subject)?;
    let named = claims.roles.names().chain(claims.role.names());
    let mut roles: Vec<Role> = Vec::new();
    for role in named.filter_map(|name| name.parse().ok()) {
        if !roles.contains(&role) {
            roles.push(role);
        }
    }
    if roles.is_empty() {
        roles.push(Role::User);
    }
    // The cast saturates, which is what a far future means.
    Ok(Principal { user_id: claims.sub.as_str().into(), roles, expires_at: Timestamp((claims.exp * 1000.0) as i64) })
}

fn refusal(error: &jsonwebtoken::errors::Error) -> AuthError {
    match error.kind() {
        ErrorKind::InvalidSignature => AuthError::Signature,
        ErrorKind::ExpiredSignature => AuthError::Expired,
        ErrorKind::ImmatureSignature => AuthError::NotYetValid,
        ErrorKind::InvalidIssuer => AuthError::Issuer,
        ErrorKind::InvalidAudience => AuthError::Audience,
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName | ErrorKind::UnsupportedAlgorithm => {
            AuthError::Algorithm
        }
        ErrorKind::MissingRequiredClaim(claim) => AuthError::MissingClaim(claim.clone()),
        ErrorKind::Json(json) => {
            match json.to_string().split('`').nth(1).filter(|claim| matches!(*claim, "sub" | "exp")) {
                Some(claim) => AuthError::MissingClaim(claim.to_owned()),
                None => AuthError::Malformed(json.to_string()),
            }
        }
        _ => AuthError::Malformed(error.to_string()),
    }
}
