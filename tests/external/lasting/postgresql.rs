//! PostgreSQL is there, but takes nothing.

use super::user::User;
use super::{AROUND, FROZEN, IMPATIENT, frozen, outlives, survives, world};
use crate::aftermath::all_is_well;
use crate::gateway::Gateway;
use crate::play::psql;
use crate::readiness::until;

#[test]
#[ignore = "freezes PostgreSQL: make test-faults"]
fn postgresql_is_frozen() {
    survives(&IMPATIENT, FROZEN, Some("store"), |_| frozen("postgres"));
}

/// As a primary that becomes a standby, and a primary again. Meanwhile what is answered is 201 or a
/// 503 that may be repeated.
#[test]
#[ignore = "long: make test-faults"]
fn postgresql_is_read_only() {
    let Some(world) = world() else { return };
    let database = &world.database;
    let set = |on: &str| {
        psql("postgres", &format!("ALTER DATABASE {database} SET default_transaction_read_only = {on}"));
        let sessions = format!("FROM pg_stat_activity WHERE datname = '{database}'");
        psql("postgres", &format!("SELECT count(pg_terminate_backend(pid)) {sessions}"));
    };
    let meanwhile = |gateway: &Gateway| {
        let user = User::of(gateway);
        set("on");
        let accepted = user.is_refused_for(FROZEN);
        until(gateway, &["store"]);
        set("off");
        until(gateway, &[]);
        user.finds(&accepted);
    };
    outlives(&world, &[], FROZEN + AROUND, meanwhile, all_is_well);
}
