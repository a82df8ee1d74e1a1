//! Which schemas a program works on: its own, and newer ones that let it.
//!
//! Migrations only add, so that the version before goes on beside a newer one. The name of
//! one that does not begins with the oldest program that may run on it: `0007_needs_6_...`
//! is for programs that know migration 6. The database keeps the names, so a program finds
//! there what migrations say that it has never seen.

use sqlx::migrate::Migrator;

use super::StoreError;

/// What opening a store does about migrations that it has not seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Migrations {
    /// They are applied: gateways, whose operators restart them one by one.
    #[default]
    Apply,
    /// They are left to a gateway: commands that run beside one.
    Leave,
}

/// The migrations that a database has seen: (version, name), oldest first.
pub(super) const APPLIED: &str = "SELECT version, description FROM _sqlx_migrations WHERE success ORDER BY version";

/// Does `ours` work on a schema that has seen `applied`?
///
/// # Errors
/// It is older, or newer and not for this program.
pub(super) fn check(ours: &Migrator, applied: &[(i64, String)], place: &str) -> Result<(), StoreError> {
    let newest = newest(ours);
    let unavailable = |why: String| Err(StoreError::Unavailable(why));
    if applied.is_empty() {
        return unavailable(format!("{place} has no schema yet; start a gateway on it first"));
    }
    if let Some(missing) = ours.iter().find(|ours| applied.iter().all(|(version, _)| *version != ours.version)) {
        let found = applied.last().map_or(0, |(version, _)| *version);
        return unavailable(format!(
            "the schema of {place} is at version {found}, this program needs {newest} (it lacks {} {}); use the \
             program of the gateway that runs on it, or start a gateway of this version, which migrates it",
            missing.version, missing.description
        ));
    }
    for (version, name) in applied.iter().filter(|(version, _)| *version > newest) {
        if let Some(needed) = needed(name).filter(|needed| *needed > newest) {
            return unavailable(format!(
                "the schema of {place} is at version {version} ({name}), which programs that know version {needed} can \
                 use; this one knows {newest}: start a newer version, or restore a backup from before the migration"
            ));
        }
    }
    Ok(())
}

/// [`Migrator`] that lets newer migrations be; [`check`] judges them.
pub(super) fn lenient(mut ours: Migrator) -> Migrator {
    ours.set_ignore_missing(true);
    ours
}

fn newest(ours: &Migrator) -> i64 {
    ours.iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// The oldest program that a migration of this name lets run.
fn needed(name: &str) -> Option<i64> {
    let rest = name.strip_prefix("needs ")?;
    // Who cannot read the number is older than the way it is written.
    Some(rest.split(' ').next().and_then(|version| version.parse().ok()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> Migrator {
        sqlx::migrate!("migrations/postgres")
    }

    fn seen(more: &[(i64, &str)]) -> Vec<(i64, String)> {
        let ours = ours();
        let known = ours.iter().map(|migration| (migration.version, migration.description.to_string()));
        known.chain(more.iter().map(|(version, name)| (*version, (*name).to_owned()))).collect()
    }

    fn judged(more: &[(i64, &str)]) -> Result<(), String> {
        check(&ours(), &seen(more), "a place").map_err(|error| error.to_string())
    }

    #[test]
    fn newer_migrations_that_only_add_are_fine() {
        assert_eq!(judged(&[]), Ok(()));
        assert_eq!(judged(&[(9_000, "a column"), (9_001, "needs_no_name")]), Ok(()));
    }

    #[test]
    fn a_newer_migration_says_who_may_run_on_it() {
        let newest = newest(&ours());
        assert_eq!(judged(&[(9_000, &format!("needs {newest} drop a column"))]), Ok(()));
        let refused = judged(&[(9_000, "a column"), (9_001, "needs 9000 drop another")]).unwrap_err();
        for part in ["a place", "9001", "needs 9000 drop another", &format!("knows {newest}")] {
            assert!(refused.contains(part), "{part}: {refused}");
        }
        assert!(judged(&[(9_000, "needs nothing that can be read")]).is_err());
    }

    #[test]
    fn an_older_schema_is_named() {
        let mut applied = seen(&[]);
        applied.pop();
        let found = applied.last().map_or(0, |(version, _)| *version);
        let refused = check(&ours(), &applied, "a place").unwrap_err().to_string();
        assert!(refused.contains(&format!("at version {found}")), "{refused}");
        assert!(check(&ours(), &[], "a place").unwrap_err().to_string().contains("no schema yet"));
    }

    #[test]
    fn our_own_names_name_versions_that_exist() {
        for ours in [ours(), sqlx::migrate!("migrations/sqlite")] {
            for migration in ours.iter() {
                let needed = needed(&migration.description);
                assert!(needed.is_none_or(|needed| needed <= migration.version), "{}", migration.description);
            }
        }
    }
}
