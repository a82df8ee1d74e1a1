//! The OpenAPI document: made from the routes, finished here with what is the same
//! everywhere, and browsable.

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use bytes::Bytes;
use utoipa::OpenApi as _;
use utoipa::openapi::content::{Content, ContentBuilder};
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{OpenApi, Ref, RefOr, Required, Response, ResponseBuilder};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::AppState;
use super::problem::{PROBLEM_JSON, ProblemBody};

/// Swagger UI sets style attributes and shows images that are part of its styles.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// How a route describes a body that it can do without.
pub(super) const OPTIONAL: &str = "May be left out";

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "event-gateway",
        description = "Accepts jobs, commands and events, commits each durably once, and shows what becomes of it. \
                       Every error is a problem document (RFC 9457); every answer has an x-request-id."
    ),
    components(schemas(ProblemBody)),
    tags(
        (name = "jobs", description = "Submit jobs and watch them"),
        (name = "events", description = "History, and taking in events"),
        (name = "ledger", description = "Where each event is"),
        (name = "worker", description = "For those who run jobs of external agents"),
        (name = "session", description = "Who one is"),
        (name = "health", description = "Alive, ready, healthy"),
    ),
)]
struct Base;

/// The frame of the document.
pub(super) fn base() -> OpenApi {
    let mut document = Base::openapi();
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("JWT")
        .description(Some("`event-gateway token issue` makes one"))
        .build();
    document.components.get_or_insert_default().add_security_scheme("bearer", SecurityScheme::Http(bearer));
    document.security = Some(vec![SecurityRequirement::new("bearer", Vec::<String>::new())]);
    document
}

/// The whole document.
pub fn document() -> OpenApi {
    super::api().into_openapi()
}

/// The document as it is served and kept in `web/openapi.json`.
pub fn document_json() -> String {
    let mut text = document().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

/// Adds to each operation the refusals that its parts make possible.
pub(super) fn finish(router: OpenApiRouter<Arc<AppState>>) -> OpenApiRouter<Arc<AppState>> {
    let mut router = router;
    for (path, item) in &mut router.get_openapi_mut().paths.paths {
        for operation in operations(item) {
            complete(path, operation);
        }
    }
    router
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete].into_iter().flatten()
}

fn complete(path: &str, operation: &mut Operation) {
    // utoipa takes a body for optional only if it may also be null.
    if let Some(RefOr::T(body)) = &mut operation.request_body
        && body.description.as_deref() == Some(OPTIONAL)
    {
        body.required = Some(Required::False);
    }
    let has_body = operation.request_body.is_some();
    let has_params = operation.parameters.as_ref().is_some_and(|all| !all.is_empty());
    // No `security` of its own means the document's: a bearer token.
    let needs_token = operation.security.is_none();
    let health = matches!(path, "/livez" | "/readyz" | "/metrics");
    let refusals: [(bool, &str, &str); 10] = [
        (has_body, "400", "The body is broken"),
        (needs_token, "401", "No token, or one that is not accepted"),
        (needs_token, "403", "The caller may not do this"),
        (path.contains("{id}"), "404", "There is no such thing, or it is not the caller's"),
        (has_body, "413", "The body, or an event made of it, is too large"),
        (has_body, "415", "The body is not JSON"),
        (has_body || has_params, "422", "Fields, parameters or headers are wrong; `errors` names each"),
        (needs_token, "429", "More requests than a user may make; none for operators and workers"),
        (!health, "500", "A bug; the log has more under the request id"),
        (!health, "503", "Busy, stopping, or the store is away; `retry_safe` says whether to just try again"),
    ];
    let responses = &mut operation.responses.responses;
    for (can_be, status, description) in refusals {
        if can_be {
            responses
                .entry(status.to_owned())
                .or_insert_with(|| RefOr::T(ResponseBuilder::new().description(description).build()));
        }
    }
    for (status, response) in responses.iter_mut() {
        if let RefOr::T(response) = response {
            if status.as_str() >= "400" && response.content.is_empty() {
                response.content.insert(PROBLEM_JSON.to_owned(), problem_content().into());
            }
            add_header(response, "x-request-id", "Names this request in the log", Type::String);
            match status.as_str() {
                "401" => add_header(response, "www-authenticate", "How to authenticate", Type::String),
                "429" | "503" => add_header(response, "retry-after", "Seconds to wait", Type::Integer),
                _ => {}
            }
        }
    }
}

fn problem_content() -> Content {
    ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build()
}

fn add_header(response: &mut Response, name: &str, description: &str, kind: Type) {
    let header = HeaderBuilder::new()
        .schema(Some(ObjectBuilder::new().schema_type(kind).build()))
        .description(Some(description))
        .build();
    response.headers.insert(name.to_owned(), header.into());
}

/// Serves a document, encoded once.
pub(super) fn handler(
    document: String,
) -> impl Fn() -> std::future::Ready<axum::response::Response> + Clone + Send + Sync + 'static {
    let text = Bytes::from(document);
    move || {
        let answer = ([(header::CONTENT_TYPE, "application/json")], text.clone()).into_response();
        std::future::ready(answer)
    }
}

/// The document to browse and try, at `/api/docs`.
pub(super) fn browser() -> Router {
    let ui = SwaggerUi::new("/api/docs").config(Config::new(["/api/openapi.json"]).use_base_layout());
    super::for_browsers(Router::from(ui), POLICY)
}
