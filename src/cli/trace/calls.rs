//! Calls that are safe to repeat, repeated until they are answered or time is up.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use reqwest::RequestBuilder;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::client::{Api, ApiError};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// One role's calls: at most so many at once, each tried for a while.
#[derive(Clone)]
pub struct Calls {
    api: Api,
    in_flight: Arc<Semaphore>,
    /// From the first try; whoever got no answer by then gives up.
    patience: Duration,
}

impl Calls {
    pub fn new(api: Api, in_flight: usize, patience: Duration) -> Self {
        Self { api, in_flight: Arc::new(Semaphore::new(in_flight)), patience }
    }

    pub fn api(&self) -> &Api {
        &self.api
    }

    /// The answer's body, after as many tries as it takes. `request` must be harmless to
    /// repeat: its answer may have been lost on the way.
    pub async fn answered(&self, request: impl Fn(&Api) -> RequestBuilder) -> Result<Bytes, ApiError> {
        let start = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let result = {
                // Closed never; and held per try, so that a pause holds nobody up.
                let _permit = self.in_flight.acquire().await;
                self.api.bytes(request(&self.api)).await
            };
            match result {
                Err(error) if error.is_temporary() && start.elapsed() < self.patience => {
                    let wait = error.retry_after().unwrap_or(pause).min(LONGEST_PAUSE);
                    let jitter = rand::rng().random_range(0.8..1.2);
                    tokio::time::sleep(wait.mul_f64(jitter)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                result => return result,
            }
        }
    }
}
