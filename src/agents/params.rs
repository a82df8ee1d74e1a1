//! Parameters of an agent, described once: the JSON Schema a form is drawn from and the strict
//! check of what a job brings come from the same table.

use serde_json::{Map, Value, json};

use super::error::AgentError;

/// Problems beyond these are left out of a message.
const MAX_PROBLEMS: usize = 20;

/// One parameter.
pub(super) struct Spec {
    pub name: &'static str,
    pub title: &'static str,
    pub description: &'static str,
    pub kind: Kind,
}

pub(super) enum Kind {
    Integer { default: i64, minimum: i64, maximum: i64 },
    Number { default: f64, minimum: f64, maximum: f64 },
    Boolean { default: bool },
    Choice { default: &'static str, of: &'static [&'static str] },
}

/// The JSON Schema (2020-12) of a table of parameters.
pub(super) fn schema(title: &str, description: &str, specs: &[Spec]) -> Value {
    let properties: Map<String, Value> = specs
        .iter()
        .enumerate()
        .map(|(order, spec)| {
            let mut property = match spec.kind {
                Kind::Integer { default, minimum, maximum } => {
                    json!({"type": "integer", "default": default, "minimum": minimum, "maximum": maximum})
                }
                Kind::Number { default, minimum, maximum } => {
                    json!({"type": "number", "default": default, "minimum": minimum, "maximum": maximum})
                }
                Kind::Boolean { default } => json!({"type": "boolean", "default": default}),
                Kind::Choice { default, of } => json!({"type": "string", "default": default, "enum": of}),
            };
            property["title"] = spec.title.into();
            property["description"] = spec.description.into();
            property["x-order"] = order.into();
            (spec.name.to_owned(), property)
        })
        .collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "description": description,
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    })
}

/// Parameters that passed the check, defaults filled in.
pub(super) struct Params {
    specs: &'static [Spec],
    given: Map<String, Value>,
}

impl Params {
    /// Checks `value` (an object, or null for all defaults) and names everything that is wrong with it.
    pub fn check(specs: &'static [Spec], value: &Value) -> Result<Self, AgentError> {
        let given = match value {
            Value::Null => Map::new(),
            Value::Object(given) => given.clone(),
            _ => return Err(AgentError::BadParams(vec!["params: must be an object".into()])),
        };
        let problems: Vec<String> = given
            .iter()
            .filter_map(|(name, value)| {
                let reason = match specs.iter().find(|spec| spec.name == name) {
                    Some(spec) => spec.kind.refusal(value)?,
                    None => {
                        let known: Vec<_> = specs.iter().map(|spec| spec.name).collect();
                        format!("unknown parameter; known are {}", known.join(", "))
                    }
                };
                // The name is the user's: quoted, and never longer than a line can bear.
                let shown: String = name.chars().take(64).collect();
                Some(format!("params.{}: {reason}", shown.escape_debug()))
            })
            .take(MAX_PROBLEMS)
            .collect();
        if problems.is_empty() { Ok(Self { specs, given }) } else { Err(AgentError::BadParams(problems)) }
    }

    fn kind(&self, name: &str) -> &Kind {
        &self.specs.iter().find(|spec| spec.name == name).expect("the parameter is in the agent's table").kind
    }

    pub fn integer(&self, name: &str) -> i64 {
        let Kind::Integer { default, .. } = *self.kind(name) else { panic!("{name} is no integer") };
        self.given.get(name).and_then(whole).unwrap_or(default)
    }

    /// An integer whose minimum is not negative.
    pub fn count(&self, name: &str) -> usize {
        usize::try_from(self.integer(name)).expect("minimum is not negative")
    }

    pub fn number(&self, name: &str) -> f64 {
        let Kind::Number { default, .. } = *self.kind(name) else { panic!("{name} is no number") };
        self.given.get(name).and_then(Value::as_f64).unwrap_or(default)
    }

    pub fn boolean(&self, name: &str) -> bool {
        let Kind::Boolean { default } = *self.kind(name) else { panic!("{name} is no boolean") };
        self.given.get(name).and_then(Value::as_bool).unwrap_or(default)
    }

