//! Commands that look into the store of a gateway, or delete from it, beside that gateway:
//! they leave the schema of another version as it is.

use serde_json::json;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgConnection, Row, SqliteConnection};

use crate::program::Program;
use crate::runtime::runtime;
use crate::server::Schema;

const COMMANDS: [&[&str]; 3] = [&["reconcile"], &["prune", "--dry-run"], &["prune"]];
const NEWEST: &str = "SELECT max(version) FROM _sqlx_migrations";

/// A row of the audit trail, two days old: number, and how the store writes id and time.
const AUDITED: &str = "INSERT INTO audit_log (number, audit_id, audit_type, actor_user_id, target_resource_type, \
                       target_resource_id, at, details) VALUES ({number}, {id}, 'a', 'ada', 'job', 'j', {at}, '{}')";

fn audited(number: u32, id: &str, at: &str) -> AssertSqlSafe<String> {
    AssertSqlSafe(AUDITED.replace("{number}", &number.to_string()).replace("{id}", id).replace("{at}", at))
}

/// Of three old rows of the audit trail all but the newest go, when it is their time.
fn are_pruned_by_their_age(program: &Program, settings: &[&str]) {
    let prune = |more: &[&str]| {
        let ended = program.run(&[&["prune", "--output", "json"], more, settings].concat());
        assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
        ended.json()
    };
    let (short, long) = (["--set", "retention.keep=1h"], ["--set", "retention.audit=720h"]);
    assert_eq!(prune(&[])["rows"], json!({}), "nothing is that old");
    assert_eq!(prune(&[&short[..], &long].concat())["rows"], json!({}), "the audit trail has an age of its own");
    for _ in 0..2 {
        let counted = prune(&[&["--dry-run"], &short[..]].concat());
        assert_eq!(counted, json!({ "dry_run": true, "rows": { "audit": 2 } }));
    }
    assert_eq!(prune(&[&["--kind", "events"], &short[..]].concat())["rows"], json!({}));
    assert_eq!(prune(&short)["rows"], json!({ "audit": 2 }));
    assert_eq!(prune(&short)["rows"], json!({}));
}

/// The setting that names it.
fn url(schema: &Schema) -> String {
    let mut url = schema.options().to_url_lossy();
    url.query_pairs_mut().append_pair("options", &format!("-c search_path={}", schema.name));
    format!("store.url={url}")
}

/// Each command says what is wrong and what to do.
fn are_refused(program: &Program, settings: &[&str]) {
    for command in COMMANDS {
        let ended = program.run(&[command, settings].concat());
        assert_eq!(ended.code, 1, "{command:?}: {}{}", ended.stdout, ended.stderr);
        for part in ["is at version 1, this program needs 2", "start a gateway of this version"] {
            assert!(ended.stderr.contains(part), "{command:?}: {}", ended.stderr);
        }
    }
}

#[test]
fn commands_do_not_migrate_a_file() {
    let program = Program::new();
    let file = program.file("data/gateway.db", "");
    let runtime = runtime();
    let mut session: SqliteConnection = runtime.block_on(SqliteConnectOptions::new().filename(file).connect()).unwrap();
    runtime.block_on(sqlx::migrate!("migrations/sqlite").run_to(1, &mut session)).unwrap();
    are_refused(&program, &[]);
    assert_eq!(runtime.block_on(session.fetch_one(NEWEST)).unwrap().get::<i64, _>(0), 1);
}

#[test]
fn commands_do_not_migrate_a_shared_store() {
    let runtime = runtime();
    let Some(schema) = runtime.block_on(Schema::create()) else { return };
    let mut session: PgConnection = runtime.block_on(schema.session());
    runtime.block_on(sqlx::migrate!("migrations/postgres").run_to(1, &mut session)).unwrap();
    are_refused(&Program::new(), &["--set", &url(&schema)]);
    assert_eq!(runtime.block_on(session.fetch_one(NEWEST)).unwrap().get::<i64, _>(0), 1);
}

#[test]
fn rows_of_a_file_go_by_the_age_of_their_kind() {
    let program = Program::new();
    let file = program.file("data/gateway.db", "");
    let runtime = runtime();
    let mut session: SqliteConnection = runtime.block_on(SqliteConnectOptions::new().filename(file).connect()).unwrap();
    runtime.block_on(sqlx::migrate!("migrations/sqlite").run(&mut session)).unwrap();
    for number in 1..=3 {
        let row = audited(number, "randomblob(16)", "(unixepoch() - 172800) * 1000");
        runtime.block_on(session.execute(row)).unwrap();
    }
    are_pruned_by_their_age(&program, &[]);
}

#[test]
fn rows_of_a_shared_store_go_by_the_age_of_their_kind() {
    let runtime = runtime();
    let Some(schema) = runtime.block_on(Schema::create()) else { return };
    let mut session: PgConnection = runtime.block_on(schema.session());
    runtime.block_on(sqlx::migrate!("migrations/postgres").run(&mut session)).unwrap();
    for number in 1..=3 {
        let row = audited(number, "gen_random_uuid()", "now() - interval '2 days'");
        runtime.block_on(session.execute(row)).unwrap();
    }
    are_pruned_by_their_age(&Program::new(), &["--set", &url(&schema)]);
}
