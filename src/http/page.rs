//! The page: files of `web/dist`, compiled in (read from disk by debug builds).

use std::borrow::Cow;

use axum::Router;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{Html, IntoResponse, Response};
use rust_embed::{EmbeddedFile, RustEmbed};

use super::problem::{Kind, Problem};

/// Scripts and styles of our own only. Style attributes are set by the charts.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; \
     img-src 'self' data:; font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none'; \
     form-action 'self'; frame-ancestors 'none'";

#[derive(RustEmbed)]
#[folder = "web/dist"]
#[allow_missing = true]
struct Dist;

/// What there is when nobody has built the page.
const HOW_TO_BUILD: &str = include_str!("page.html");

/// Everything that no route has taken.
pub fn router() -> Router {
    super::for_browsers(Router::new().fallback(file), POLICY).layer(super::compression())
}

async fn file(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path();
    if is_api(path) {
        return Problem::new(Kind::NoSuchRoute, "check the path; /api/docs lists every call").into_response();
    }
    if method != Method::GET && method != Method::HEAD {
        return Problem::new(Kind::MethodNotAllowed, "the page takes GET and HEAD")
            .header(header::ALLOW, HeaderValue::from_static("GET,HEAD"))
            .into_response();
    }
    let name = path.trim_start_matches('/');
    match Dist::get(name) {
        Some(file) if !name.is_empty() => send(name, file, &headers),
        // A path of the page's own: it knows what to show there.
        _ if is_page_route(name) => index(&headers),
        _ => Problem::new(Kind::NoSuchRoute, "there is no such file").into_response(),
    }
}

fn is_api(path: &str) -> bool {
    ["/api", "/socket.io", "/metrics", "/livez", "/readyz"]
        .iter()
        .any(|root| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

/// Files have an extension, routes of the page have none.
fn is_page_route(name: &str) -> bool {
    name.rsplit('/').next().is_none_or(|last| !last.contains('.'))
}

fn index(headers: &HeaderMap) -> Response {
    shown(Dist::get("index.html"), headers)
}

fn shown(index: Option<EmbeddedFile>, headers: &HeaderMap) -> Response {
    match index {
        Some(file) => send("index.html", file, headers),
        None => ([(header::CACHE_CONTROL, "no-store")], Html(HOW_TO_BUILD)).into_response(),
    }
}

fn send(name: &str, file: EmbeddedFile, headers: &HeaderMap) -> Response {
    // Names under assets/ carry a hash of their content.
    let cache = if name.starts_with("assets/") { "public, max-age=31536000, immutable" } else { "no-cache" };
    let etag = format!("\"{}\"", hex::encode(&file.metadata.sha256_hash()[..16]));
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let same = known.split(',').any(|tag| tag.trim().trim_start_matches("W/") == etag);
    let common: [(HeaderName, Cow<'static, str>); 2] =
        [(header::CACHE_CONTROL, cache.into()), (header::ETAG, etag.into())];
    if same {
        return (StatusCode::NOT_MODIFIED, axum::response::AppendHeaders(text_headers(common))).into_response();
    }
    let media_type = file.metadata.mimetype().to_owned();
    let mut response = axum::body::Body::from(file.data.into_owned()).into_response();
    response.headers_mut().extend(text_headers(common));
    if let Ok(value) = HeaderValue::try_from(media_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    response
}

fn text_headers<const N: usize>(
    headers: [(HeaderName, Cow<'static, str>); N],
) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    headers.into_iter().filter_map(|(name, value)| Some((name, HeaderValue::try_from(&*value).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_a_page_it_says_how_to_build_one() {
        let response = shown(None, &HeaderMap::new());
        assert_eq!(response.status(), StatusCode::OK);
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert!(text.contains("make page") && text.contains("npm --prefix web ci"), "{text}");
    }
}
