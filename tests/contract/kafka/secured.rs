//! Brokers that ask for TLS and SASL/SCRAM, with an authority of the test's own, and a registry
//! behind a server that asks for TLS and HTTP basic.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use event_gateway::broker::Outgoing;
use event_gateway::broker::kafka::{Health, Kafka};
use rdkafka::ClientConfig;

use super::server::{Cluster, Shape, free_port, jars};
use super::{AGAIN, Fresh, PARTITIONS, Site, TOPIC, consumer, route_to, topology, unique_prefix};
use crate::fixture::*;

fn openssl(directory: &Path, arguments: &str) {
    let run = Command::new("openssl").args(arguments.split(' ')).current_dir(directory).output().expect("openssl");
    assert!(run.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&run.stderr));
}

const CURVE: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

/// `ca.pem`, and `{name}.pem` with `{name}.key` signed by it.
fn certificates(directory: &Path) {
    openssl(directory, &format!("req -x509 {CURVE} -days 2 -keyout ca.key -out ca.pem -subj /CN=authority"));
    for (name, extensions) in [
        ("server", "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth"),
        ("client", "extendedKeyUsage=clientAuth"),
    ] {
        std::fs::write(directory.join("extensions"), extensions).unwrap();
        openssl(directory, &format!("req {CURVE} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        let authority = "-CA ca.pem -CAkey ca.key -CAcreateserial";
        openssl(
            directory,
            &format!("x509 -req -in {name}.csr -out {name}.pem -days 2 {authority} -extfile extensions"),
        );
    }
}

/// One broker that takes TLS from holders of a certificate, and ada by her password.
struct Secured {
    site: Site,
    _cluster: Cluster,
    directory: tempfile::TempDir,
}

impl Secured {
    async fn start(jars: PathBuf, site: Site) -> Self {
        let directory = tempfile::tempdir().unwrap();
        certificates(directory.path());
        let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        std::fs::write(directory.path().join("keystore.pem"), read("server.key") + &read("server.pem")).unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let listener = "listener.name.client";
        let properties = format!(
            "min.insync.replicas=1\n\
             offsets.topic.replication.factor=1\n\
             default.replication.factor=1\n\
             {listener}.sasl.enabled.mechanisms=SCRAM-SHA-512\n\
             {listener}.scram-sha-512.sasl.jaas.config=\
                org.apache.kafka.common.security.scram.ScramLoginModule required;\n\
             {listener}.ssl.client.auth=required\n\
             {listener}.ssl.keystore.type=PEM\n\
             {listener}.ssl.keystore.location={}\n\
             {listener}.ssl.truststore.type=PEM\n\
             {listener}.ssl.truststore.location={}\n",
            path("keystore.pem"),
            path("ca.pem"),
        );
        let format = vec!["--add-scram", "SCRAM-SHA-512=[name=ada,password=s3cret]"];
        let shape = Shape { nodes: 1, protocol: Some("SASL_SSL"), properties, format };
        let mut client = ClientConfig::new();
        client
            .set("security.protocol", "sasl_ssl")
            .set("sasl.mechanism", "SCRAM-SHA-512")
            .set("sasl.username", "ada")
            .set("sasl.password", "s3cret")
            .set("ssl.ca.location", path("ca.pem"))
            .set("ssl.certificate.location", path("client.pem"))
            .set("ssl.key.location", path("client.key"));
        let starting = move || {
            let cluster = Cluster::start(&jars, &shape);
            cluster.wait(client);
            cluster
        };
        let cluster = tokio::task::spawn_blocking(starting).await.unwrap();
        Self { site: Site { bootstrap: cluster.bootstrap(), ..site }, _cluster: cluster, directory }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    async fn open(&self, set: &[(&str, &str)]) -> Kafka {
        let (ca, certificate, key) = (self.path("ca.pem"), self.path("client.pem"), self.path("client.key"));
        let own = [
            ("kafka.replication", "1"),
            ("kafka.min_insync", "1"),
            ("kafka.security", "sasl-ssl"),
            ("kafka.username", "ada"),
            ("kafka.password", "s3cret"),
            ("kafka.ca_file", &ca),
            ("kafka.cert_file", &certificate),
            ("kafka.key_file", &key),
            ("kafka.request_timeout", "5s"),
        ];
        // Of a setting given twice, the later one rules.
        let set: Vec<_> = own.into_iter().chain(set.iter().copied()).collect();
        let prefix = unique_prefix();
        let config = self.site.config(&prefix, &set);
        let opened = Kafka::open_with(&config.kafka, &config.registry, topology(&prefix, PARTITIONS));
        within(opened).await.unwrap_or_else(|error| panic!("{error}"))
    }

    async fn is_kept_out(&self, set: &[(&str, &str)], expected: &str) {
        let kafka = self.open(set).await;
        let Health::Down(why) = kafka.health().cluster else { panic!("{set:?} was let in") };
        assert!(why.to_lowercase().contains(expected), "{expected} is missing in: {why}");
        assert!(!why.contains("s3cret"), "{why}");
        within(kafka.shutdown()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_who_they_say_is_let_in_over_tls_and_nobody_else() {
    let (Some(site), Some(jars)) = (Site::find(), jars()) else { return };
    let secured = Secured::start(jars, site).await;

    let kafka = secured.open(&[]).await;
    assert_eq!(kafka.health().cluster, Health::Up);
    let window = [Outgoing { event: event("alpha", 1), route: route_to(TOPIC, "alpha") }];
    publish(&*kafka.publisher(), &window).await;
    let mut inbound = within(kafka.subscriber().subscribe(&consumer("reader"))).await.unwrap();
    assert_eq!(sequences(&consume(&mut *inbound, 1).await), [1]);
    within(kafka.shutdown()).await;

    secured.is_kept_out(&[("kafka.password", "s3cret-not")], "authentication failed").await;
    let foreign = tempfile::tempdir().unwrap();
    certificates(foreign.path());
    let ca = foreign.path().join("ca.pem").display().to_string();
    secured.is_kept_out(&[("kafka.ca_file", &ca)], "certificate verify failed").await;
}

/// Apache httpd in front of an address: takes TLS, and ada by her password. It ends with the test.
struct Door {
    process: Child,
    port: u16,
}

/// `{directory}`, `{port}` and `{target}` differ. As root it serves as somebody else.
const DOOR: &str = "\
ServerRoot {directory}
ServerName 127.0.0.1
Listen 127.0.0.1:{port}
PidFile {directory}/httpd.pid
ErrorLog {directory}/httpd.log
Mutex file:{directory}
User nobody
Group nogroup
SSLEngine on
SSLCertificateFile server.pem
SSLCertificateKeyFile server.key
AllowEncodedSlashes NoDecode
ProxyPass / http://{target}/ nocanon
<Location />
AuthType Basic
AuthName schemas
AuthUserFile users
Require valid-user
</Location>
";
const MODULES: [&str; 9] =
    ["mpm_event", "authn_core", "authn_file", "authz_core", "authz_user", "auth_basic", "proxy", "proxy_http", "ssl"];

impl Door {
    async fn start(directory: &Path, target: &str) -> Self {
        // Whoever it serves as reads the passwords.
        std::fs::set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
        let hash = Command::new("openssl").args(["passwd", "-apr1", "s3cret"]).output().unwrap();
        std::fs::write(directory.join("users"), [&b"ada:"[..], &hash.stdout].concat()).unwrap();
        let port = free_port();
        let modules = MODULES.map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"));
        let rest = DOOR.replace("{directory}", &directory.display().to_string());
        let rest = rest.replace("{port}", &port.to_string()).replace("{target}", target);
        let file = directory.join("httpd.conf");
        std::fs::write(&file, modules.concat() + &rest).unwrap();
        // In the foreground, as one process.
        let process = Command::new("/usr/sbin/apache2").arg("-X").arg("-f").arg(file).stdin(Stdio::null()).spawn();
        let door = Self { process: process.expect("Debian's apache2-bin: scripts/setup"), port };
        within(async {
            while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::time::sleep(AGAIN).await;
            }
        })
        .await;
        door
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_asks_for_a_password_gets_it_over_tls_and_a_false_one_does_not() {
    let Some(site) = Site::find() else { return };
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let door = Door::start(directory.path(), &site.registry_address()).await;
    let url = site.registry_at(door.port).replace("http:", "https:");
    let ca = directory.path().join("ca.pem").display().to_string();
    let known = [
        ("kafka.schema_registry_url", &*url),
        ("kafka.schema_registry_ca_file", &*ca),
        ("kafka.schema_registry_username", "ada"),
        ("kafka.schema_registry_password", "s3cret"),
    ];
    let fresh = Fresh::with(site, &known).await;
    assert_eq!(fresh.kafka.health().registry, Health::Up);

    let kept_out = async |last: (&str, &str), expected: &str| {
        // Of a setting given twice, the later one rules.
        let set: Vec<_> = known.into_iter().chain([last]).collect();
        let config = fresh.site.config(&fresh.prefix, &set);
        let topology = topology(&fresh.prefix, PARTITIONS);
        let opened = within(Kafka::open_with(&config.kafka, &config.registry, topology)).await;
        let opened = opened.unwrap_or_else(|error| panic!("{error}"));
        let Health::Down(why) = opened.health().registry else { panic!("{last:?} was let in") };
        assert!(why.to_lowercase().contains(expected) && !why.contains("s3cret"), "{why}");
        within(opened.shutdown()).await;
    };
    kept_out(("kafka.schema_registry_password", "s3cret-not"), "401").await;
    kept_out(("kafka.schema_registry_ca_file", ""), "certificate").await;
}
