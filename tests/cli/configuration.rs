use serde_json::json;

use crate::program::Program;

#[test]
fn a_fresh_directory_needs_no_configuration() {
    let ended = Program::new().run(&["config", "check"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stdout.contains("127.0.0.1:8080 in development mode"), "{}", ended.stdout);
}

#[test]
fn serve_reports_everything_wrong_at_once_and_exits_with_64() {
    let program = Program::new();
    program
        .file("config/10-site.toml", "[http]\nlisten = \"0.0.0.0:8080\"\nbody_limit = \"much\"\n[nonsense]\nkey = 1\n");
    let environment = [("GATEWAY__LIVE__MAX_ROOMS", "-3"), ("GATEWAY__LOG__LEVEL", "inof,event_gateway=debug")];
    let ended = program.run_with(&["serve", "--set", "retention.keep=1s"], &environment);
    assert_eq!(ended.code, 64, "{}", ended.stderr);
    for problem in [
        "http.listen = \"0.0.0.0:8080\" (from config/10-site.toml): without auth.jwt_secret or auth.jwks_url",
        "http.body_limit = \"much\" (from config/10-site.toml)",
        "nonsense.key (from config/10-site.toml): there is no such setting",
        "live.max_rooms = \"-3\" (from GATEWAY__LIVE__MAX_ROOMS)",
        "log.level = \"inof,event_gateway=debug\" (from GATEWAY__LOG__LEVEL): 'inof' is no level",
        "retention.keep = \"1s\" (from --set): must be between",
    ] {
        assert!(ended.stderr.contains(problem), "{problem} is missing in\n{}", ended.stderr);
    }
    assert!(!program.dir().join("data").exists(), "it left something behind");
}

#[test]
fn problems_are_json_for_programs() {
    let ended = Program::new().run(&["config", "check", "--output", "json", "--set", "live.max_rooms=0"]);
    assert_eq!(ended.code, 64);
    let problem = &ended.json()["problems"][0];
    assert_eq!(problem["field"], json!("live.max_rooms"));
    assert_eq!(problem["origin"], json!("--set"));
}

#[test]
fn show_masks_secrets_and_names_sources() {
    let program = Program::new();
    let secret = "a secret that must not be shown, ever";
    let path = program.file("jwt", secret);
    let environment = [("GATEWAY__AUTH__JWT_SECRET_FILE", path.to_str().unwrap())];
    let ended =
        program.run_with(&["config", "show", "--output", "json", "--set", "http.listen=127.0.0.1:9"], &environment);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(!ended.stdout.contains(secret));
    let shown = ended.json();
    let setting = |key: &str| {
        let settings = shown["settings"].as_array().unwrap().clone();
        settings.into_iter().find(|setting| setting["key"] == json!(key)).unwrap()
    };
    assert_eq!(setting("auth.jwt_secret")["value"], json!("***"));
    assert_eq!(setting("http.listen"), json!({"key": "http.listen", "value": "127.0.0.1:9", "source": "--set"}));
    assert_eq!(setting("live.max_rooms")["source"], json!("default"));
}

#[test]
fn the_example_is_the_committed_one() {
    let ended = Program::new().run(&["config", "example"]);
    assert_eq!(ended.stdout, include_str!("../../.env.example"));
}

#[test]
fn wrong_usage_exits_with_2_and_a_gateway_that_is_away_with_69() {
    let program = Program::new();
    assert_eq!(program.run(&["jobs", "submit", "--no-such-flag"]).code, 2);
    assert_eq!(program.run(&["jobs", "submit", "--agent", "a", "--dataset", "d", "--params", "[]"]).code, 2);
    let away = program.run(&["jobs", "list", "--url", "http://127.0.0.1:1"]);
    assert_eq!(away.code, 69, "{}", away.stderr);
    assert!(away.stderr.contains("http://127.0.0.1:1/ cannot be reached"), "{}", away.stderr);
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let ended = Program::new().run(&["completions", shell]);
        assert_eq!(ended.code, 0);
        assert!(ended.stdout.contains("ledger"), "{shell}");
    }
}
