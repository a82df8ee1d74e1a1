//! What operators ask: where an event is, what waits, what is broken.

pub mod ledger;
pub mod reconcile;
