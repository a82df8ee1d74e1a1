//! The contract of the store port: one suite, run on every adapter.

mod arrivals;
#[path = "../support/environment.rs"]
mod environment;
mod fixture;
mod migrations;
mod postgres;
mod retention;
mod suite;

use std::sync::Arc;

use event_gateway::store::Store;
use event_gateway::store::sqlite::SqliteStore;
use futures_util::future::LocalBoxFuture;

use fixture::{Opened, factory};

/// A fresh SQLite store in a directory of its own.
async fn sqlite() -> Option<Opened> {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("gateway.db");
    let again = Box::new(move || {
        let file = file.clone();
        Box::pin(async move {
            let store = SqliteStore::open(&file, factory()).await.expect("a store");
            Arc::new(store) as Arc<dyn Store>
        }) as LocalBoxFuture<'static, Arc<dyn Store>>
    });
    let store = again().await;
    Some(Opened { store, again, _keep: Arc::new(dir) })
}

/// Runs every promise on the stores that `$open` makes.
macro_rules! contract {
    ($open:path) => {
        promises!(
            $open, suite:
            a_repeat_of_a_key_is_answered_from_the_first,
            what_was_committed_is_there_when_it_is_opened_again,
            a_large_job_comes_back_whole,
            two_units_of_one_key_in_a_batch_are_one,
            a_refused_unit_leaves_nothing_and_others_go_through,
            numbers_have_no_gaps_over_batches,
            a_message_has_its_effect_once,
            later_events_of_a_failed_key_park_and_come_back_in_order,
            what_is_delivered_again_keeps_its_place_in_the_backlog,
            a_dead_head_keeps_its_key_blocked,
            consumers_without_order_park_nothing,
            claims_take_the_best_job_and_only_once,
            a_stale_report_is_refused_and_a_repeat_writes_nothing,
            marks_settle_legs_and_never_unsettle_them,
            lost_log_tails_reopen_their_legs,
            what_a_broker_has_lost_is_owed_again,
            channels_replay_exactly_or_say_snapshot,
            folds_add_up_within_and_over_batches,
            lists_page_without_holes,
            due_retries_and_lapsed_leases_are_found,
            what_there_is_to_do_is_counted,
            a_read_model_adds_up_from_a_key_on,
        );
        promises!(
            $open, retention:
            ended_jobs_go_with_all_that_is_theirs,
            open_legs_backlog_rows_and_open_jobs_keep_what_they_need,
            a_cursor_older_than_what_is_kept_gets_a_snapshot,
            the_inbox_outlives_its_events,
            a_dry_run_counts_and_deletes_nothing,
            steps_are_bounded_and_numbers_go_on,
            answers_and_minutes_go_by_age,
            epochs_count_up_per_instance,
            a_lease_that_is_renewed_goes_on,
        );
        promises!(
            $open, arrivals:
            what_has_not_arrived_is_found,
            what_was_overtaken_is_handed_over_and_what_lags_is_not,
            a_leg_that_was_open_for_long_is_not_forgotten,
            history_is_not_owed_to_a_new_consumer,
        );
    };
}

macro_rules! promises {
    ($open:path, $suite:ident: $($name:ident),+ $(,)?) => {
        $(#[tokio::test]
        async fn $name() {
            if let Some(opened) = $open().await {
                crate::$suite::$name(&opened).await;
            }
        })+
    };
}

mod on_sqlite {
    contract!(crate::sqlite);
}

mod on_postgres {
    contract!(crate::postgres::open);
}
