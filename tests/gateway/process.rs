//! Starts and ends a real gateway, and looks into what it left on disk.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use event_gateway::auth::Authenticator;
use event_gateway::config::Config;
use event_gateway::domain::Role;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Row};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

pub const SECRET: &str = "a secret of the tests, long enough for HS256";

/// A gateway in a process of its own.
pub struct Gateway {
    child: Child,
    pub url: String,
}

impl Gateway {
    /// Starts it on a free port and waits until it is ready.
    pub async fn start(data_dir: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_event-gateway"))
            .arg("serve")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("GATEWAY__HTTP__LISTEN", "127.0.0.1:0")
            .env("GATEWAY__DATA__DIR", data_dir)
            .env("GATEWAY__AUTH__JWT_SECRET", SECRET)
            .env("GATEWAY__LOG__FORMAT", "json")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let address = tokio::time::timeout(Duration::from_secs(30), async {
            loop {
                let line = lines.next_line().await.expect("stderr is text").expect("it lives until it listens");
                if let Some(at) = line.find("listening on http://") {
                    let rest = &line[at + "listening on ".len()..];
                    return rest.split(['"', ' ']).next().unwrap_or_default().to_owned();
                }
                if line.contains("\"ERROR\"") {
                    eprintln!("{line}");
                }
            }
        })
        .await
        .expect("it listens within 30 s");
        // Keep reading, so that it never blocks on a full pipe; errors are worth seeing.
        #[expect(clippy::disallowed_methods, reason = "ends with the child's stderr")]
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains("\"ERROR\"") || line.contains("panicked") {
                    eprintln!("{line}");
                }
            }
        });
        let gateway = Self { child, url: address };
        gateway.ready().await;
        gateway
    }

    async fn ready(&self) {
        let client = reqwest::Client::new();
        let url = format!("{}/readyz", self.url);
        let wait = async {
            loop {
                if client.get(&url).send().await.is_ok_and(|response| response.status().is_success()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.expect("it is ready within 30 s");
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().expect("it runs") as i32)
    }

    /// SIGKILL, now.
    pub async fn kill(mut self) {
        kill(self.pid(), Signal::SIGKILL).expect("it runs");
        self.child.wait().await.expect("it ends");
    }

    /// SIGTERM; returns whether it ended with exit code 0 within the limit.
    pub async fn stop(mut self) -> bool {
        kill(self.pid(), Signal::SIGTERM).expect("it runs");
        let status = tokio::time::timeout(Duration::from_secs(30), self.child.wait()).await;
        status.expect("it ends within 30 s").expect("it ends").success()
    }
}

/// A token as the gateways of these tests accept it.
pub fn token(user: &str, role: Role) -> String {
    let dir = tempfile::tempdir().expect("a directory");
    let config = Config::defaults_in(dir.path(), &[("auth.jwt_secret", SECRET)]).expect("a good configuration");
    let authenticator = Authenticator::new(&config.auth, dir.path()).expect("a secret");
    authenticator.issue_token(user, &[role], Duration::from_secs(3600)).expect("a token")
}

/// One of the files of a gateway that does not run.
pub async fn open(data_dir: &Path, file: &str) -> SqliteConnection {
    SqliteConnectOptions::new()
        .filename(data_dir.join(file))
        .disable_statement_logging()
        .connect()
        .await
        .expect("a database")
}

/// One number.
pub async fn count(connection: &mut SqliteConnection, sql: &'static str) -> i64 {
    sqlx::query(sql).fetch_one(connection).await.expect(sql).get(0)
}
