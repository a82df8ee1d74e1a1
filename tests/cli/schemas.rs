use std::path::Path;

use event_gateway::config::Config;
use event_gateway::domain::Id;
use event_gateway::schema_registry::SchemaRegistry;
use serde_json::json;

use crate::environment::variable;
use crate::program::Program;

/// The built-in schemas, as the last release had them.
fn release(program: &Program, directory: &str, change: impl Fn(&str, String) -> Option<String>) {
    let schemas = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    for entry in std::fs::read_dir(schemas).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.ends_with(".avsc")
            && let Some(text) = change(name, std::fs::read_to_string(&path).unwrap())
        {
            program.file(&format!("{directory}/{name}"), &text);
        }
    }
}

#[test]
fn what_was_released_as_it_is_may_be_released_again() {
    let program = Program::new();
    release(&program, "released", |_, text| Some(text));
    let ended = program.run(&["schema", "check", "--against", "released", "--output", "json"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let report = ended.json();
    assert_eq!(report["ok"], json!(true));
    let schemas = report["schemas"].as_array().unwrap();
    assert!(schemas.len() > 15 && schemas.iter().all(|schema| schema["status"] == json!("unchanged")), "{report}");
}

#[test]
fn what_old_readers_could_not_read_fails_with_1_and_names_the_field() {
    let program = Program::new();
    // Released with a required field that the catalogue does not have, in an older release only.
    release(&program, "released/1", |name, text| {
        let more = r#"{"name": "reason", "type": "string"}, {"name": "desk", "type": "string"}"#;
        (name == "job.cancelled.avsc").then(|| text.replace(r#"{"name": "reason", "type": "string"}"#, more))
    });
    release(&program, "released/2", |name, text| (name != "job.failed.avsc").then_some(text));
    let ended = program.run(&["schema", "check", "--against", "released"]);
    assert_eq!(ended.code, 1, "{}", ended.stdout);
    let line = |record: &str| ended.stdout.lines().find(|line| line.contains(record)).unwrap_or_default().to_owned();
    assert!(line("JobCancelled").contains("INCOMPATIBLE"), "{}", ended.stdout);
    assert!(line("JobFailed").contains("new"), "{}", ended.stdout);
    assert!(ended.stdout.contains("released/1/job.cancelled.avsc") && ended.stdout.contains("'desk'"));
    assert!(ended.stderr.contains("may not be released"), "{}", ended.stderr);
}

#[test]
fn a_released_type_may_not_disappear() {
    let program = Program::new();
    release(&program, "released", |_, text| Some(text));
    program.file("released/gone.avsc", r#"{"type": "record", "name": "Gone", "namespace": "x", "fields": []}"#);
    let ended = program.run(&["schema", "check", "--against", "released"]);
    assert_eq!(ended.code, 1);
    assert!(ended.stdout.contains("x.Gone") && ended.stdout.contains("REMOVED"), "{}", ended.stdout);
}

#[test]
fn a_registry_that_does_not_answer_is_69_and_an_empty_directory_wrong_usage() {
    let program = Program::new();
    // Nothing listens on a port that was just given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("kafka.schema_registry_url=http://127.0.0.1:{port}");
    let ended = program.run(&["schema", "check", "--set", &url]);
    assert_eq!(ended.code, 69, "{}", ended.stderr);
    assert!(ended.stderr.contains("does not answer"), "{}", ended.stderr);

    std::fs::create_dir(program.dir().join("empty")).unwrap();
    let ended = program.run(&["schema", "check", "--against", "empty"]);
    assert_eq!(ended.code, 2, "{}", ended.stderr);
}

/// The registry that the tests of the brokers use, with subjects of its own.
#[tokio::test]
async fn a_registry_is_asked_for_every_version() {
    let Some(url) = variable("EVENT_GATEWAY_TEST_REGISTRY") else { return };
    let program = Program::new();
    let prefix = format!("cli-{}-", Id::new());
    let set = [&*format!("kafka.schema_registry_url={url}"), &*format!("kafka.topic_prefix={prefix}")];
    let check = || program.run(&["schema", "check", "--output", "json", "--set", set[0], "--set", set[1]]);
    let status = |report: &serde_json::Value, record: &str| {
        let mut schemas = report["schemas"].as_array().unwrap().iter();
        schemas.find(|schema| schema["schema"].as_str().unwrap().ends_with(record)).unwrap()["status"].clone()
    };
    let ended = check();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(status(&ended.json(), "JobCancelled"), json!("new"));

    let config = Config::defaults_in(program.dir(), &[("kafka.schema_registry_url", &url)]).unwrap();
    let registry = SchemaRegistry::new(&config.registry).unwrap();
    let schemas = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    let ours = std::fs::read_to_string(schemas.join("job.cancelled.avsc")).unwrap();
    let subject = format!("{prefix}job-lifecycle-com.cosmic_horizons.events.JobCancelled");
    registry.register(&subject, &ours).await.unwrap();
    assert_eq!(status(&check().json(), "JobCancelled"), json!("unchanged"));

    let needs_more = r#"{"name": "reason", "type": "string"}, {"name": "desk", "type": "string"}"#;
    let released = ours.replace(r#"{"name": "reason", "type": "string"}"#, needs_more);
    registry.register(&subject, &released).await.unwrap();
    let ended = check();
    assert_eq!(ended.code, 1);
    assert_eq!(status(&ended.json(), "JobCancelled"), json!("incompatible"));
    assert!(ended.stdout.contains("version 2") && ended.stdout.contains("'desk'"), "{}", ended.stdout);
}
