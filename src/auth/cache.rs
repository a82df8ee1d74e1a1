//! Tokens verified a moment ago.

use std::time::{Duration, Instant};

use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};

use crate::domain::{Principal, Timestamp};

/// Some 200 bytes each.
const CAPACITY: usize = 10_000;

pub(super) struct VerifiedTokens {
    /// By digest, so that a dump of the memory is no list of tokens.
    by_digest: Cache<[u8; 32], Verified>,
    /// A key may be withdrawn: look again at least as often as at the keys.
    max_age: Duration,
}

#[derive(Clone)]
struct Verified {
    principal: Principal,
    at: Instant,
}

impl VerifiedTokens {
    pub(super) fn new(max_age: Duration) -> Self {
        Self { by_digest: Cache::new(CAPACITY), max_age }
    }

    pub(super) fn get(&self, token: &str) -> Option<Principal> {
        let Verified { principal, at } = self.by_digest.get(&digest(token))?;
        (at.elapsed() < self.max_age && principal.expires_at > Timestamp::now()).then_some(principal)
    }

    pub(super) fn put(&self, token: &str, principal: &Principal) {
        self.by_digest.insert(digest(token), Verified { principal: principal.clone(), at: Instant::now() });
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}
