//! This instance's lease on what it owns: renewed here, looked at before each window.
//!
//! A lease that was not renewed in time stops the lanes; it may still be renewed. One that
//! another instance has taken over is gone with its owner: the instance enrolls again, and
//! the lanes drop what they hold and read what is theirs now.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::store::{Enrolment, Renewal, Store, StoreError};

/// The lease as it is now.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    /// Who commits in this instance's name.
    pub owner: i32,
    /// Counts up when there is something in the store that lanes have not been handed.
    pub generation: u64,
    /// `None`: no other instance can take over.
    until: Option<Instant>,
}

impl Lease {
    /// Whether nobody else can have taken over yet.
    pub fn held(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }
}

/// How keeping the lease has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseEnd {
    /// As asked.
    Stopped,
    /// A later start of the same instance has taken over: this process must end.
    Replaced,
}

/// Renewals within one lease.
const RENEWALS: u32 = 4;
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// Keeps the lease.
pub struct LeaseKeeper {
    store: Arc<dyn Store>,
    instance: Arc<str>,
    duration: Duration,
    lease: watch::Sender<Lease>,
}

impl LeaseKeeper {
    /// Enrolls this start of `instance`.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn enroll(
        store: Arc<dyn Store>,
        instance: Arc<str>,
        duration: Duration,
    ) -> Result<(Self, Enrolment), StoreError> {
        let sent = Instant::now();
        let enrolment = store.enroll(&instance, duration).await?;
        let until = (enrolment.owner != 0).then_some(sent + duration);
        let (lease, _) = watch::channel(Lease { owner: enrolment.owner, generation: 0, until });
        Ok((Self { store, instance, duration, lease }, enrolment))
    }

    /// What lanes look at.
    pub fn watch(&self) -> watch::Receiver<Lease> {
        self.lease.subscribe()
    }

    /// Renews until `stop`, or until a later start of this instance has replaced this one.
    pub async fn run(self, stop: CancellationToken) -> LeaseEnd {
        if self.lease.borrow().owner == 0 {
            stop.cancelled().await;
            return LeaseEnd::Stopped;
        }
        loop {
            tokio::select! {
                () = stop.cancelled() => return LeaseEnd::Stopped,
                () = sleep(self.duration / RENEWALS) => {}
            }
            // From before it was sent: the store counts from later.
            let sent = Instant::now();
            match timeout(self.duration, self.store.renew(self.duration)).await {
                Ok(Ok(Renewal::Held { adopted })) => self.held(sent, adopted),
                Ok(Ok(Renewal::Lost)) => self.enroll_again(&stop).await,
                Ok(Ok(Renewal::Replaced)) => {
                    tracing::error!(
                        instance = %self.instance,
                        "another gateway has started under this instance's name; give each its own instance.id"
                    );
                    return LeaseEnd::Replaced;
                }
                Ok(Err(error)) => tracing::warn!(%error, held = self.lease.borrow().held(), "lease not renewed"),
                Err(_) => tracing::warn!(held = self.lease.borrow().held(), "lease not renewed: no answer"),
            }
        }
    }

    fn held(&self, sent: Instant, adopted: u32) {
        if adopted > 0 {
            tracing::info!(adopted, "took over what instances that are gone had not published");
        }
        self.lease.send_modify(|lease| {
            lease.until = Some(sent + self.duration);
            lease.generation += u64::from(adopted > 0);
        });
    }

    async fn enroll_again(&self, stop: &CancellationToken) {
        tracing::warn!(instance = %self.instance, "the lease was lost; enrolling again");
        while !stop.is_cancelled() {
            let sent = Instant::now();
            match self.store.enroll(&self.instance, self.duration).await {
                Ok(Enrolment { owner, .. }) => {
                    self.lease.send_modify(|lease| {
                        *lease = Lease { owner, generation: lease.generation + 1, until: Some(sent + self.duration) };
                    });
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "enrolling failed; trying again");
                    sleep(TRY_AGAIN).await;
                }
            }
        }
    }
}
