//! The one connection to the cluster: it tries all servers, for ever, and tells everybody
//! whether it stands.

use std::future::ready;
use std::time::Duration;

use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectOptions, Event};
use tokio::sync::watch;

use super::NatsError;
use crate::config;

/// Commands that wait for the connection's task. A publisher fails fast without a
/// connection, so that no more than a window per lane waits here for a new one.
const CLIENT_CAPACITY: usize = 1024;
/// Messages that wait for one subscription's reader.
const SUBSCRIPTION_CAPACITY: usize = 16_384;
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LAST_DELAY: Duration = Duration::from_secs(5);

/// Whether there is a connection.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub connected: bool,
    /// Why there is none.
    pub why: String,
    /// Counts connections: what was sent over an earlier one may be lost.
    pub generation: u64,
}

pub(super) struct Connection {
    pub client: Client,
    pub jetstream: Context,
    link: watch::Receiver<Link>,
}

impl Connection {
    /// Starts connecting; does not wait for it.
    pub async fn open(config: &config::Nats) -> Result<Self, NatsError> {
        let initial = Link { connected: false, why: "no server has answered yet".into(), generation: 0 };
        let (link, receiver) = watch::channel(initial);
        let servers = config.urls.len();
        let (events, attempts) = (link.clone(), link);
        let options = ConnectOptions::new()
            .name("event-gateway")
            .retry_on_initial_connect()
            .connection_timeout(config.connect_timeout)
            .request_timeout(Some(config.request_timeout))
            .ping_interval(config.ping_interval)
            .client_capacity(CLIENT_CAPACITY)
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .reconnect_delay_callback(move |attempt| delay(attempt, servers, rand::random()))
            .event_callback(move |event| {
                note(&events, &event);
                ready(())
            })
            // Chooses no server; the only place that shows why the others did not answer.
            .reconnect_to_server_callback(move |servers, _| ready(note_failures(&attempts, &servers)));
        let options = secured(signed_in(options, config)?, config).await?;
        let client = options.connect(config.urls.as_slice()).await.map_err(|why| NatsError::Setup {
            field: "nats.urls",
            reason: why.to_string(),
            fix: "write nats://host:port for each server",
        })?;
        let jetstream = jetstream::context::ContextBuilder::new().timeout(config.request_timeout).build(client.clone());
        Ok(Self { client, jetstream, link: receiver })
    }

    pub fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// The number of the present connection, or why there is none.
    pub fn generation(&self) -> Result<u64, String> {
        let link = self.link.borrow();
        if link.connected { Ok(link.generation) } else { Err(link.why.clone()) }
    }

    /// Waits up to `limit` for a connection.
    pub async fn wait(&self, limit: Duration) -> Result<(), String> {
        let mut link = self.link();
        match tokio::time::timeout(limit, link.wait_for(|link| link.connected)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(self.link.borrow().why.clone()),
        }
    }

    /// Ends when this connection is no more; says why.
    pub async fn lost(&self, generation: u64) -> String {
        let mut link = self.link();
        match link.wait_for(|link| !link.connected || link.generation != generation).await {
            Ok(link) if link.connected => "the connection was lost meanwhile".into(),
            Ok(link) => link.why.clone(),
            Err(_) => "the client is closed".into(),
        }
    }
}

fn signed_in(options: ConnectOptions, config: &config::Nats) -> Result<ConnectOptions, NatsError> {
    if let (Some(user), Some(password)) = (&config.username, &config.password) {
        return Ok(options.user_and_password(user.clone(), password.expose().to_owned()));
    }
    if let Some(seed) = &config.nkey_seed {
        return Ok(options.nkey(seed.expose().to_owned()));
    }
    match &config.credentials {
        Some(credentials) => options.credentials(credentials.expose()).map_err(|_| NatsError::Setup {
            field: "nats.credentials",
            reason: "it does not hold a JWT and a seed".into(),
            fix: "give the text of the credentials file, or its path as nats.credentials_file",
        }),
        None => Ok(options),
    }
}

