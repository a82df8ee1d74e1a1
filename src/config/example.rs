//! The table of all settings: `.env.example`, and `config show`.

use std::fmt::Write as _;

use serde::Serialize;

use super::{Loaded, sections, setting};

/// The text of `.env.example`.
pub fn example() -> String {
    let mut text = String::from(
        "# Every setting of event-gateway with its default. `event-gateway config\n\
         # example > .env.example` writes this file anew.\n\
         # Layers, each over the one before: defaults, config/*.toml (or --config), the\n\
         # environment, --set section.key=value. In TOML, GATEWAY__HTTP__LISTEN is the key\n\
         # `listen` in the table [http]. An empty variable counts as not set. A secret may also\n\
         # be in a file: append _FILE to its name and give the path.\n",
    );
    for (doc, settings) in sections() {
        text.push_str("\n# ");
        text.push_str(&"=".repeat(76));
        text.push('\n');
        comment(&mut text, doc);
        for setting in settings {
            text.push('\n');
            comment(&mut text, setting.doc);
            let secret = if setting.secret { "; secret" } else { "" };
            let _ = writeln!(text, "# [{}] {}{secret}", setting.key, setting.kind);
            let _ = writeln!(text, "#{}={}", setting.env_name(), setting.default);
        }
    }
    text
}

fn comment(text: &mut String, doc: &str) {
    for line in doc.lines() {
        let _ = writeln!(text, "# {}", line.trim());
    }
}

/// A setting as `config show` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    pub key: &'static str,
    /// In effect; `***` for a secret that is set.
    pub value: String,
    /// The file, variable or flag that set it, or `default`.
    pub source: String,
}

impl Loaded {
    /// Every setting with the value in effect and where it came from.
    pub fn show(&self) -> Vec<Shown> {
        let data_dir = super::data_dir(&self.given);
        let in_effect = |text: String| text.replace("{data.dir}", &data_dir);
        let row = |setting: &'static super::Setting| match self.given.get(setting.key) {
            Some(value) => Shown {
                key: setting.key,
                value: if setting.secret { "***".to_owned() } else { in_effect(setting::shown(value)) },
                source: value.origin().unwrap_or("unknown").to_owned(),
            },
            None => {
                Shown { key: setting.key, value: in_effect(setting.default.to_owned()), source: "default".to_owned() }
            }
        };
        super::settings().into_iter().map(row).collect()
    }
}
