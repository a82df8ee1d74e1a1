//! The page, or how to build it.

use axum::http::StatusCode;

use super::*;

/// The page is whatever `web/dist` has now: built or not, `/` answers.
fn is_built() -> bool {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/web/dist/index.html")).exists()
}

#[tokio::test]
async fn the_page_and_its_own_paths() {
    let gateway = Gateway::start().await;
    for path in ["/", "/jobs", "/jobs/0199aaaa-0000-7000-8000-000000000000", "/settings"] {
        let reply = gateway.get(path).without("authorization").send().await;
        assert_eq!(reply.status, StatusCode::OK, "{path}");
        assert!(reply.header("content-type").unwrap().starts_with("text/html"), "{path}");
        let policy = reply.header("content-security-policy").unwrap();
        assert!(policy.contains("script-src 'self';") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        let text = String::from_utf8(reply.body.to_vec()).unwrap();
        if is_built() {
            assert!(text.contains("/assets/"), "{text}");
        } else {
            assert!(text.contains("make page"), "{text}");
        }
        assert!(!text.contains("<script>"), "the policy forbids inline scripts");
    }
}

#[tokio::test]
async fn files_that_are_not_there() {
    let gateway = Gateway::start().await;
    for path in
        ["/assets/none.js", "/nothing.css", "/..%2F..%2FCargo.toml", "/../Cargo.toml", "/assets/../../Cargo.toml"]
    {
        gateway.get(path).send().await.problem(404, "no-such-route");
    }
}

#[tokio::test]
async fn hashed_assets_are_kept_and_the_rest_is_asked_for_again() {
    if !is_built() {
        return;
    }
    let gateway = Gateway::start().await;
    let index = gateway.get("/").send().await;
    assert_eq!(index.header("cache-control"), Some("no-cache"));
    let etag = index.header("etag").unwrap().to_owned();
    let again = gateway.get("/").header("if-none-match", &etag).send().await;
    assert_eq!((again.status, again.body.len()), (StatusCode::NOT_MODIFIED, 0));

    let text = String::from_utf8(index.body.to_vec()).unwrap();
    let start = text.find("/assets/").unwrap();
    let path = text[start..].split('"').next().unwrap();
    let asset = gateway.get(path).header("accept-encoding", "gzip").send().await;
    assert_eq!(asset.status, StatusCode::OK);
    assert_eq!(asset.header("cache-control"), Some("public, max-age=31536000, immutable"));
    assert_eq!(asset.header("content-encoding"), Some("gzip"));
}

#[tokio::test]
async fn the_documentation_is_browsable_offline() {
    let gateway = Gateway::start().await;
    let moved = gateway.get("/api/docs").send().await;
    assert_eq!((moved.status, moved.header("location")), (StatusCode::SEE_OTHER, Some("/api/docs/")));
    let index = gateway.get("/api/docs/").send().await;
    let text = String::from_utf8(index.body.to_vec()).unwrap();
    assert!(index.header("content-security-policy").unwrap().contains("script-src 'self';"));
    for part in text.split("src=\"").skip(1).chain(text.split("href=\"").skip(1)) {
        let file = part.split('"').next().unwrap().trim_start_matches("./");
        assert!(!file.starts_with("http"), "{file} is not here");
        let reply = gateway.get(&format!("/api/docs/{file}")).send().await;
        assert_eq!(reply.status, StatusCode::OK, "{file}");
    }
    assert!(!text.contains("<script>"), "the policy forbids inline scripts");
    let start = gateway.get("/api/docs/swagger-initializer.js").send().await;
    assert!(String::from_utf8_lossy(&start.body).contains("/api/openapi.json"));
    gateway.get("/api/docs/none.js").send().await.problem(404, "no-such-route");
}
