//! Which pages may connect: the gateway's own, those on this machine, and those listed.

use axum::http::{HeaderMap, HeaderValue, header};
use url::{Host, Url};

/// Origins that are let in.
#[derive(Clone, Debug)]
pub(super) struct Origins {
    listed: Vec<String>,
    any: bool,
}

impl Origins {
    pub fn new(allowed: &[String]) -> Self {
        Self { listed: allowed.to_vec(), any: allowed.iter().any(|origin| origin == "*") }
    }

    /// May a request with these headers connect? Programs send no `Origin`, pages cannot
    /// leave it out.
    pub fn allow(&self, headers: &HeaderMap) -> bool {
        headers.get(header::ORIGIN).is_none_or(|origin| self.allow_origin(origin, headers.get(header::HOST)))
    }

    /// May pages of `origin` talk to this gateway, reached as `host`?
    pub fn allow_origin(&self, origin: &HeaderValue, host: Option<&HeaderValue>) -> bool {
        if self.any {
            return true;
        }
        let Ok(origin) = origin.to_str() else { return false };
        if self.listed.iter().any(|listed| listed.eq_ignore_ascii_case(origin)) {
            return true;
        }
        let Ok(url) = Url::parse(origin) else { return false };
        if !matches!(url.scheme(), "http" | "https") {
            return false;
        }
        self.listed.is_empty() && is_loopback(&url) || is_host(&url, host)
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// The page came from the host that it now connects to.
fn is_host(url: &Url, host: Option<&HeaderValue>) -> bool {
    let Some(host) = host.and_then(|host| host.to_str().ok()) else { return false };
    // The scheme settles the default port.
    Url::parse(&format!("{}://{host}", url.scheme())).is_ok_and(|own| own.origin() == url.origin())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(allowed: &[&str], origin: Option<&str>, host: &str) -> bool {
        let allowed: Vec<String> = allowed.iter().map(|&origin| origin.to_owned()).collect();
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        Origins::new(&allowed).allow(&headers)
    }

    #[test]
    fn own_page_loopback_and_programs_may_connect() {
        assert!(allows(&[], None, "gw.example"));
        assert!(allows(&[], Some("https://gw.example"), "gw.example"));
        assert!(allows(&[], Some("https://gw.example"), "gw.example:443"));
        assert!(allows(&[], Some("http://gw.example:8080"), "gw.example:8080"));
        assert!(allows(&[], Some("http://localhost:5173"), "gw.example"));
        assert!(allows(&[], Some("http://127.0.0.1:1"), "gw.example"));
        assert!(allows(&[], Some("http://[::1]:1"), "gw.example"));
    }

    #[test]
    fn other_pages_may_not() {
        for origin in [
            "https://evil.example",
            "http://gw.example:9999",
            "https://gw.example.evil.example",
            "http://localhost.evil.example",
            "null",
            "file://",
            "garbage",
        ] {
            assert!(!allows(&[], Some(origin), "gw.example"), "{origin}");
        }
    }

    #[test]
    fn a_list_replaces_loopback_but_not_the_own_page() {
        let list = ["https://portal.example"];
        assert!(allows(&list, Some("https://portal.example"), "gw.example"));
        assert!(allows(&list, Some("https://gw.example"), "gw.example"));
        assert!(!allows(&list, Some("http://localhost:5173"), "gw.example"));
        assert!(allows(&["*"], Some("https://anything.example"), "gw.example"));
    }
}
