//! `config check | show | example`.

use clap::Subcommand;
use serde_json::json;

use super::Global;
use super::exit::Outcome;
use super::output::{Format, print, print_json, table};

#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Report everything wrong with the configuration; exit code 64 if there is anything.
    Check,
    /// Print every setting in effect and where it comes from. Secrets are masked.
    Show,
    /// Print .env.example: every setting with its meaning and default.
    Example,
}

pub fn run(command: &ConfigCommand, global: &Global) -> Outcome {
    match command {
        ConfigCommand::Example => print(&crate::config::example()),
        ConfigCommand::Check => check(global),
        ConfigCommand::Show => {
            let shown = global.load()?.show();
            match global.output {
                Format::Json => print_json(&json!({ "settings": shown })),
                Format::Text => {
                    let row = |s: crate::config::Shown| vec![s.key.to_owned(), s.value, s.source];
                    print(&table(&["SETTING", "VALUE", "FROM"], &shown.into_iter().map(row).collect::<Vec<_>>()))
                }
            }
        }
    }
}

fn check(global: &Global) -> Outcome {
    let loaded = crate::config::Config::load(&crate::config::Sources::new(global.config.clone(), global.set.clone()));
    match (loaded, global.output) {
        (Ok(loaded), Format::Json) => {
            print_json(&json!({ "ok": true, "development": loaded.config.is_development(), "problems": [] }))
        }
        (Ok(loaded), Format::Text) => {
            let config = loaded.config;
            let mode = if config.is_development() { " in development mode" } else { "" };
            print(&format!("the configuration is fine: listens on {}{mode}\n", config.http.listen))
        }
        (Err(problems), Format::Json) => {
            print_json(&json!({ "ok": false, "problems": problems.0 }))?;
            Err(problems.into())
        }
        (Err(problems), Format::Text) => Err(problems.into()),
    }
}
