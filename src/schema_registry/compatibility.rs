//! Do two versions of a schema read each other?

use std::error::Error;

use apache_avro::Schema;
use apache_avro::schema_compatibility::{Compatibility, SchemaCompatibility};

/// What two versions are to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The same schema, whatever its layout and documentation.
    Same,
    /// Each reads everything that the other writes.
    Compatible,
    /// What one of them writes the other may not read; the text says why.
    Incompatible(String),
}

/// Compares two schemas in both directions. Text that is no Avro schema is incompatible.
pub fn compare(ours: &str, released: &str) -> Verdict {
    let parse = |whose: &str, text: &str| Schema::parse_str(text).map_err(|error| format!("{whose} schema: {error}"));
    let (ours, released) = match (parse("this", ours), parse("the released", released)) {
        (Ok(ours), Ok(released)) => (ours, released),
        (Err(why), _) | (_, Err(why)) => return Verdict::Incompatible(why),
    };
    if ours == released {
        return Verdict::Same;
    }
    // The library compares unqualified names only; subjects and generated classes go by the whole.
    if let (Some(mine), Some(theirs)) = (ours.name(), released.name())
        && mine != theirs
    {
        return Verdict::Incompatible(format!("the record is called {mine}, not {theirs}"));
    }
    let reads = |what: &str, writer: &Schema, reader: &Schema| match SchemaCompatibility::can_read(writer, reader) {
        Ok(Compatibility::Full) => None,
        Ok(Compatibility::Partial) => Some(format!("{what}: some values cannot be read")),
        Err(error) => Some(format!("{what}: {}", reason(&error))),
    };
    let wrong: Vec<String> = [
        reads("this version cannot read what the released one has written", &released, &ours),
        reads("the released version cannot read what this one writes", &ours, &released),
    ]
    .into_iter()
    .flatten()
    .collect();
    if wrong.is_empty() { Verdict::Compatible } else { Verdict::Incompatible(wrong.join("; ")) }
}

/// The library's error with its causes, without its repeated exclamation.
fn reason(error: &dyn Error) -> String {
    let mut parts = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        parts.push(error.to_string().replace("Incompatible schemata! ", "").replace("Incompatible schema types! ", ""));
        next = error.source();
    }
    parts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(fields: &str) -> String {
        format!(r#"{{"type": "record", "name": "R", "namespace": "n", "fields": [{fields}]}}"#)
    }

    const A: &str = r#"{"name": "a", "type": "string"}"#;

    #[test]
    fn layout_and_documentation_make_no_difference() {
        let documented = record(&A.replace("\"type\"", "\"doc\": \"a text\",\n  \"type\""));
        assert_eq!(compare(&documented, &record(A)), Verdict::Same);
    }

    #[test]
    fn a_field_with_a_default_may_come_and_go() {
        let more = record(&format!(r#"{A}, {{"name": "b", "type": ["null", "long"], "default": null}}"#));
        assert_eq!(compare(&more, &record(A)), Verdict::Compatible);
        assert_eq!(compare(&record(A), &more), Verdict::Compatible);
    }

    #[test]
    fn what_only_one_side_can_read_is_refused_and_the_field_named() {
        let more = record(&format!(r#"{A}, {{"name": "b", "type": "long"}}"#));
        for (ours, released, what) in
            [(&more, &record(A), "this version cannot read"), (&record(A), &more, "the released version cannot read")]
        {
            let Verdict::Incompatible(why) = compare(ours, released) else { panic!("{ours} and {released}") };
            assert!(why.contains(what) && why.contains("'b'"), "{why}");
        }
        let Verdict::Incompatible(why) = compare(&record(&A.replace("string", "long")), &record(A)) else { panic!() };
        assert!(why.contains("'a'"), "{why}");
    }

    #[test]
    fn symbols_come_and_go_only_where_a_default_takes_what_is_unknown() {
        let with = |symbols: &str, default: &str| {
            record(&format!(
                r#"{{"name": "e", "type": {{"type": "enum", "name": "E", "symbols": [{symbols}]{default}}}}}"#
            ))
        };
        let default = r#", "default": "UNKNOWN""#;
        let (two, three) = (r#""x", "UNKNOWN""#, r#""x", "y", "UNKNOWN""#);
        assert_eq!(compare(&with(three, default), &with(two, default)), Verdict::Compatible);
        assert!(matches!(compare(&with(three, ""), &with(two, "")), Verdict::Incompatible(_)));
    }

    #[test]
    fn another_name_is_another_record() {
        let renamed = record(A).replace("\"R\"", "\"S\"");
        let moved = record(A).replace("\"n\"", "\"m\"");
        for other in [renamed, moved] {
            let Verdict::Incompatible(why) = compare(&other, &record(A)) else { panic!("{other}") };
            assert!(why.contains("is called"), "{why}");
        }
        assert!(matches!(compare("{", &record(A)), Verdict::Incompatible(why) if why.starts_with("this schema")));
    }
}
