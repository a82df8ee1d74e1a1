//! The public keys of an identity provider: fetched, kept, fetched again when they are
//! old or a token names a key that is not among them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use parking_lot::RwLock;
use serde::Deserialize;
use tokio::sync::MutexGuard;
use url::Url;

use crate::config;

/// What tokens of an identity provider may be signed with.
pub(super) const ALGORITHMS: [Algorithm; 3] = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];

/// A larger document is no key set.
const MAX_DOCUMENT_BYTES: usize = 1024 * 1024;
/// The least time from a failed fetch to the next.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The identity provider's keys could not be fetched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the identity provider's keys are not available at the moment; try again")]
pub struct KeysUnavailable;

/// Why a fetch failed; for the log.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Http(#[from] reqwest::Error),
    #[error("the answer is larger than {MAX_DOCUMENT_BYTES} bytes")]
    TooLarge,
    #[error("the answer is not a key set: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the answer has no key for RS256, ES256 or EdDSA")]
    NoKeys,
}

pub(super) struct Jwks {
    url: Url,
    client: reqwest::Client,
    max_age: Duration,
    min_interval: Duration,
    current: RwLock<Option<Arc<KeySet>>>,
    /// Held while fetching, so that one does it for all; `None`: never tried.
    last_fetch: tokio::sync::Mutex<Option<Fetch>>,
}

struct Fetch {
    at: Instant,
    failed: bool,
}

struct KeySet {
    keys: Vec<Key>,
    fetched_at: Instant,
}

struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl KeySet {
    /// The keys that may have signed: those of this id, or all when the token names none.
    fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Vec<DecodingKey> {
        let fits = |key: &&Key| key.algorithm == algorithm && (id.is_none() || key.id.as_deref() == id);
        self.keys.iter().filter(fits).map(|key| key.key.clone()).collect()
    }
}

impl Jwks {
    pub(super) fn new(url: Url, config: &config::Auth) -> Result<Self, reqwest::Error> {
        // A redirect could lead away from TLS, and key documents have none.
        let client = reqwest::Client::builder()
            .timeout(config.jwks_timeout)
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self {
            url,
            client,
            max_age: config.jwks_max_age,
            min_interval: config.jwks_min_interval,
            current: RwLock::new(None),
            last_fetch: tokio::sync::Mutex::new(None),
        })
    }

    /// The keys that may have signed a token with this header; empty: none is known.
    pub(super) async fn keys_for(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Vec<DecodingKey>, KeysUnavailable> {
        let known = self.known();
        let keys = known.as_ref().map(|set| set.find(id, algorithm)).unwrap_or_default();
        if let Some(set) = &known
            && !keys.is_empty()
        {
            // Old keys are better than none: whoever comes first fetches, the others go on.
            if set.fetched_at.elapsed() > self.max_age
                && let Ok(last_fetch) = self.last_fetch.try_lock()
            {
                self.fetch_unless_recent(last_fetch).await;
                return Ok(self.known().map_or(keys, |set| set.find(id, algorithm)));
            }
            return Ok(keys);
        }
        let last_fetch = self.last_fetch.lock().await;
        // While this one waited another may have fetched.
        let fetched_at = |set: &Option<Arc<KeySet>>| set.as_ref().map(|set| set.fetched_at);
        if fetched_at(&self.known()) == fetched_at(&known) {
            self.fetch_unless_recent(last_fetch).await;
        }
        self.known().map(|set| set.find(id, algorithm)).ok_or(KeysUnavailable)
    }

    fn known(&self) -> Option<Arc<KeySet>> {
        self.current.read().clone()
    }

    /// Fetches, unless somebody did so within the floor between two fetches.
    async fn fetch_unless_recent(&self, mut last_fetch: MutexGuard<'_, Option<Fetch>>) {
        if let Some(last) = &*last_fetch {
            let floor = if last.failed { RETRY_INTERVAL.min(self.min_interval) } else { self.min_interval };
            if last.at.elapsed() < floor {
                return;
            }
        }
        // Noted before: a caller that hangs up in the middle does not lower the floor.
        *last_fetch = Some(Fetch { at: Instant::now(), failed: true });
        match self.fetch().await {
            Ok(keys) => {
                tracing::info!(url = %self.url, keys = keys.len(), "fetched the identity provider's keys");
                *last_fetch = Some(Fetch { at: Instant::now(), failed: false });
                *self.current.write() = Some(Arc::new(KeySet { keys, fetched_at: Instant::now() }));
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(url = %self.url, error, "the identity provider's keys could not be fetched");
            }
        }
    }

    async fn fetch(&self) -> Result<Vec<Key>, FetchError> {
        let mut response = self.client.get(self.url.clone()).send().await?.error_for_status()?;
        let mut document = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if document.len() + chunk.len() > MAX_DOCUMENT_BYTES {
                return Err(FetchError::TooLarge);
            }
            document.extend_from_slice(&chunk);
        }
        parse(&document)
    }
}

fn parse(document: &[u8]) -> Result<Vec<Key>, FetchError> {
    #[derive(Deserialize)]
    struct Document {
        keys: Vec<serde_json::Value>,
    }
    let document: Document = serde_json::from_slice(document)?;
    // Each by itself: one key of a kind unknown here must not hide the others.
    let keys: Vec<_> = document.keys.into_iter().filter_map(|jwk| key(serde_json::from_value(jwk).ok()?)).collect();
    if keys.is_empty() { Err(FetchError::NoKeys) } else { Ok(keys) }
}

/// A public signing key of an accepted algorithm. A symmetric key in a public document is
/// no secret, so it is no key here.
fn key(jwk: Jwk) -> Option<Key> {
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => Algorithm::ES256,
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
        _ => return None,
    };
    let for_signing = jwk.common.public_key_use.as_ref().is_none_or(|usage| *usage == PublicKeyUse::Signature);
    let named = jwk.common.key_algorithm.map(|named| named.to_string().parse().ok());
    if !for_signing || named.is_some_and(|named| named != Some(algorithm)) {
        return None;
    }
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    Some(Key { id: jwk.common.key_id, algorithm, key })
}
