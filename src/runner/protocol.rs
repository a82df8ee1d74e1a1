//! The lines an agent writes to standard output, and the file it reads its job from.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::Claimed;
use crate::domain::Id;
use crate::domain::job::ResourceRequest;

pub(super) const ENV_JOB_FILE: &str = "GATEWAY_JOB_FILE";
pub(super) const ENV_JOB_ID: &str = "GATEWAY_JOB_ID";
pub(super) const ENV_ATTEMPT: &str = "GATEWAY_ATTEMPT";
pub(super) const ENV_OUTPUT_DIR: &str = "GATEWAY_OUTPUT_DIR";
/// Marks every process of a run that keeps its environment.
pub(super) const ENV_RUN_ID: &str = "GATEWAY_RUN_ID";

/// The most bytes of the JSON text of a result.
pub(super) const MAX_RESULT_BYTES: usize = 256 * 1024;
const MAX_MESSAGE_CHARS: usize = 500;
const MAX_CODE_CHARS: usize = 100;
const MAX_ERROR_CHARS: usize = 4_000;

/// What an agent is told.
#[derive(Serialize)]
pub(super) struct JobFile<'a> {
    job_id: Id,
    attempt: u32,
    agent: &'a str,
    dataset_id: &'a str,
    dataset_path: &'a Path,
    params: &'a RawValue,
    resource_request: &'a ResourceRequest,
    output_dir: &'a Path,
    wall_time_seconds: u64,
}

impl<'a> JobFile<'a> {
    pub fn new(job: &'a Claimed, dataset_path: &'a Path, output_dir: &'a Path) -> Self {
        Self {
            job_id: job.job_id,
            attempt: job.attempt,
            agent: &job.agent,
            dataset_id: &job.dataset_id,
            dataset_path,
            params: &job.params,
            resource_request: &job.resource_request,
            output_dir,
            wall_time_seconds: job.wall_time.as_secs(),
        }
    }
}

/// One line of standard output.
#[derive(Debug, PartialEq)]
pub(super) enum Line {
    Progress {
        /// 0 to 1.
        progress: f64,
        message: Option<String>,
    },
    Result(Map<String, Value>),
    /// It says that it is the result but cannot be used as one.
    BadResult(String),
    Error(AgentError),
    /// Anything else.
    Log,
}

/// What an agent says of its failure.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct AgentError {
    pub code: String,
    pub message: String,
    pub retriable: Option<bool>,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    progress: Option<&'a RawValue>,
    message: Option<Value>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<Value>,
}

/// Reads a line (without its end). `cut` is true when its end was dropped for its length.
pub(super) fn parse(line: &[u8], cut: bool) -> Line {
    if line.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Line::Log;
    }
    let too_large = || Line::BadResult(format!("the result is larger than {} kB", MAX_RESULT_BYTES / 1024));
    if cut {
        return if names_result(line) { too_large() } else { Line::Log };
    }
    let envelope: Envelope<'_> = match serde_json::from_slice(line) {
        Ok(envelope) => envelope,
        // Not silently dropped: many a writer puts NaN where JSON has none.
        Err(error) if names_result(line) => return Line::BadResult(format!("the result line is not JSON: {error}")),
        Err(_) => return Line::Log,
    };
    if let Some(error) = envelope.error {
        return Line::Error(agent_error(&error));
    }
    if let Some(result) = envelope.result {
        if result.get().len() > MAX_RESULT_BYTES {
            return too_large();
        }
        return match serde_json::from_str(result.get()) {
            Ok(summary) => Line::Result(summary),
            Err(_) => Line::BadResult("the result is not a JSON object".to_owned()),
        };
    }
    let progress = envelope.progress.and_then(|raw| serde_json::from_str::<f64>(raw.get()).ok());
    match progress {
        Some(progress) if (0.0..=1.0).contains(&progress) => {
            let message =
                envelope.message.as_ref().and_then(Value::as_str).map(|text| cut_chars(text, MAX_MESSAGE_CHARS));
            Line::Progress { progress, message }
        }
        _ => Line::Log,
    }
}

