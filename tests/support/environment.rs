//! What the environment gives the tests: `scripts/brokers env tests` prints it.

/// A variable that is set to something.
pub fn given(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// `found`; where there is nothing, says so, or fails if `REQUIRE_BROKERS=1`.
pub fn or_skip<T>(found: Option<T>, missing: &str) -> Option<T> {
    if found.is_none() {
        let required = given("REQUIRE_BROKERS").is_some_and(|value| value == "1");
        assert!(!required, "REQUIRE_BROKERS=1, but {missing}");
        eprintln!("SKIPPED: {missing}");
    }
    found
}

/// A variable that a test needs.
pub fn variable(name: &str) -> Option<String> {
    or_skip(given(name), &format!("{name} is not set"))
}
