//! The OpenAPI document says what the router does, and the file in the repository is it.

use std::collections::BTreeSet;

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use super::*;
use crate::http::openapi;
use crate::http::problem::Kind;

const METHODS: [&str; 8] = ["get", "post", "put", "patch", "delete", "options", "head", "trace"];

fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().unwrap();
    let of = |path: &String, item: &Value| {
        let operations = item.as_object().unwrap().iter().filter(|(method, _)| METHODS.contains(&method.as_str()));
        operations.map(|(method, operation)| (method.clone(), path.clone(), operation.clone())).collect::<Vec<_>>()
    };
    paths.iter().flat_map(|(path, item)| of(path, item)).collect()
}

#[tokio::test]
async fn the_document_is_served_and_is_openapi_3_1() {
    let gateway = Gateway::start().await;
    let reply = gateway.get("/api/openapi.json").without("authorization").send().await;
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let document = reply.ok();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document, serde_json::from_str::<Value>(&openapi::document_json()).unwrap());
}

#[tokio::test]
async fn the_messages_are_described_in_asyncapi_3() {
    let gateway = Gateway::start().await;
    let reply = gateway.get("/api/asyncapi.json").without("authorization").send().await;
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.ok()["asyncapi"], "3.0.0");
}

/// Regenerate with `UPDATE_OPENAPI=1 cargo test --lib http::tests::documented`.
#[test]
fn the_file_of_the_page_is_current() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/web/openapi.json"));
    let text = openapi::document_json();
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap();
    assert!(
        kept == text,
        "web/openapi.json is not what the routes say; run UPDATE_OPENAPI=1 cargo test --lib documented"
    );
}

#[tokio::test]
async fn each_path_has_the_documented_methods_and_no_others() {
    let gateway = Gateway::start().await;
    let document: Value = serde_json::from_str(&openapi::document_json()).unwrap();
    for path in document["paths"].as_object().unwrap().keys() {
        let mut documented: BTreeSet<String> = operations(&document)
            .into_iter()
            .filter(|(_, of, _)| of == path)
            .map(|(method, ..)| method.to_uppercase())
            .collect();
        if documented.contains("GET") {
            documented.insert("HEAD".into());
        }
        let concrete = path.replace("{id}", "0199aaaa-0000-7000-8000-000000000000");
        let reply = gateway.call(Method::TRACE, &concrete).send().await;
        reply.problem(405, "method-not-allowed");
        let routed = reply.header("allow").unwrap().split(',').map(str::to_owned).collect::<BTreeSet<_>>();
        assert_eq!(routed, documented, "{path}");
    }
}

/// axum lists its routes in its `Debug` output only.
#[tokio::test]
async fn each_route_is_documented() {
    let gateway = Gateway::start().await;
    let text = format!("{:?}", gateway.router);
    let routed: BTreeSet<&str> = text
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|text| text.starts_with('/'))
        .map(|path| path.trim_end_matches('/'))
        .filter(|path| !path.starts_with("/api/docs") && !path.is_empty())
        .filter(|path| !matches!(*path, "/api/openapi.json" | "/api/asyncapi.json"))
        .filter(|path| !path.contains("__private__"))
        .collect();
    let document: Value = serde_json::from_str(&openapi::document_json()).unwrap();
    let documented: BTreeSet<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    assert!(routed.len() > 20, "{text}");
    assert_eq!(routed, documented);
}

#[test]
fn each_operation_documents_its_refusals() {
    let document: Value = serde_json::from_str(&openapi::document_json()).unwrap();
    for (method, path, operation) in operations(&document) {
        let responses = operation["responses"].as_object().unwrap();
        let has = |status: &str| responses.contains_key(status);
        let name = format!("{method} {path}");
        assert!(operation["summary"].is_string(), "{name} needs a summary");
        let open = operation["security"] == json!([{}]);
        assert_eq!(has("401"), !open, "{name}");
        assert_eq!(
            has("422"),
            operation.get("requestBody").is_some() || operation.get("parameters").is_some(),
            "{name}"
        );
        for (status, response) in responses {
            assert!(response["headers"]["x-request-id"].is_object(), "{name} {status}");
            if status.as_str() >= "400" {
                let schema = &response["content"]["application/problem+json"]["schema"]["$ref"];
                assert_eq!(schema, "#/components/schemas/Problem", "{name} {status}");
            }
        }
    }
}

/// Generated clients name their functions by it.
#[test]
fn operation_ids_are_unique() {
    let document: Value = serde_json::from_str(&openapi::document_json()).unwrap();
    let mut seen = BTreeSet::new();
    for (method, path, operation) in operations(&document) {
        assert!(seen.insert(operation["operationId"].as_str().unwrap().to_owned()), "{method} {path}");
    }
}

#[test]
fn no_reference_leads_nowhere() {
    let document: Value = serde_json::from_str(&openapi::document_json()).unwrap();
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(to)) = map.get("$ref") {
                    found.insert(to.clone());
                }
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    for reference in &found {
        let pointer = reference.trim_start_matches('#');
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
    for name in document["components"]["schemas"].as_object().unwrap().keys() {
        assert!(found.contains(&format!("#/components/schemas/{name}")), "{name} is used nowhere");
    }
}

/// Every problem type is in `docs/problems.md`, with its status and meaning.
#[test]
fn each_kind_of_problem_is_documented() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/problems.md"));
    let mut table = String::from("| type | status | title | when | repeat it as it is |\n|---|---|---|---|---|\n");
    for kind in Kind::ALL {
        let repeat = if kind.retry_safe() { "yes" } else { "no" };
        table += &format!(
            "| `{}` | {} | {} | {} | {repeat} |\n",
            kind.slug(),
            kind.status().as_u16(),
            kind.title(),
            kind.about()
        );
    }
    let (begin, end) = ("<!-- problems: generated -->\n", "<!-- end of problems -->");
    let text = std::fs::read_to_string(path).unwrap();
    let (head, rest) = text.split_once(begin).expect("the table begins");
    let (kept, tail) = rest.split_once(end).expect("the table ends");
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(path, format!("{head}{begin}{table}{end}{tail}")).unwrap();
        return;
    }
    assert!(kept == table, "docs/problems.md is behind; run UPDATE_OPENAPI=1 cargo test --lib documented");
    let slugs: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.slug()).collect();
    assert_eq!(slugs.len(), Kind::ALL.len(), "two kinds share a slug");
}

#[tokio::test]
async fn head_answers_like_get_without_a_body() {
    let gateway = Gateway::start().await;
    let reply = gateway.call(Method::HEAD, "/api/v1/jobs").send().await;
    assert_eq!((reply.status, reply.body.len()), (StatusCode::OK, 0));
}
