//! Starts and ends a real gateway, and looks into what it left on disk.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use event_gateway::auth::Authenticator;
use event_gateway::config::Config;
use event_gateway::config::setting::env_name;
use event_gateway::domain::Role;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::Method;
use serde_json::Value;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Row};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::home::Home;

pub const SECRET: &str = "a secret of the tests, long enough for HS256";

/// Nothing that these tests wait for takes longer.
const LIMIT: Duration = Duration::from_secs(60);

/// How a gateway is started, where it differs from the usual.
#[derive(Default)]
pub struct Setup<'a> {
    /// Arguments; `serve` unless there are any.
    pub arguments: Option<&'a [&'a str]>,
    /// More environment variables.
    pub environment: &'a [(&'a str, &'a str)],
}

/// A gateway in a process of its own.
pub struct Gateway {
    child: Child,
    pub url: String,
}

impl Gateway {
    /// Starts it on a free port and waits until it is ready.
    pub async fn start(home: &Home) -> Self {
        Self::start_as(home, Setup::default()).await
    }

    pub async fn start_as(home: &Home, setup: Setup<'_>) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_event-gateway"))
            .args(setup.arguments.unwrap_or(&["serve"]))
            .current_dir(home.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("GATEWAY__HTTP__LISTEN", "127.0.0.1:0")
            // These users are as fast as they can.
            .env("GATEWAY__HTTP__RATE_LIMIT", "0")
            .env("GATEWAY__DATA__DIR", home.path())
            .env("GATEWAY__AUTH__JWT_SECRET", SECRET)
            .env("GATEWAY__LOG__FORMAT", "json")
            // Some count every event.
            .env("GATEWAY__HEALTH__INTERVAL", "0s")
            .envs(home.settings().into_iter().map(|(key, value)| (env_name(key), value)))
            .envs(setup.environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let address = tokio::time::timeout(LIMIT, async {
            let mut said = Vec::new();
            loop {
                let Some(line) = lines.next_line().await.expect("stderr is text") else {
                    panic!("it ended before it listened:\n{}", said.join("\n"));
                };
                if let Some(at) = line.find("listening on http://") {
                    let rest = &line[at + "listening on ".len()..];
                    return rest.split(['"', ' ']).next().unwrap_or_default().to_owned();
                }
                said.push(line);
            }
        })
        .await
        .expect("it listens within the limit");
        // Keep reading, so that it never blocks on a full pipe.
        #[expect(clippy::disallowed_methods, reason = "ends with the child's stderr")]
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                tell(&line);
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
        tokio::time::timeout(LIMIT, wait).await.expect("it is ready within the limit");
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().expect("it runs") as i32)
    }

    /// SIGKILL, now.
    pub async fn kill(mut self) {
        kill(self.pid(), Signal::SIGKILL).expect("it runs");
        self.child.wait().await.expect("it ends");
    }

    /// SIGTERM, without waiting for what it does.
    pub fn terminate(&self) {
        kill(self.pid(), Signal::SIGTERM).expect("it runs");
    }

    /// How it ends.
    pub async fn ended(mut self) -> ExitStatus {
        let status = tokio::time::timeout(LIMIT, self.child.wait()).await;
        status.expect("it ends within the limit").expect("it can be waited for")
    }

    /// SIGTERM; returns whether it ended with exit code 0 within the limit.
    pub async fn stop(self) -> bool {
        self.terminate();
        self.ended().await.success()
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// A JSON call as the bearer of `token`: status and body.
    pub async fn call(&self, method: Method, path: &str, token: &str, body: Option<&Value>) -> (u16, Value) {
        let call = reqwest::Client::new().request(method, format!("{}{path}", self.url)).timeout(LIMIT);
        let call = call.bearer_auth(token);
        let call = if let Some(body) = body { call.json(body) } else { call };
        let response = call.send().await.expect("an answer");
        (response.status().as_u16(), response.json().await.expect("JSON"))
    }
}

/// Errors are worth seeing beside a test that fails.
fn tell(line: &str) {
    if line.contains("\"ERROR\"") || line.contains("panicked") {
        eprintln!("{line}");
    }
}

/// Waits until `done` says so.
pub async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

/// A token as the gateways of these tests accept it.
pub fn token(user: &str, role: Role) -> String {
    let dir = tempfile::tempdir().expect("a directory");
    let config = Config::defaults_in(dir.path(), &[("auth.jwt_secret", SECRET)]).expect("a good configuration");
    let authenticator = Authenticator::new(&config.auth, dir.path()).expect("a secret");
    authenticator.issue_token(user, &[role], Duration::from_secs(3600)).expect("a token")
}

/// One of the files of a gateway, running or not.
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