    pub fn choice(&self, name: &str) -> &str {
        let Kind::Choice { default, .. } = *self.kind(name) else { panic!("{name} is no choice") };
        self.given.get(name).and_then(Value::as_str).unwrap_or(default)
    }
}

impl Kind {
    /// Why `value` is refused, naming what is allowed.
    fn refusal(&self, value: &Value) -> Option<String> {
        match *self {
            Self::Integer { minimum, maximum, .. } => {
                let fits = whole(value).is_some_and(|value| (minimum..=maximum).contains(&value));
                (!fits).then(|| format!("must be an integer from {minimum} to {maximum}"))
            }
            Self::Number { minimum, maximum, .. } => {
                let fits = value.as_f64().is_some_and(|value| (minimum..=maximum).contains(&value));
                (!fits).then(|| format!("must be a number from {minimum} to {maximum}"))
            }
            Self::Boolean { .. } => (!value.is_boolean()).then(|| "must be true or false".into()),
            Self::Choice { of, .. } => {
                let fits = value.as_str().is_some_and(|value| of.contains(&value));
                (!fits).then(|| format!("must be one of {}", of.join(", ")))
            }
        }
    }
}

/// An integer as JSON Schema understands it: 5 and 5.0 are the same number.
fn whole(value: &Value) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_i64().or_else(|| {
        let value = value.as_f64()?;
        (value.fract() == 0.0 && value.abs() <= EXACT).then_some(value as i64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    static SPECS: &[Spec] = &[
        Spec { name: "n", title: "N", description: "", kind: Kind::Integer { default: 3, minimum: 0, maximum: 9 } },
        Spec {
            name: "x",
            title: "X",
            description: "",
            kind: Kind::Number { default: 0.5, minimum: 0.1, maximum: 2.0 },
        },
        Spec { name: "b", title: "B", description: "", kind: Kind::Boolean { default: true } },
        Spec { name: "c", title: "C", description: "", kind: Kind::Choice { default: "p", of: &["p", "q"] } },
    ];

    #[test]
    fn defaults_fill_what_is_not_given() {
        let params = Params::check(SPECS, &json!({"n": 5.0, "c": "q"})).unwrap();
        assert_eq!((params.count("n"), params.number("x")), (5, 0.5));
        assert_eq!((params.boolean("b"), params.choice("c")), (true, "q"));
    }

    #[test]
    fn every_problem_is_named_with_its_field_and_range() {
        let error = Params::check(SPECS, &json!({"n": 10, "x": "1", "z": 1})).err().unwrap();
        assert_eq!(
            error.to_string(),
            "params.n: must be an integer from 0 to 9; params.x: must be a number from 0.1 to 2; \
             params.z: unknown parameter; known are n, x, b, c"
        );
        assert_eq!((error.code(), error.exit_code()), ("bad_params", 2));
    }

    /// The form on the page and the agent must agree on what is allowed.
    #[test]
    fn check_and_schema_agree() {
        let validator = jsonschema::validator_for(&schema("t", "d", SPECS)).unwrap();
        let values = [
            json!(null),
            json!(true),
            json!("p"),
            json!("r"),
            json!(-1),
            json!(0),
            json!(9),
            json!(9.0),
            json!(9.5),
            json!(10),
            json!(0.1),
            json!(0.09),
            json!(2),
            json!(2.0001),
            json!(1e300),
            json!(u64::MAX),
            json!([]),
            json!({}),
        ];
        let mut accepted = 0;
        for name in ["n", "x", "b", "c", "unknown"] {
            for value in &values {
                let params = json!({ name: value });
                let check = Params::check(SPECS, &params);
                assert_eq!(validator.is_valid(&params), check.is_ok(), "{params}");
                accepted += usize::from(check.is_ok());
            }
        }
        // n: 0, 2, 9, 9.0; x: 0.1, 2; b: true; c: p.
        assert_eq!(accepted, 8);
        assert!(Params::check(SPECS, &json!([])).is_err());
    }
}
