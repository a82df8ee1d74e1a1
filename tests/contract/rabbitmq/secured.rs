//! A server that speaks TLS only to clients with a certificate, and asks for a password:
//! `EVENT_GATEWAY_TEST_RABBITMQ_TLS` (URLs) and `EVENT_GATEWAY_TEST_CERTIFICATES` (a directory
//! with the authority that has signed everything, `ca.pem`, and one that has not, `stranger.pem`).

use event_gateway::broker::rabbitmq::RabbitMq;

use super::Fresh;
use crate::environment::variable;
use crate::fixture::{Fixture, consume, outgoing, publish, sequences, subscribe, within};

struct Secured {
    urls: String,
    certificates: String,
}

impl Secured {
    fn there() -> Option<Self> {
        let urls = variable("EVENT_GATEWAY_TEST_RABBITMQ_TLS")?;
        let certificates = variable("EVENT_GATEWAY_TEST_CERTIFICATES")?;
        Some(Self { urls, certificates })
    }

    fn file(&self, name: &str) -> String {
        format!("{}/{name}.pem", self.certificates)
    }

    async fn open(&self, urls: &str, authority: &str, certificate: Option<&str>) -> Fresh {
        let (ca, own) =
            (self.file(authority), certificate.map(|name| (self.file(name), self.file(&format!("{name}-key")))));
        let mut set = vec![("rabbitmq.ca_file", ca.as_str())];
        if let Some((certificate, key)) = &own {
            set.extend([("rabbitmq.cert_file", certificate.as_str()), ("rabbitmq.key_file", key.as_str())]);
        }
        Fresh::with(urls, &set, &["reader"]).await
    }
}

/// Why it is not up, after every node was tried.
fn why(rabbitmq: &RabbitMq) -> String {
    let health = rabbitmq.health().borrow().clone();
    assert!(!health.up, "it should not be let in");
    health.why
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_certificate_and_password_everything_works() {
    let Some(secured) = Secured::there() else { return };
    let fixture = secured.open(&secured.urls, "ca", Some("client")).await;
    let mut health = fixture.rabbitmq().health();
    within(health.wait_for(|health| health.up)).await.unwrap();
    publish(&*fixture.publisher(), &[outgoing(&fixture, "alpha", 1)]).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    assert_eq!(sequences(&consume(&mut *inbound, 1).await), [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_an_unknown_authority_is_not_trusted() {
    let Some(secured) = Secured::there() else { return };
    let fixture = secured.open(&secured.urls, "stranger", Some("client")).await;
    let why = why(fixture.rabbitmq());
    assert!(why.contains("certificate"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_without_a_certificate_is_refused() {
    let Some(secured) = Secured::there() else { return };
    let fixture = secured.open(&secured.urls, "ca", None).await;
    assert!(!why(fixture.rabbitmq()).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_named_and_not_shown() {
    let Some(secured) = Secured::there() else { return };
    let right = secured.urls.split(',').next().unwrap();
    let password = right.split(':').nth(2).unwrap().split('@').next().unwrap();
    let fixture = secured.open(&right.replace(password, "s3cret-but-wrong"), "ca", Some("client")).await;
    let why = why(fixture.rabbitmq());
    assert!(why.contains("ACCESS_REFUSED") || why.contains("ACCESS-REFUSED"), "{why}");
    assert!(!why.contains("s3cret"), "{why}");
}
