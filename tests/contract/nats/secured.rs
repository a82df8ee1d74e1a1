//! Servers that ask for TLS and a sign-in, with an authority of our own.

use std::path::{Path, PathBuf};
use std::process::Command;

use event_gateway::broker::PublishError;
use nkeys::KeyPair;

use super::server::{Server, free_port, program};
use super::{Fresh, WorkQueue};
use crate::fixture::*;

fn openssl(directory: &Path, arguments: &[&str]) {
    let run = Command::new("openssl").args(arguments).current_dir(directory).output().expect("openssl runs");
    assert!(run.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&run.stderr));
}

/// `{name}.pem` and `{name}.key`, signed by `ca.pem`.
fn certificate(directory: &Path, name: &str, extensions: &str) {
    let (key, request, pem) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
    let subject = format!("/CN={name}");
    std::fs::write(directory.join("extensions"), extensions).unwrap();
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    openssl(directory, &[&["req"], &curve[..], &["-keyout", &key, "-out", &request, "-subj", &subject]].concat());
    openssl(
        directory,
        &[
            "x509",
            "-req",
            "-in",
            &request,
            "-out",
            &pem,
            "-days",
            "2",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-extfile",
            "extensions",
        ],
    );
}

fn authority(directory: &Path) {
    openssl(
        directory,
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-subj",
            "/CN=authority of a test",
            "-addext",
            "keyUsage=critical,keyCertSign",
        ],
    );
}

/// A server that takes TLS only, from ada by password, from the holder of an nkey, and
/// optionally only from who shows a certificate.
struct Secured {
    directory: tempfile::TempDir,
    server: Server,
    nkey: KeyPair,
}

impl Secured {
    fn start(program: PathBuf, verify: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        authority(directory.path());
        certificate(directory.path(), "server", "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n");
        certificate(directory.path(), "client", "extendedKeyUsage=clientAuth\n");
        let nkey = KeyPair::new_user();
        let path = |name: &str| directory.path().join(name);
        let more = format!(
            "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: {verify} }}\n\
             authorization {{ users: [ {{ user: ada, password: \"s3cret\" }}, {{ nkey: {} }} ] }}",
            path("server.pem"),
            path("server.key"),
            path("ca.pem"),
            nkey.public_key(),
        );
        let server = Server::start(&program, directory.path(), "secured", free_port(), &more);
        Self { directory, server, nkey }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    async fn open(&self, set: &[(&str, &str)]) -> Fresh<WorkQueue> {
        let set: Vec<_> = [("nats.replicas", "1")].into_iter().chain(set.iter().copied()).collect();
        Fresh::with(self.server.url(), &set, &["reader"]).await
    }
}

async fn works(fixture: Fresh<WorkQueue>) {
    let mut health = fixture.nats().health();
    within(health.wait_for(|health| health.up)).await.unwrap();
    publish_series(&fixture, "alpha", 1..=3).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    assert_eq!(sequences(&consume(&mut *inbound, 3).await), [1, 2, 3]);
}

/// Waits until the reason names what is wrong; nothing is published meanwhile, and at once.
async fn is_kept_out(fixture: Fresh<WorkQueue>, expected: &str) {
    let mut health = fixture.nats().health();
    let named = within(health.wait_for(|health| health.why.to_lowercase().contains(expected))).await;
    let named = named.unwrap().clone();
    assert!(!named.up && !named.why.contains("s3cret"), "{named:?}");
    let results = try_publish(&*fixture.publisher(), &[outgoing(&fixture, "alpha", 1)]).await;
    assert!(matches!(&results[0], Err(PublishError::Down(_))), "{results:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_over_tls_opens_the_door() {
    let Some(program) = program() else { return };
    let secured = Secured::start(program, false);
    let ca = secured.path("ca.pem");
    works(secured.open(&[("nats.ca_file", &ca), ("nats.username", "ada"), ("nats.password", "s3cret")]).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_nkey_over_tls_opens_the_door() {
    let Some(program) = program() else { return };
    let secured = Secured::start(program, false);
    let (ca, seed) = (secured.path("ca.pem"), secured.nkey.seed().unwrap());
    works(secured.open(&[("nats.ca_file", &ca), ("nats.nkey_seed", &seed)]).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_shown_where_it_is_wanted() {
    let Some(program) = program() else { return };
    let secured = Secured::start(program, true);
    let (ca, seed) = (secured.path("ca.pem"), secured.nkey.seed().unwrap());
    let (cert, key) = (secured.path("client.pem"), secured.path("client.key"));
    let set =
        [("nats.ca_file", &*ca), ("nats.cert_file", &*cert), ("nats.key_file", &*key), ("nats.nkey_seed", &*seed)];
    works(secured.open(&set).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_named() {
    let Some(program) = program() else { return };
    let secured = Secured::start(program, false);
    let ca = secured.path("ca.pem");
    let set = [
        ("nats.ca_file", &*ca),
        ("nats.username", "ada"),
        ("nats.password", "s3cret-not"),
        ("nats.connect_timeout", "1s"),
    ];
    is_kept_out(secured.open(&set).await, "authorization violation").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_a_foreign_authority_signed_is_not_trusted() {
    let Some(program) = program() else { return };
    let secured = Secured::start(program, false);
    let other = tempfile::tempdir().unwrap();
    authority(other.path());
    let ca = other.path().join("ca.pem").display().to_string();
    let set =
        [("nats.ca_file", &*ca), ("nats.username", "ada"), ("nats.password", "s3cret"), ("nats.connect_timeout", "1s")];
    is_kept_out(secured.open(&set).await, "certificate").await;
}
