//! What a setting is: its key, default and meaning in one place, and how its text
//! becomes a typed value.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use config::{Value, ValueKind};
use url::Url;

use super::Problem;

/// One configurable thing, as `.env.example`, `config show` and the checks know it.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// `section.name`.
    pub key: &'static str,
    /// The default as a user would write it; empty where there is none.
    pub default: &'static str,
    /// One line per doc comment line.
    pub doc: &'static str,
    /// What the text must look like, e.g. "a duration such as 30s".
    pub kind: &'static str,
    /// Never shown; may also come from the file named by `<key>_file`.
    pub secret: bool,
}

impl Setting {
    /// The environment variable of this setting.
    pub fn env_name(&self) -> String {
        env_name(self.key)
    }
}

/// The environment variable of `key`: `http.listen` is `GATEWAY__HTTP__LISTEN`.
pub fn env_name(key: &str) -> String {
    format!("GATEWAY__{}", key.to_uppercase().replace('.', "__"))
}

/// A group of settings: one struct, one file, one table in the configuration files.
pub trait Section: Sized {
    /// What the section is about.
    const DOC: &'static str;
    const SETTINGS: &'static [Setting];

    /// Reads every setting; one that cannot be read is reported and takes its default.
    fn read(reader: &mut Reader<'_>) -> Self;
}

/// The checks that need more than one value's text: ranges, combinations.
pub trait Check {
    fn check(&self, checks: &mut Checks<'_>);
}

/// Declares a [`Section`]: fields with documentation, type and default text.
macro_rules! settings {
    (
        $(#[doc = $section_doc:literal])+
        pub struct $name:ident in $section:literal {
            $( $(#[doc = $doc:literal])+ $field:ident: $type:ty = $default:literal, )+
        }
    ) => {
        $(#[doc = $section_doc])+
        #[derive(Clone, Debug)]
        pub struct $name {
            $(
                $(#[doc = $doc])+
                #[doc = concat!("\n\nSetting `", $section, ".", stringify!($field), "`, default `", $default, "`.")]
                pub $field: $type,
            )+
        }

        impl $crate::config::setting::Section for $name {
            const DOC: &'static str = concat!($($section_doc, "\n"),+);
            const SETTINGS: &'static [$crate::config::setting::Setting] = &[$(
                $crate::config::setting::Setting {
                    key: concat!($section, ".", stringify!($field)),
                    default: $default,
                    doc: concat!($($doc, "\n"),+),
                    kind: <$type as $crate::config::setting::FromSetting>::KIND,
                    secret: <$type as $crate::config::setting::FromSetting>::SECRET,
                }
            ),+];

            fn read(reader: &mut $crate::config::setting::Reader<'_>) -> Self {
                Self { $( $field: reader.read(concat!($section, ".", stringify!($field)), $default) ),+ }
            }
        }
    };
}
pub(super) use settings;

/// The merged layers, as the sections read them.
pub struct Reader<'a> {
    /// Every given value by key, defaults left out.
    pub(super) given: &'a BTreeMap<&'static str, Value>,
    /// Replaces `{data.dir}` in paths and URLs.
    pub(super) data_dir: String,
    pub(super) problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    pub fn read<T: FromSetting>(&mut self, key: &'static str, default: &'static str) -> T {
        if let Some(value) = self.given.get(key) {
            match T::from_value(&self.expanded(value)) {
                Ok(read) => return read,
                Err(reason) => self.problems.push(Problem {
                    field: key.to_owned(),
                    value: (!T::SECRET).then(|| shown(value)),
                    origin: value.origin().map(str::to_owned),
                    reason,
                    fix: format!("use {}", T::KIND),
                }),
            }
        }
        let default = self.expanded(&Value::from(default.to_owned()));
        T::from_value(&default).unwrap_or_else(|reason| panic!("the default of {key} does not parse: {reason}"))
    }

    fn expanded(&self, value: &Value) -> Value {
        match &value.kind {
            ValueKind::String(text) if text.contains("{data.dir}") => {
                Value::new(value.origin().map(str::to_owned).as_ref(), text.replace("{data.dir}", &self.data_dir))
            }
            _ => value.clone(),
        }
    }
}

/// Collects what is wrong with values that could be read.
pub struct Checks<'a> {
    pub(super) given: &'a BTreeMap<&'static str, Value>,
    pub(super) problems: &'a mut Vec<Problem>,
}

impl Checks<'_> {
    /// Reports `key` unless `good`. A setting that could not even be read is reported once only.
    pub fn require(&mut self, good: bool, key: &'static str, reason: impl Into<String>, fix: impl Into<String>) {
        if good || self.problems.iter().any(|problem| problem.field == key) {
            return;
        }
        let value = self.given.get(key);
        self.problems.push(Problem {
            field: key.to_owned(),
            value: value.filter(|_| !super::setting(key).is_some_and(|s| s.secret)).map(shown),
            origin: value.and_then(|value| value.origin()).map(str::to_owned),
            reason: reason.into(),
            fix: fix.into(),
        });
    }

    /// Reports a value outside `range`, which is named in the report.
    pub fn within<T>(&mut self, key: &'static str, value: T, range: std::ops::RangeInclusive<T>)
    where
        T: PartialOrd + ShowBound,
    {
        let good = range.contains(&value);
        let (low, high) = (range.start().show(), range.end().show());
        self.require(good, key, format!("must be between {low} and {high}"), format!("use {low} to {high}"));
    }

    /// Reports what is neither an origin as browsers send it nor `*`.
    pub fn origins(&mut self, key: &'static str, origins: &[String]) {
        for origin in origins {
            let good =
                origin == "*" || Url::parse(origin).is_ok_and(|url| url.origin().ascii_serialization() == *origin);
            let reason = format!("'{origin}' is not an origin");
            self.require(good, key, reason, "write scheme://host[:port] without a path");
        }
    }
}

/// How a bound is named in a report.
pub trait ShowBound {
    fn show(&self) -> String;
}

impl ShowBound for Duration {
    fn show(&self) -> String {
        humantime::format_duration(*self).to_string()
    }
}

impl ShowBound for ByteSize {
    fn show(&self) -> String {
        self.to_string()
    }
}

macro_rules! show_bound {
    ($($type:ty),+) => {$(
        impl ShowBound for $type {
            fn show(&self) -> String {
                self.to_string()
            }
        }
    )+};
}
show_bound!(u8, u32, usize, f64);

/// A value as a user would recognise it.
pub(super) fn shown(value: &Value) -> String {
    match &value.kind {
        ValueKind::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(","),
        ValueKind::Table(_) => "a table".to_owned(),
        _ => without_password(value.to_string()),
    }
}

/// A URL may carry a password, which is nobody's to see.
fn without_password(text: String) -> String {
    let Ok(mut url) = url::Url::parse(&text) else { return text };
    if url.password().is_some() && url.set_password(Some("***")).is_ok() { url.into() } else { text }
}

/// A type that settings can have.
pub trait FromSetting: Sized {
    /// What to write, for messages: "a duration such as 30s".
    const KIND: &'static str;
    const SECRET: bool = false;

    fn from_value(value: &Value) -> Result<Self, String> {
        match &value.kind {
            ValueKind::Table(_) => Err("is a table, not a single value".to_owned()),
            ValueKind::Array(_) => Err("is a list, not a single value".to_owned()),
            _ => Self::from_text(value.to_string().trim()),
        }
    }

    fn from_text(text: &str) -> Result<Self, String>;
}

macro_rules! parsed_setting {
    ($($type:ty: $kind:literal),+ $(,)?) => {$(
        impl FromSetting for $type {
            const KIND: &'static str = $kind;

            fn from_text(text: &str) -> Result<Self, String> {
                text.parse().map_err(|error| format!("cannot be read: {error}"))
            }
        }
    )+};
}
parsed_setting! {
    SocketAddr: "an IP address and a port such as 127.0.0.1:8080",
    u8: "a whole number",
    u32: "a whole number",
    usize: "a whole number",
    f64: "a number",
    bool: "true or false",
    Url: "an absolute URL such as https://login.example.org/keys",
    ByteSize: "a size such as 512kB or 64MiB",
}

impl FromSetting for String {
    const KIND: &'static str = "text";

    fn from_text(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl FromSetting for PathBuf {
    const KIND: &'static str = "a path";

    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() { Err("is empty".to_owned()) } else { Ok(PathBuf::from(text)) }
    }
}

impl FromSetting for Duration {
    const KIND: &'static str = "a duration such as 500ms, 30s or 24h";

    fn from_text(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text).map_err(|error| format!("cannot be read: {error}"))
    }
}

/// Empty text is `None`.
impl<T: FromSetting> FromSetting for Option<T> {
    const KIND: &'static str = T::KIND;
    const SECRET: bool = T::SECRET;

    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() { Ok(None) } else { T::from_text(text).map(Some) }
    }
}

/// A TOML array, or text with commas.
impl<T: FromSetting> FromSetting for Vec<T> {
    const KIND: &'static str = "a list (comma-separated in the environment)";

    fn from_value(value: &Value) -> Result<Self, String> {
        match &value.kind {
            ValueKind::Array(items) => items.iter().map(T::from_value).collect(),
            ValueKind::Table(_) => Err("is a table, not a list".to_owned()),
            _ => Self::from_text(&value.to_string()),
        }
    }

    fn from_text(text: &str) -> Result<Self, String> {
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(T::from_text).collect()
    }
}

/// A number of things to do at once; `auto` is one per CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parallelism(pub NonZeroUsize);

impl FromSetting for Parallelism {
    const KIND: &'static str = "a whole number from 1, or auto";

    fn from_text(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self(std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)));
        }
        text.parse().map(Self).map_err(|error| format!("cannot be read: {error}"))
    }
}

/// Text that no log, message or debug output shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself; for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl FromSetting for Secret {
    const KIND: &'static str = "text that nobody can guess";
    const SECRET: bool = true;

    fn from_text(text: &str) -> Result<Self, String> {
        Ok(Self(text.to_owned()))
    }
}