/// Does the text of an object begin with the key `result`?
fn names_result(line: &[u8]) -> bool {
    let text = line.trim_ascii_start();
    text.strip_prefix(b"{").is_some_and(|rest| rest.trim_ascii_start().starts_with(b"\"result\""))
}

fn agent_error(error: &Value) -> AgentError {
    let text = |field: &str| error.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
    // `{"error": "text"}` says enough.
    let message = text("message").or_else(|| error.as_str()).unwrap_or("the agent reported an error without a message");
    AgentError {
        code: cut_chars(text("code").unwrap_or("agent_error"), MAX_CODE_CHARS),
        message: cut_chars(message, MAX_ERROR_CHARS),
        retriable: error.get("retriable").and_then(Value::as_bool),
    }
}

/// The first `most` characters.
pub(super) fn cut_chars(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(text: &str) -> Line {
        parse(text.as_bytes(), false)
    }

    #[test]
    fn reads_the_three_kinds() {
        assert_eq!(
            line(r#"{"progress": 0.5, "message": "half", "more": [1]}"#),
            Line::Progress { progress: 0.5, message: Some("half".into()) }
        );
        assert_eq!(line(r#" {"progress":1}"#), Line::Progress { progress: 1.0, message: None });
        let Line::Result(summary) = line(r#"{"result":{"a":[1,2]}}"#) else { panic!() };
        assert_eq!(Value::Object(summary), json!({"a": [1, 2]}));
        assert_eq!(
            line(r#"{"error":{"code":"bad_params","message":"no","retriable":false}}"#),
            Line::Error(AgentError { code: "bad_params".into(), message: "no".into(), retriable: Some(false) })
        );
    }

    #[test]
    fn everything_else_is_log() {
        for text in [
            "",
            "hello",
            "[1]",
            "{",
            "{}",
            "null",
            r#"{"progress": 1.01}"#,
            r#"{"progress": -0.1}"#,
            r#"{"progress": "0.5"}"#,
            r#"{"progress": NaN}"#,
            r#"{"progress": 1e999}"#,
            r#"{"progress": null, "result": null}"#,
            r#"{"level": "info", "text": "result"}"#,
        ] {
            assert_eq!(line(text), Line::Log, "{text}");
        }
        assert_eq!(parse(b"\xff\xfe{\"progress\":0.5}", false), Line::Log);
        assert_eq!(parse(b"{\"text\": \"cut off", true), Line::Log);
    }

    #[test]
    fn a_result_that_cannot_be_used_is_not_lost_in_the_log() {
        for text in [r#"{"result": {"x": NaN}}"#, r#"{ "result" : 5}"#, r#"{"result": []}"#] {
            assert!(matches!(line(text), Line::BadResult(_)), "{text}");
        }
        let fits = format!(r#"{{"result":{{"x":"{}"}}}}"#, "y".repeat(MAX_RESULT_BYTES - 8));
        assert!(matches!(line(&fits), Line::Result(_)));
        let larger = format!(r#"{{"result":{{"x":"{}"}}}}"#, "y".repeat(MAX_RESULT_BYTES - 7));
        assert!(matches!(line(&larger), Line::BadResult(_)));
        assert!(matches!(parse(br#"{"result": {"x": "yyy"#, true), Line::BadResult(_)));
    }

    #[test]
    fn texts_are_bounded() {
        let Line::Error(error) =
            line(&json!({"error": {"code": "c".repeat(200), "message": "é".repeat(9_000)}}).to_string())
        else {
            panic!()
        };
        assert_eq!((error.code.chars().count(), error.message.chars().count()), (100, 4_000));
        let Line::Error(error) = line(r#"{"error": "disk is full"}"#) else { panic!() };
        assert_eq!(
            (error.code.as_str(), error.message.as_str(), error.retriable),
            ("agent_error", "disk is full", None)
        );
    }
}
