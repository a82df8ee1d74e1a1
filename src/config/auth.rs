use std::time::Duration;

use url::Url;

use super::setting::{Check, Checks, Secret, settings};

settings! {
    /// Who may come in. With neither a secret nor a JWKS URL the gateway runs in
    /// development mode: sign-in by one click, on loopback addresses only.
    pub struct Auth in "auth" {
        /// Secret of tokens signed with HS256; at least 32 bytes off loopback.
        jwt_secret: Option<Secret> = "",
        /// JWKS document with the public keys of an identity provider (RS256, ES256, EdDSA).
        jwks_url: Option<Url> = "",
        /// How long fetched keys are used before they are fetched again.
        jwks_max_age: Duration = "10m",
        /// The least time between two fetches, however many unknown key ids arrive.
        jwks_min_interval: Duration = "30s",
        /// A fetch of the keys that takes longer has failed.
        jwks_timeout: Duration = "5s",
        /// Tokens must come from this issuer (iss). Empty: any.
        issuer: Option<String> = "",
        /// Tokens must be meant for one of these audiences (aud). Empty: any.
        audience: Vec<String> = "",
        /// Clock difference that is forgiven when a token expires.
        leeway: Duration = "5s",
        /// How long a development sign-in lasts.
        development_ttl: Duration = "12h",
    }
}

impl Auth {
    /// No way to check foreign tokens is configured.
    pub fn is_development(&self) -> bool {
        self.jwt_secret.is_none() && self.jwks_url.is_none()
    }
}

impl Check for Auth {
    fn check(&self, checks: &mut Checks<'_>) {
        let minute = Duration::from_secs(60);
        if let Some(url) = &self.jwks_url {
            let local = url.host_str().is_some_and(|host| matches!(host, "127.0.0.1" | "[::1]" | "localhost"));
            let safe = url.scheme() == "https" || url.scheme() == "http" && local;
            checks.require(
                safe,
                "auth.jwks_url",
                "keys fetched without TLS can be replaced on the way",
                "use https://",
            );
        }
        checks.within("auth.jwks_max_age", self.jwks_max_age, minute..=24 * 60 * minute);
        checks.within("auth.jwks_min_interval", self.jwks_min_interval, Duration::from_secs(1)..=60 * minute);
        checks.within("auth.jwks_timeout", self.jwks_timeout, Duration::from_millis(100)..=minute);
        checks.within("auth.leeway", self.leeway, Duration::ZERO..=5 * minute);
        checks.within("auth.development_ttl", self.development_ttl, minute..=7 * 24 * 60 * minute);
    }
}
