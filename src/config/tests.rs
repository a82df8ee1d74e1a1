use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::domain::job::RunnerKind;

fn environment(variables: &[(&str, &str)]) -> HashMap<String, String> {
    variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn from_environment(variables: &[(&str, &str)]) -> Result<Loaded, Problems> {
    Config::load(&Sources { environment: environment(variables), ..Sources::default() })
}

fn problems(result: Result<Loaded, Problems>) -> Vec<Problem> {
    result.map(|loaded| panic!("accepted: {:?}", loaded.config)).unwrap_or_else(|problems| problems.0)
}

fn fields(problems: &[Problem]) -> Vec<&str> {
    problems.iter().map(|problem| problem.field.as_str()).collect()
}

fn with_file(toml: &str, then: impl FnOnce(&Path) -> Result<Loaded, Problems>) -> Result<Loaded, Problems> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gateway.toml");
    fs::write(&path, toml).unwrap();
    then(&path)
}

fn from_file(toml: &str) -> Result<Loaded, Problems> {
    with_file(toml, |path| Config::load(&Sources { files: Files::At(path.to_owned()), ..Sources::default() }))
}

#[test]
fn the_defaults_are_a_working_configuration() {
    let config = from_environment(&[]).unwrap().config;
    assert_eq!(config.http.listen, "127.0.0.1:8080".parse().unwrap());
    assert_eq!(config.store.url, StoreUrl::Sqlite(PathBuf::from("./data/gateway.db")));
    assert_eq!(config.runner.datasets_dir, PathBuf::from("./data/datasets"));
    assert_eq!(config.idempotency.keep, Duration::from_secs(24 * 3600));
    assert_eq!(config.intake.max_bytes, ByteSize::mib(64));
    assert!(config.is_development());
    assert!(config.auth.audience.is_empty());
}

#[test]
fn each_layer_wins_over_the_one_below() {
    let loaded = with_file("[live]\nmax_rooms = 7\nqueue_len = 70\nping_interval = \"7s\"\n", |path| {
        Config::load(&Sources {
            files: Files::At(path.to_owned()),
            environment: environment(&[("GATEWAY__LIVE__QUEUE_LEN", "80"), ("GATEWAY__LIVE__PING_INTERVAL", "8s")]),
            set: vec!["live.ping_interval=9s".to_owned()],
        })
    })
    .unwrap();
    assert_eq!(loaded.config.live.max_connections_per_user, 5);
    assert_eq!(loaded.config.live.max_rooms, 7);
    assert_eq!(loaded.config.live.queue_len, 80);
    assert_eq!(loaded.config.live.ping_interval, Duration::from_secs(9));
    let source = |key| loaded.show().into_iter().find(|shown| shown.key == key).unwrap().source;
    assert_eq!(source("live.max_connections_per_user"), "default");
    assert!(source("live.max_rooms").ends_with("gateway.toml"));
    assert_eq!(source("live.queue_len"), "GATEWAY__LIVE__QUEUE_LEN");
    assert_eq!(source("live.ping_interval"), "--set");
}

#[test]
fn files_of_a_directory_apply_in_the_order_of_their_names() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("20-site.toml"), "[live]\nmax_rooms = 20\n").unwrap();
    fs::write(dir.path().join("10-base.toml"), "[live]\nmax_rooms = 10\nqueue_len = 100\n").unwrap();
    fs::write(dir.path().join("notes.txt"), "not configuration").unwrap();
    let sources = Sources { files: Files::At(dir.path().to_owned()), ..Sources::default() };
    let config = Config::load(&sources).unwrap().config;
    assert_eq!((config.live.max_rooms, config.live.queue_len), (20, 100));
}

#[test]
fn everything_that_is_wrong_is_reported_at_once() {
    let result = with_file("[http]\nlisten = \"somewhere\"\n[htpp]\nlisten = 1\n", |path| {
        Config::load(&Sources {
            files: Files::At(path.to_owned()),
            environment: environment(&[
                ("GATEWAY__IDEMPOTENCY__KEEP", "30"),
                ("GATEWAY__LIVE__MAX_ROOMS", "0"),
                ("GATEWAY__LOG__FORMAT", "xml"),
                ("GATEWAY__NO__SUCH", "x"),
                ("GATEWAY_URL", "not a setting"),
            ]),
            set: vec!["shutdown.limit=1y".to_owned(), "nonsense".to_owned()],
        })
    });
    let problems = problems(result);
    let mut fields = fields(&problems);
    fields.sort_unstable();
    assert_eq!(
        fields,
        [
            "--set",
            "htpp.listen",
            "http.listen",
            "idempotency.keep",
            "live.max_rooms",
            "log.format",
            "no.such",
            "shutdown.limit"
        ]
    );
    let text = Problems(problems).to_string();
    assert!(text.contains("htpp.listen"), "{text}");
    assert!(text.contains("did you mean http.listen?"), "{text}");
    assert!(text.contains("idempotency.keep = \"30\" (from GATEWAY__IDEMPOTENCY__KEEP): "), "{text}");
    assert!(text.contains("between 1 and 10000"), "{text}");
}

