//! A server that takes TLS only and asks for a password, with an authority of our own.
//!
//! Its programs are found where Debian has them or on the path.

use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use event_gateway::app::open_store;
use event_gateway::config::Config;
use event_gateway::store::{JobFilter, Outcome, Page, Store, StoreError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::LEASE;
use crate::environment::or_skip;
use crate::fixture::{factory, job, submit};

const PASSWORD: &str = "s3cret of ada";
/// PostgreSQL refuses to run as root.
const SYSTEM_USER: &str = "postgres";

/// The directory of `initdb` and `postgres`; `None` when there is none and that is fine.
fn programs() -> Option<PathBuf> {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut places: Vec<PathBuf> = installed.map(|version| version.path().join("bin")).collect();
    places.sort();
    places.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let found = places.into_iter().find(|place| place.join("initdb").is_file() && place.join("postgres").is_file());
    or_skip(found, "there is no initdb and postgres below /usr/lib/postgresql or on the path")
}

fn run(command: &mut Command) {
    let done = command.current_dir("/").output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A command of the user that runs the server.
fn as_server(program: PathBuf) -> Command {
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={SYSTEM_USER}")).arg(format!("--regid={SYSTEM_USER}")).arg("--init-groups");
    command.arg(program);
    command
}

fn openssl(directory: &Path, arguments: &str) {
    run(Command::new("openssl").args(arguments.split(' ').map(|word| word.replace("DIR", directory.to_str().unwrap()))));
}

const NEW_KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

/// `{name}.pem`, which has signed nothing yet.
fn authority(directory: &Path, name: &str) {
    let files = format!("-keyout DIR/{name}.key -out DIR/{name}.pem");
    let subject = format!("-subj /CN={name} -addext keyUsage=critical,keyCertSign");
    openssl(directory, &format!("req -x509 {NEW_KEY} -days 2 {files} {subject}"));
}

/// `server.pem` and `server.key`, for localhost, signed by `ca.pem`.
fn server_certificate(directory: &Path) {
    std::fs::write(directory.join("extensions"), "subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth\n")
        .unwrap();
    openssl(directory, &format!("req {NEW_KEY} -keyout DIR/server.key -out DIR/server.csr -subj /CN=localhost"));
    let authority = "-CA DIR/ca.pem -CAkey DIR/ca.key -CAcreateserial -extfile DIR/extensions";
    openssl(directory, &format!("x509 -req -in DIR/server.csr -out DIR/server.pem -days 2 {authority}"));
}

struct Secured {
    directory: tempfile::TempDir,
    port: u16,
    process: Child,
}

impl Secured {
    async fn start() -> Option<Self> {
        let programs = programs()?;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        authority(path, "ca");
        authority(path, "stranger");
        server_certificate(path);
        std::fs::write(path.join("password"), PASSWORD).unwrap();
        // The server's user goes in here, too.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let data = path.join("data");
        std::fs::create_dir(&data).unwrap();
        if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
            let own = ["data", "password", "server.key", "server.pem"].map(|name| path.join(name));
            run(Command::new("chown").arg(SYSTEM_USER).args(own));
        }
        let password = format!("--pwfile={}", path.join("password").display());
        let flags = ["-A", "scram-sha-256", "-U", "ada", "-E", "UTF8", "--no-locale", "--no-sync", &password, "-D"];
        run(as_server(programs.join("initdb")).args(flags).arg(&data));
        std::fs::write(data.join("pg_hba.conf"), "hostssl all all 127.0.0.1/32 scram-sha-256\n").unwrap();

        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = [
            format!("port={port}"),
            "listen_addresses=127.0.0.1".to_owned(),
            "unix_socket_directories=".to_owned(),
            "ssl=on".to_owned(),
            "ssl_min_protocol_version=TLSv1.3".to_owned(),
            format!("ssl_cert_file={}", path.join("server.pem").display()),
            format!("ssl_key_file={}", path.join("server.key").display()),
        ];
        let process = as_server(programs.join("postgres"))
            .arg("-D")
            .arg(&data)
            .args(settings.iter().flat_map(|setting| ["-c", setting]))
            .current_dir("/")
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(path.join("server.log")).unwrap())
            .spawn()
            .unwrap();
        let mut secured = Self { directory, port, process };
        secured.ready(&programs).await;
        Some(secured)
    }

    async fn ready(&mut self, programs: &Path) {
        let wait = async {
            loop {
                let port = self.port.to_string();
                let mut asked = Command::new(programs.join("pg_isready"));
                if asked.args(["-q", "-h", "127.0.0.1", "-p", &port]).status().unwrap().success() {
                    return;
                }
                assert!(self.process.try_wait().unwrap().is_none(), "it ended: {}", self.log());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.expect("it starts within the limit");
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("server.log")).unwrap()
    }

    /// As a gateway opens it that is configured like this.
    async fn open(&self, host: &str, tls: &str, password: &str) -> Result<Arc<dyn Store>, StoreError> {
        let tls = tls.replace("DIR", self.directory.path().to_str().unwrap());
        let url = format!("postgres://ada@{host}:{}/postgres?{tls}", self.port);
        let home = tempfile::tempdir().unwrap();
        let config = Config::defaults_in(home.path(), &[("store.url", &*url), ("store.password", password)]);
        open_store(&config.expect("a good configuration"), factory()).await
    }

    /// Why the store does not open; credentials are not shown.
    async fn refusal(&self, host: &str, tls: &str, password: &str) -> String {
        match self.open(host, tls, password).await {
            Err(StoreError::Unavailable(why)) if !why.contains(password) => why,
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("{host} {tls} lets it in"),
        }
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        // Its fast shutdown, which takes the other processes along.
        kill(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGINT).ok();
        self.process.wait().ok();
    }
}

const VERIFIED: &str = "sslmode=verify-full&sslrootcert=DIR/ca.pem";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_verified_server_and_the_right_password_will_do() {
    let Some(secured) = Secured::start().await else { return };
    let store = secured.open("localhost", VERIFIED, PASSWORD).await.expect("it opens");
    store.enroll("one", LEASE).await.unwrap();
    let outcomes = store.commit(Arc::new(vec![submit(&job("ada"))])).await.unwrap();
    assert!(matches!(&outcomes[..], [Outcome::Committed { .. }]), "{outcomes:?}");
    let jobs = store.jobs(&JobFilter::default(), Page { before: None, limit: 10 }).await.unwrap();
    assert_eq!(jobs.len(), 1);
    store.close().await;

    let why = secured.refusal("localhost", VERIFIED, "s3cret but wrong").await;
    assert!(why.contains("password authentication failed for user \"ada\""), "{why}");
    let foreign = "sslmode=verify-full&sslrootcert=DIR/stranger.pem";
    let why = secured.refusal("localhost", foreign, PASSWORD).await;
    assert!(why.contains("certificate") && why.contains("UnknownIssuer"), "{why}");
    // The certificate is for another name.
    let why = secured.refusal("127.0.0.1", VERIFIED, PASSWORD).await;
    assert!(why.contains("certificate"), "{why}");
    let why = secured.refusal("localhost", "sslmode=disable", PASSWORD).await;
    assert!(why.contains("no encryption"), "{why}");
}
