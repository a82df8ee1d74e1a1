//! The layers: defaults < files < environment < `--set`, merged into one value a key.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use config::{ConfigError, Environment, File, FileFormat, Map, Source, Value, ValueKind};

use super::Problem;
use super::setting::{Setting, env_name, shown};

/// Which configuration files are read.
#[derive(Clone, Debug, Default)]
pub enum Files {
    #[default]
    None,
    /// `./config/*.toml`, if there are any.
    Usual,
    /// `--config`: a TOML file, or a directory of them.
    At(PathBuf),
}

/// Where settings come from. Not `Debug`: the environment holds secrets.
#[derive(Clone, Default)]
pub struct Sources {
    pub files: Files,
    /// The environment; only `GATEWAY__…` counts.
    pub environment: HashMap<String, String>,
    /// `--set section.key=value`, in order.
    pub set: Vec<String>,
}

impl Sources {
    /// The process environment, with `--config` and `--set` from the command line.
    pub fn new(path: Option<PathBuf>, set: Vec<String>) -> Self {
        let files = path.map_or(Files::Usual, Files::At);
        // Names and values that are not UTF-8 cannot be settings of ours.
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self { files, environment, set }
    }
}

/// Every value given, by key. What is wrong goes to `problems`; the rest is still read.
pub(super) fn collect(
    sources: &Sources,
    settings: &[&'static Setting],
    problems: &mut Vec<Problem>,
) -> BTreeMap<&'static str, Value> {
    let mut given = BTreeMap::new();
    let mut secret_files = BTreeMap::new();
    for layer in layers(sources, problems) {
        let mut leaves = Vec::new();
        flatten(String::new(), layer, settings, &mut leaves);
        for (key, value) in leaves {
            if let Some(setting) = settings.iter().find(|setting| setting.key == key) {
                given.insert(setting.key, value);
            } else if let Some(setting) = secret_of(&key, settings) {
                secret_files.insert(setting.key, value);
            } else {
                problems.push(unknown(&key, &value, settings));
            }
        }
    }
    for (key, path) in secret_files {
        read_secret(key, &path, &mut given, problems);
    }
    given
}

/// One map a layer, the lowest first, values marked with where they come from.
fn layers(sources: &Sources, problems: &mut Vec<Problem>) -> Vec<Map<String, Value>> {
    let mut layers = Vec::new();
    for file in files(&sources.files, problems) {
        match File::from(file.as_path()).format(FileFormat::Toml).collect() {
            Ok(layer) => layers.push(layer),
            Err(error) => problems.push(Problem {
                field: file.display().to_string(),
                value: None,
                origin: None,
                reason: match error {
                    ConfigError::FileParse { cause, .. } => format!("is not TOML: {cause}").trim_end().to_owned(),
                    other => other.to_string(),
                },
                fix: "correct the file".to_owned(),
            }),
        }
    }
    let environment = Environment::with_prefix("GATEWAY").separator("__").prefix_separator("__").ignore_empty(true);
    let variables = environment.source(Some(sources.environment.clone().into_iter().collect())).collect();
    let named = variables.unwrap_or_default().into_iter().map(|(key, value)| {
        let origin = env_name(&key);
        (key, Value::new(Some(&origin), value.kind))
    });
    layers.push(named.collect());
    for text in &sources.set {
        match text.split_once('=') {
            Some((key, value)) => {
                let value = Value::new(Some(&"--set".to_owned()), value.to_owned());
                layers.push(Map::from_iter([(key.trim().to_owned(), value)]));
            }
            None => problems.push(Problem {
                field: "--set".to_owned(),
                value: Some(text.clone()),
                origin: None,
                reason: "has no '='".to_owned(),
                fix: "write --set section.key=value".to_owned(),
            }),
        }
    }
    layers
}

/// The configuration files in the order in which they apply.
fn files(files: &Files, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
    let (path, asked_for) = match files {
        Files::None => return Vec::new(),
        Files::Usual => (Path::new("config"), false),
        Files::At(path) => (path.as_path(), true),
    };
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let mut files = Vec::new();
    match std::fs::read_dir(path) {
        Ok(entries) => {
            let paths = entries.filter_map(|entry| entry.ok()).map(|entry| entry.path());
            files.extend(paths.filter(|path| path.extension().is_some_and(|ext| ext == "toml")));
        }
        Err(_) if !asked_for => {}
        Err(error) => problems.push(Problem {
            field: "--config".to_owned(),
            value: Some(path.display().to_string()),
            origin: None,
            reason: error.to_string(),
            fix: "name a TOML file or a directory of them".to_owned(),
        }),
    }
    files.sort();
    files
}

/// The leaves of a layer: what a setting's key names, whatever its shape, or any single value.
fn flatten(prefix: String, table: Map<String, Value>, settings: &[&Setting], leaves: &mut Vec<(String, Value)>) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
        let is_setting = settings.iter().any(|setting| setting.key == key);
        match value.kind {
            ValueKind::Table(inner) if !is_setting => flatten(key, inner, settings, leaves),
            _ => leaves.push((key, value)),
        }
    }
}

/// The secret setting whose `_file` form `key` is.
fn secret_of(key: &str, settings: &[&'static Setting]) -> Option<&'static Setting> {
    let base = key.strip_suffix("_file")?;
    settings.iter().copied().find(|setting| setting.secret && setting.key == base)
}

fn read_secret(
    key: &'static str,
    path: &Value,
    given: &mut BTreeMap<&'static str, Value>,
    problems: &mut Vec<Problem>,
) {
    let field = format!("{key}_file");
    let origin = path.origin().map(str::to_owned);
    let path = shown(path);
    let problem = |reason: String, fix: String| Problem {
        field: field.clone(),
        value: Some(path.clone()),
        origin: origin.clone(),
        reason,
        fix,
    };
    if let Some(direct) = given.get(key) {
        let other = direct.origin().unwrap_or("a file").to_owned();
        problems.push(problem(format!("{key} is given too, by {other}"), "keep one of the two".to_owned()));
        return;
    }
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim().is_empty() => {
            problems.push(problem("the file is empty".to_owned(), "write the secret into it".to_owned()));
        }
        Ok(text) => {
            given.insert(key, Value::new(Some(&format!("the file {path}")), text.trim_end().to_owned()));
        }
        Err(error) => problems.push(problem(error.to_string(), "name a readable file".to_owned())),
    }
}

fn unknown(key: &str, value: &Value, settings: &[&Setting]) -> Problem {
    let origin = value.origin().map(str::to_owned);
    let nearest = settings
        .iter()
        .map(|setting| (strsim::damerau_levenshtein(setting.key, key), setting))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance <= 4);
    let fix = match nearest {
        Some((_, setting)) => format!("did you mean {}?", setting.key),
        None => "see .env.example or `event-gateway config example` for all settings".to_owned(),
    };
    // The value is not shown: it may be a secret under a misspelt key.
    Problem { field: key.to_owned(), value: None, origin, reason: "there is no such setting".to_owned(), fix }
}