#[test]
fn a_broken_file_is_named_and_does_not_hide_other_problems() {
    let result = with_file("[http\n", |path| {
        Config::load(&Sources {
            files: Files::At(path.to_owned()),
            environment: environment(&[("GATEWAY__LIVE__MAX_ROOMS", "many")]),
            ..Sources::default()
        })
    });
    let problems = problems(result);
    assert_eq!(problems.len(), 2);
    assert!(problems[0].field.ends_with("gateway.toml"), "{problems:?}");
    assert!(problems[0].reason.contains("line 1"), "{problems:?}");
    assert_eq!(problems[1].field, "live.max_rooms");
}

#[test]
fn a_missing_configuration_path_is_an_error() {
    let sources = Sources { files: Files::At("does/not/exist".into()), ..Sources::default() };
    assert_eq!(fields(&problems(Config::load(&sources))), ["--config"]);
}

#[test]
fn lists_are_arrays_in_files_and_have_commas_in_the_environment() {
    let expected = ["https://a.example", "http://b.example:8443"];
    let file = from_file("[live]\nallowed_origins = [\"https://a.example\", \"http://b.example:8443\"]\n").unwrap();
    assert_eq!(file.config.live.allowed_origins, expected);
    let variable = ("GATEWAY__LIVE__ALLOWED_ORIGINS", "https://a.example, http://b.example:8443");
    assert_eq!(from_environment(&[variable]).unwrap().config.live.allowed_origins, expected);
    let wrong = from_environment(&[("GATEWAY__LIVE__ALLOWED_ORIGINS", "https://a.example/path")]);
    assert_eq!(fields(&problems(wrong)), ["live.allowed_origins"]);
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let config = from_environment(&[("GATEWAY__HTTP__LISTEN", ""), ("GATEWAY__AUTH__JWT_SECRET", "")]).unwrap().config;
    assert_eq!(config.http.listen.port(), 8080);
    assert!(config.is_development());
}

#[test]
fn development_mode_is_refused_off_loopback() {
    let open = ("GATEWAY__HTTP__LISTEN", "0.0.0.0:8080");
    assert_eq!(fields(&problems(from_environment(&[open]))), ["http.listen"]);
    let secret = ("GATEWAY__AUTH__JWT_SECRET", "0123456789abcdef0123456789abcdef");
    assert!(!from_environment(&[open, secret]).unwrap().config.is_development());
    let jwks = ("GATEWAY__AUTH__JWKS_URL", "https://login.example.org/keys");
    assert!(!from_environment(&[open, jwks]).unwrap().config.is_development());
    let short = ("GATEWAY__AUTH__JWT_SECRET", "guess me");
    let problems = problems(from_environment(&[open, short]));
    assert_eq!(fields(&problems), ["auth.jwt_secret"]);
    assert!(!Problems(problems).to_string().contains("guess me"));
    from_environment(&[short]).unwrap();
}

#[test]
fn a_secret_may_be_in_a_file_and_is_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    fs::write(&path, "from the file\n").unwrap();
    let path = path.to_str().unwrap();
    let loaded = from_environment(&[("GATEWAY__AUTH__JWT_SECRET_FILE", path)]).unwrap();
    assert_eq!(loaded.config.auth.jwt_secret.as_ref().unwrap().expose(), "from the file");
    assert!(!format!("{:?} {:?}", loaded, loaded.show()).contains("from the file"));
    let shown = loaded.show().into_iter().find(|shown| shown.key == "auth.jwt_secret").unwrap();
    assert_eq!(shown.value, "***");

    let both =
        from_environment(&[("GATEWAY__AUTH__JWT_SECRET_FILE", path), ("GATEWAY__AUTH__JWT_SECRET", "given directly")]);
    let both = problems(both);
    assert_eq!(fields(&both), ["auth.jwt_secret_file"]);
    assert!(!Problems(both).to_string().contains("given directly"));
    let missing = from_environment(&[("GATEWAY__AUTH__JWT_SECRET_FILE", "/does/not/exist")]);
    assert_eq!(fields(&problems(missing)), ["auth.jwt_secret_file"]);
    let not_a_secret = from_environment(&[("GATEWAY__HTTP__LISTEN_FILE", path)]);
    assert_eq!(fields(&problems(not_a_secret)), ["http.listen_file"]);
}