async fn secured(mut options: ConnectOptions, config: &config::Nats) -> Result<ConnectOptions, NatsError> {
    let files =
        [("nats.ca_file", &config.ca_file), ("nats.cert_file", &config.cert_file), ("nats.key_file", &config.key_file)];
    for (field, path) in files {
        let Some(path) = path else { continue };
        tokio::fs::read(path).await.map_err(|why| NatsError::Setup {
            field,
            reason: format!("{}: {why}", path.display()),
            fix: "name a readable PEM file",
        })?;
    }
    if let Some(authority) = &config.ca_file {
        options = options.add_root_certificates(authority.clone()).require_tls(true);
    }
    if let (Some(certificate), Some(key)) = (&config.cert_file, &config.key_file) {
        options = options.add_client_certificate(certificate.clone(), key.clone()).require_tls(true);
    }
    Ok(options)
}

/// From one attempt to the next: each server once almost at once, then slower and slower.
/// Jitter (0 to 1) keeps many instances from coming back in step.
fn delay(attempt: usize, servers: usize, jitter: f64) -> Duration {
    let round = attempt.saturating_sub(1) / servers.max(1);
    let base = match round {
        0 => FIRST_DELAY / 4,
        round => LAST_DELAY.min(FIRST_DELAY * 2u32.saturating_pow(round.min(16) as u32)),
    };
    base.mul_f64(0.5 + jitter)
}

fn note(link: &watch::Sender<Link>, event: &Event) {
    match event {
        Event::Connected => link.send_modify(|link| {
            link.connected = true;
            link.why.clear();
            link.generation += 1;
        }),
        Event::Disconnected => down(link, "the connection was lost"),
        Event::Closed => down(link, "the client is closed"),
        Event::SlowConsumer(_) => tracing::warn!("messages of NATS were dropped: their reader is too slow"),
        Event::ServerError(error) => {
            tracing::warn!(%error, "NATS says");
            explain(link, error.to_string());
        }
        Event::ClientError(error) => explain(link, error.to_string()),
        Event::LameDuckMode | Event::Draining => {}
    }
}

fn note_failures(link: &watch::Sender<Link>, servers: &[async_nats::Server]) -> Option<async_nats::ReconnectToServer> {
    let failures: Vec<String> =
        servers.iter().filter_map(|server| Some(format!("{server}: {}", server.last_error.as_deref()?))).collect();
    if !failures.is_empty() {
        explain(link, failures.join("; "));
    }
    None
}

fn down(link: &watch::Sender<Link>, why: &str) {
    link.send_modify(|link| {
        link.connected = false;
        link.why = why.to_owned();
    });
}

/// Says more about a connection that is already known to be away.
fn explain(link: &watch::Sender<Link>, why: String) {
    link.send_if_modified(|link| {
        // An attempt's own account is followed by the kind of its error, which says less.
        let better = !link.connected && !link.why.contains(&why) && !link.why.contains("://") || why.contains("://");
        if link.connected || !better {
            return false;
        }
        link.why = why;
        true
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_by_the_round_and_stay_bounded() {
        let at = |attempt| delay(attempt, 3, 0.5);
        assert_eq!([at(1), at(3)], [Duration::from_millis(25); 2]);
        assert_eq!([at(4), at(6)], [Duration::from_millis(200); 2]);
        assert_eq!(at(7), Duration::from_millis(400));
        assert_eq!(at(1_000_000), LAST_DELAY);
        assert!(delay(1_000_000, 3, 1.0) <= LAST_DELAY.mul_f64(1.5));
    }

    #[test]
    fn the_reason_is_the_most_telling_one() {
        let (link, view) = watch::channel(Link { connected: false, why: String::new(), generation: 0 });
        note(&link, &Event::Connected);
        assert!(view.borrow().connected);
        note(&link, &Event::Disconnected);
        assert_eq!(view.borrow().why, "the connection was lost");
        explain(&link, "nats://a:1: refused".into());
        explain(&link, "IO error".into());
        assert_eq!(view.borrow().why, "nats://a:1: refused");
        explain(&link, "nats://a:1: authorization violation".into());
        assert_eq!(view.borrow().why, "nats://a:1: authorization violation");
        note(&link, &Event::Connected);
        explain(&link, "nats://a:1: late news".into());
        assert_eq!((view.borrow().connected, &*view.borrow().why, view.borrow().generation), (true, "", 2));
    }
}
