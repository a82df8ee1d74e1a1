//! Start-up checks over all declarations together.

use std::collections::{BTreeMap, BTreeSet};

use super::Declaration;
use crate::domain::catalogue::Catalogue;

/// Everything wrong with a set of consumers: unknown types, names used twice, circles of
/// "handling A emits B".
pub fn check(declarations: &[Declaration], catalogue: &Catalogue) -> Result<(), Vec<String>> {
    let mut problems = Vec::new();
    let mut names = BTreeSet::new();
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for declaration in declarations {
        if !names.insert(declaration.name) {
            problems.push(format!("two consumers are called {}", declaration.name));
        }
        for (consumed, emitted) in declaration.consumes {
            for name in emitted.iter().chain([consumed]) {
                if catalogue.get(name).is_none() {
                    problems.push(format!("consumer {}: type {name} is not in the catalogue", declaration.name));
                }
            }
            edges.entry(consumed).or_default().extend(emitted.iter().copied());
        }
    }
    for start in edges.keys() {
        if let Some(path) = circle(start, &edges) {
            problems.push(format!("consumers go in a circle: {}", path.join(" -> ")));
            break;
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// The path from `start` back to itself, if there is one.
fn circle<'t>(start: &'t str, edges: &BTreeMap<&'t str, BTreeSet<&'t str>>) -> Option<Vec<&'t str>> {
    fn walk<'t>(
        at: &'t str,
        start: &'t str,
        edges: &BTreeMap<&'t str, BTreeSet<&'t str>>,
        seen: &mut BTreeSet<&'t str>,
        path: &mut Vec<&'t str>,
    ) -> bool {
        path.push(at);
        for next in edges.get(at).into_iter().flatten() {
            if *next == start {
                path.push(next);
                return true;
            }
            if seen.insert(next) && walk(next, start, edges, seen, path) {
                return true;
            }
        }
        path.pop();
        false
    }
    let mut path = Vec::new();
    walk(start, start, edges, &mut BTreeSet::new(), &mut path).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circle_is_found_and_named() {
        let edges: BTreeMap<&str, BTreeSet<&str>> =
            [("a", ["b"].into()), ("b", ["c"].into()), ("c", ["a"].into())].into();
        assert_eq!(circle("a", &edges), Some(vec!["a", "b", "c", "a"]));
    }

    #[test]
    fn a_chain_is_no_circle() {
        let edges: BTreeMap<&str, BTreeSet<&str>> = [("a", ["b"].into()), ("b", ["c"].into())].into();
        assert_eq!(circle("a", &edges), None);
    }
}