#[test]
fn a_broker_may_have_a_mode_of_its_own() {
    let loaded = from_environment(&[("GATEWAY__BROKERS__MODE", "external"), ("GATEWAY__NATS__MODE", "embedded")]);
    let config = loaded.unwrap().config;
    let modes = Broker::ALL.map(|broker| config.broker_mode(broker));
    assert_eq!(modes, [BrokerMode::External, BrokerMode::External, BrokerMode::Embedded]);
    let problems = problems(from_environment(&[("GATEWAY__KAFKA__MODE", "elsewhere")]));
    assert_eq!(fields(&problems), ["kafka.mode"]);
}

#[test]
fn agents_are_added_to_the_built_in_ones_and_replace_by_name() {
    let toml = r#"
        [[runner.agents]]
        name = "Sleeper"
        runner = "process"
        description = "Sleeps."
        command = ["{self}", "sleep"]
        datasets = "alpha-cal"
        cost_per_gpu_hour_usd = 1.5
        params_schema = { type = "object", properties = { maxItems = { type = "integer", "x-order" = 0 } } }

        [[runner.agents]]
        name = "external"
        runner = "external"
        claim = "jetstream"
    "#;
    let agents = from_file(toml).unwrap().config.agents();
    let sleeper = agents.iter().find(|agent| agent.name == "Sleeper").unwrap();
    assert_eq!(sleeper.runner, RunnerKind::Process);
    assert_eq!(sleeper.argv(Path::new("/bin/gateway")), ["/bin/gateway", "sleep"]);
    assert_eq!(sleeper.cost_per_gpu_hour_usd, Some(1.5));
    assert_eq!(
        sleeper.params_schema,
        serde_json::json!({"type": "object", "properties": {"maxItems": {"type": "integer", "x-order": 0}}})
    );
    let external: Vec<_> = agents.iter().filter(|agent| agent.name == "external").collect();
    assert_eq!(external.len(), 1);
    assert_eq!(external[0].claim, Claim::Jetstream);
    assert!(!external[0].any_dataset);

    let alone = r#"[{"name": "mine", "runner": "external", "any_dataset": true}]"#;
    let variables = [("GATEWAY__RUNNER__AGENTS", alone), ("GATEWAY__RUNNER__BUILTIN_AGENTS", "false")];
    let agents = from_environment(&variables).unwrap().config.agents();
    assert_eq!(agents.iter().map(|agent| agent.name.as_str()).collect::<Vec<_>>(), ["mine"]);
}

#[test]
fn every_mistake_in_every_agent_is_named() {
    let toml = r#"
        [[runner.agents]]
        name = "no command"
        runner = "process"
        datasets = "../../etc"
        [[runner.agents]]
        name = "b"
        runner = "tapis"
        [[runner.agents]]
        name = "c"
        runner = "external"
        comand = ["typo"]
        [[runner.agents]]
        name = "b"
        runner = "external"
        params_schema = { type = "no-such-type" }
    "#;
    let problems = problems(from_file(toml));
    assert_eq!(fields(&problems), ["runner.agents"]);
    for part in [
        "agent no command: name must be",
        "agent no command: a process needs command",
        "agent no command: datasets must be",
        "agent b: runner 'tapis': this version has no Tapis runner",
        "agent number 3",
        "comand",
        "agent b: there are two",
        "agent b: params_schema",
    ] {
        assert!(problems[0].reason.contains(part), "{part} is missing in {}", problems[0].reason);
    }
}

#[test]
fn defaults_in_a_directory_ignore_the_machine() {
    let config = Config::defaults_in(Path::new("/nowhere/gw"), &[("live.max_rooms", "3")]).unwrap();
    assert_eq!(config.http.listen.port(), 0);
    assert_eq!(config.runner.work_dir, PathBuf::from("/nowhere/gw/runs"));
    assert_eq!(config.live.max_rooms, 3);
}

#[test]
fn every_setting_is_documented_and_its_default_is_valid() {
    let settings = settings();
    for setting in &settings {
        assert!(setting.doc.trim().len() > 10, "{} has no documentation", setting.key);
        if !setting.default.is_empty() {
            from_environment(&[(&setting.env_name(), setting.default)])
                .unwrap_or_else(|problems| panic!("{}: {problems}", setting.key));
        }
    }
    let mut keys: Vec<_> = settings.iter().map(|setting| setting.key).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), settings.len());
}

/// Regenerate with `UPDATE_ENV_EXAMPLE=1 cargo test --lib env_example`.
#[test]
fn env_example_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".env.example");
    if std::env::var_os("UPDATE_ENV_EXAMPLE").is_some() {
        fs::write(&path, example()).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == example(), ".env.example is stale: event-gateway config example > .env.example");
}
