//! Every metric of the gateway as a typed handle. Labels are enums or names that are
//! fixed at start-up: no ids, no user input.

use std::marker::PhantomData;
use std::ops::Index;
use std::sync::Arc;

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::domain::Broker;

/// A closed set of label values.
pub trait Label: Copy + 'static {
    /// The label's name.
    const NAME: &'static str;
    /// Every value; its place here is [`Label::index`].
    const ALL: &'static [Self];

    fn text(self) -> &'static str;

    fn index(self) -> usize;
}

macro_rules! labels {
    ($(#[$meta:meta])* $name:ident in $label:literal { $($(#[$vmeta:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$vmeta])* $variant),+
        }

        impl Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn text(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

labels! {
    /// What was accepted: one per unit that was committed.
    Accepted in "kind" {
        Job = "job",
        Cancel = "cancel",
        Retry = "retry",
        Claim = "claim",
        Heartbeat = "heartbeat",
        Status = "status",
        Samples = "samples",
        Event = "event",
        /// Read and dismissed notifications and the like.
        Other = "other",
    }
}

labels! {
    /// Why a request was refused.
    Rejected in "reason" {
        Validation = "validation",
        Unauthenticated = "unauthenticated",
        Forbidden = "forbidden",
        NotFound = "not_found",
        Conflict = "conflict",
        TooLarge = "too_large",
        RateLimited = "rate_limited",
        /// The intake queue is full.
        Busy = "busy",
        /// The store could not commit.
        Unavailable = "unavailable",
        OutcomeUnknown = "outcome_unknown",
        Timeout = "timeout",
        ShuttingDown = "shutting_down",
        Internal = "internal",
    }
}

labels! {
    /// Why a publish was not confirmed.
    PublishFailure in "kind" {
        Permanent = "permanent",
        Transient = "transient",
        Down = "down",
    }
}

labels! {
    /// Why a handler failed.
    FailureClass in "class" {
        Transient = "transient",
        Permanent = "permanent",
        /// The message could not be decoded.
        Undecodable = "undecodable",
    }
}

labels! {
    /// Where an entry of the backlog stands.
    BacklogState in "state" {
        Retrying = "retrying",
        Parked = "parked",
    }
}

labels! {
    /// Which rows were deleted with age.
    PrunedRows in "kind" {
        Jobs = "jobs",
        Events = "events",
        Inbox = "inbox",
        Audit = "audit",
        Aggregates = "aggregates",
        Idempotency = "idempotency",
    }
}

labels! {
    /// Why a socket was told to start over from a snapshot.
    Resync in "reason" {
        /// It did not read its updates in time.
        SlowReader = "slow_reader",
        /// It missed more than can be replayed.
        TooFarBehind = "too_far_behind",
        /// What it missed is no longer kept.
        Expired = "expired",
        /// Its offset is ahead of the channel.
        UnknownOffset = "unknown_offset",
    }
}

impl Label for Broker {
    const NAME: &'static str = "broker";
    const ALL: &'static [Self] = &Broker::ALL;

    fn text(self) -> &'static str {
        self.as_str()
    }

    fn index(self) -> usize {
        self as usize - 1
    }
}

/// One metric for each value of a label, looked up without hashing.
#[derive(Clone, Debug)]
pub struct ByLabel<L, M> {
    metrics: Vec<M>,
    label: PhantomData<L>,
}

impl<L: Label, M> ByLabel<L, M> {
    fn new(of: impl Fn(&str) -> M) -> Self {
        Self { metrics: L::ALL.iter().map(|label| of(label.text())).collect(), label: PhantomData }
    }
}

impl<L: Label, M> Index<L> for ByLabel<L, M> {
    type Output = M;

    fn index(&self, label: L) -> &M {
        &self.metrics[label.index()]
    }
}

/// The metrics of one consumer. Clones share their values.
#[derive(Clone, Debug)]
pub struct ConsumerMetrics {
    /// From the making of an event to the commit of its effect, in seconds.
    pub consume_seconds: Histogram,
    /// A batch in the handler, in seconds.
    pub handler_seconds: Histogram,
    pub handler_errors: ByLabel<FailureClass, IntCounter>,
    /// Repeats that the inbox absorbed.
    pub inbox_hits: IntCounter,
    /// Events handed over from the store because their message never came.
    pub overdue: IntCounter,
    pub backlog_entries: ByLabel<BacklogState, IntGauge>,
    pub dead_letters: IntGauge,
    pub lag_messages: IntGauge,
    /// Age of the oldest message that is not settled.
    pub lag_seconds: Gauge,
}

/// Every metric of this process. Each instance has its own registry.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub accepted: ByLabel<Accepted, IntCounter>,
    pub rejected: ByLabel<Rejected, IntCounter>,
    /// From a request's arrival to its answer, in seconds; without probes and sockets.
    pub response_seconds: Histogram,
    /// Rows of one commit.
    pub commit_batch_rows: Histogram,
    /// One commit, from BEGIN to the end of COMMIT, in seconds.
    pub commit_seconds: Histogram,
    /// Events committed: over the commits of [`Metrics::commit_seconds`], events per fsync.
    pub committed_events: IntCounter,
    /// Memory of the requests that wait to be committed.
    pub intake_queue_bytes: IntGauge,
    /// Legs that are not done.
    pub outbox_backlog: ByLabel<Broker, IntGauge>,
    /// Age of the oldest of them.
    pub outbox_oldest_seconds: ByLabel<Broker, Gauge>,
    /// One window, from the call to its last confirm, in seconds.
    pub publish_seconds: ByLabel<Broker, Histogram>,
    publish_errors: IntCounterVec,
    /// Rows deleted because of their age.
    pub pruned: ByLabel<PrunedRows, IntCounter>,
    pub sockets_connected: IntGauge,
    /// Updates handed to sockets.
    pub socket_deliveries: IntCounter,
    pub socket_resyncs: ByLabel<Resync, IntCounter>,
    /// From a POST's arrival to the arrival of a browser's ack for what it caused.
    pub submit_to_screen_seconds: Histogram,
    component_up: IntGaugeVec,
    component_degraded: IntGaugeVec,
    consumers: ConsumerVecs,
}

#[derive(Debug)]
struct ConsumerVecs {
    consume_seconds: HistogramVec,
    handler_seconds: HistogramVec,
    handler_errors: IntCounterVec,
    inbox_hits: IntCounterVec,
    overdue: IntCounterVec,
    backlog_entries: IntGaugeVec,
    dead_letters: IntGaugeVec,
    lag_messages: IntGaugeVec,
    lag_seconds: GaugeVec,
}

/// Half a millisecond to ten seconds: requests, commits, publishes.
const LATENCY: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0];

/// A millisecond to five minutes: what may wait for a retry.
const DELAY: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

const ROWS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

const CONSUMER: &str = "consumer";

impl Metrics {
    pub fn new() -> Arc<Self> {
        let build = Builder { registry: Registry::new() };
        let consumers = ConsumerVecs {
            consume_seconds: build.histograms(
                "consume_seconds",
                "From the making of an event to the commit of a consumer's effect.",
                DELAY,
                &[CONSUMER],
            ),
            handler_seconds: build.histograms("handler_seconds", "One batch in a handler.", LATENCY, &[CONSUMER]),
            handler_errors: build.counters(
                "handler_errors_total",
                "Messages whose handler failed.",
                &[CONSUMER, FailureClass::NAME],
            ),
            inbox_hits: build.counters("inbox_hits_total", "Repeats that the inbox absorbed.", &[CONSUMER]),
            overdue: build.counters(
                "overdue_total",
                "Events handed over from the store because their message never came.",
                &[CONSUMER],
            ),
            backlog_entries: build.gauges(
                "backlog_entries",
                "Deliveries that wait for a retry or behind one.",
                &[CONSUMER, BacklogState::NAME],
            ),
            dead_letters: build.gauges("dead_letters", "Deliveries given up.", &[CONSUMER]),
            lag_messages: build.gauges("consumer_lag_messages", "Messages that are not settled.", &[CONSUMER]),
            lag_seconds: build.register(GaugeVec::new(
                opts(
                    "consumer_lag_seconds",
                    "Age that the oldest message that is not handled has at most; 0 when none waits.",
                ),
                &[CONSUMER],
            )),
        };
        let publish_errors = build.counters(
            "publish_errors_total",
            "Messages a broker did not confirm.",
            &[Broker::NAME, PublishFailure::NAME],
        );
        for broker in Broker::ALL {
            for kind in PublishFailure::ALL {
                publish_errors.with_label_values(&[broker.text(), kind.text()]);
            }
        }
        let build_info = build.gauges("build_info", "The version that runs.", &["version"]);
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let metrics = Self {
            accepted: build.counter_by("accepted_total", "Units committed for callers."),
            rejected: build.counter_by("rejected_total", "Requests refused."),
            response_seconds: build.histogram("response_seconds", "From a request's arrival to its answer.", LATENCY),
            commit_batch_rows: build.histogram("commit_batch_rows", "Rows of one commit.", ROWS),
            commit_seconds: build.histogram("commit_seconds", "One commit of the store.", LATENCY),
            committed_events: build
                .register(IntCounter::with_opts(opts("committed_events_total", "Events committed."))),
            intake_queue_bytes: build.gauge("intake_queue_bytes", "Memory of requests waiting to be committed."),
            outbox_backlog: build.gauge_by("outbox_backlog", "Legs that are not done."),
            outbox_oldest_seconds: {
                let help = "Age of the oldest leg that is not done.";
                let vec: GaugeVec = build.register(GaugeVec::new(opts("outbox_oldest_seconds", help), &[Broker::NAME]));
                ByLabel::new(|broker| vec.with_label_values(&[broker]))
            },
            publish_seconds: {
                let vec =
                    build.histograms("publish_seconds", "One window until its last confirm.", LATENCY, &[Broker::NAME]);
                ByLabel::new(|broker| vec.with_label_values(&[broker]))
            },
            publish_errors,
            pruned: build.counter_by("pruned_rows_total", "Rows deleted because of their age."),
            sockets_connected: build.gauge("sockets_connected", "Sockets connected."),
            socket_deliveries: build
                .register(IntCounter::with_opts(opts("socket_deliveries_total", "Updates handed to sockets."))),
            socket_resyncs: build.counter_by("socket_resyncs_total", "Sockets told to start over from a snapshot."),
            submit_to_screen_seconds: build.histogram(
                "submit_to_screen_seconds",
                "From a POST's arrival to the arrival of a browser's ack for what it caused.",
                DELAY,
            ),
            component_up: build.gauges("component_up", "1 while a component works, else 0.", &["component"]),
            component_degraded: build.gauges(
                "component_degraded",
                "1 while a component works, but not all of it, else 0; /api/v1/health/components says what.",
                &["component"],
            ),
            consumers,
            registry: build.registry,
        };
        #[cfg(target_os = "linux")]
        metrics
            .registry
            .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
            .expect("process metrics have names of their own");
        Arc::new(metrics)
    }

    /// The metrics of the consumer called `name`, one of the configured ones.
    pub fn consumer(&self, name: &str) -> ConsumerMetrics {
        let vecs = &self.consumers;
        let own = &[name];
        ConsumerMetrics {
            consume_seconds: vecs.consume_seconds.with_label_values(own),
            handler_seconds: vecs.handler_seconds.with_label_values(own),
            handler_errors: ByLabel::new(|class| vecs.handler_errors.with_label_values(&[name, class])),
            inbox_hits: vecs.inbox_hits.with_label_values(own),
            overdue: vecs.overdue.with_label_values(own),
            backlog_entries: ByLabel::new(|state| vecs.backlog_entries.with_label_values(&[name, state])),
            dead_letters: vecs.dead_letters.with_label_values(own),
            lag_messages: vecs.lag_messages.with_label_values(own),
            lag_seconds: vecs.lag_seconds.with_label_values(own),
        }
    }

    /// Messages that `broker` did not confirm, by why.
    pub fn publish_errors(&self, broker: Broker, kind: PublishFailure) -> IntCounter {
        self.publish_errors.with_label_values(&[broker.text(), kind.text()])
    }

    /// Is `component` (a name fixed in the program) working?
    pub fn component_up(&self, component: &'static str) -> IntGauge {
        self.component_up.with_label_values(&[component])
    }

    /// Does `component` work, but not all of it?
    pub fn component_degraded(&self, component: &'static str) -> IntGauge {
        self.component_degraded.with_label_values(&[component])
    }

    /// Everything in the Prometheus text format (version 0.0.4).
    pub fn render(&self) -> String {
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics could not be encoded");
        }
        text
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("event_gateway")
}

/// Makes and registers metrics. All names are constants here, so nothing can clash.
struct Builder {
    registry: Registry,
}

impl Builder {
    fn register<M: Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        let metric = metric.expect("names and labels are constants and valid");
        self.registry.register(Box::new(metric.clone())).expect("no two metrics share a name");
        metric
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(opts(name, help), labels))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(opts(name, help), labels))
    }

    fn histograms(&self, name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> HistogramVec {
        let opts = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
        self.register(HistogramVec::new(opts, labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.register(Histogram::with_opts(HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec())))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::with_opts(opts(name, help)))
    }

    fn counter_by<L: Label>(&self, name: &str, help: &str) -> ByLabel<L, IntCounter> {
        let vec = self.counters(name, help, &[L::NAME]);
        ByLabel::new(|label| vec.with_label_values(&[label]))
    }

    fn gauge_by<L: Label>(&self, name: &str, help: &str) -> ByLabel<L, IntGauge> {
        let vec = self.gauges(name, help, &[L::NAME]);
        ByLabel::new(|label| vec.with_label_values(&[label]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_of_the_specification_is_rendered() {
        let metrics = Metrics::new();
        let consumer = metrics.consumer("orchestrator");
        metrics.component_up("store").set(1);
        metrics.component_degraded("store").set(0);
        consumer.inbox_hits.inc();
        let text = metrics.render();
        for name in [
            "accepted_total{kind=\"job\"}",
            "rejected_total{reason=\"busy\"}",
            "response_seconds_bucket",
            "commit_batch_rows_bucket",
            "commit_seconds_bucket",
            "intake_queue_bytes",
            "outbox_backlog{broker=\"nats\"}",
            "outbox_oldest_seconds{broker=\"kafka\"}",
            "publish_seconds_bucket{broker=\"rabbitmq\"",
            "publish_errors_total{broker=\"kafka\",kind=\"down\"}",
            "pruned_rows_total{kind=\"events\"}",
            "consume_seconds_bucket{consumer=\"orchestrator\"",
            "handler_seconds_bucket{consumer=\"orchestrator\"",
            "handler_errors_total{class=\"permanent\",consumer=\"orchestrator\"}",
            "inbox_hits_total{consumer=\"orchestrator\"} 1",
            "overdue_total{consumer=\"orchestrator\"} 0",
            "backlog_entries{consumer=\"orchestrator\",state=\"parked\"}",
            "dead_letters{consumer=\"orchestrator\"}",
            "consumer_lag_messages{consumer=\"orchestrator\"}",
            "consumer_lag_seconds{consumer=\"orchestrator\"}",
            "sockets_connected",
            "socket_deliveries_total",
            "socket_resyncs_total{reason=\"slow_reader\"}",
            "submit_to_screen_seconds_bucket",
            "component_up{component=\"store\"} 1",
            "component_degraded{component=\"store\"} 0",
            "build_info{version=",
        ] {
            assert!(text.contains(&format!("\nevent_gateway_{name}")), "{name} is missing in\n{text}");
        }
        assert!(text.contains("\nprocess_resident_memory_bytes"), "{text}");
    }

    #[test]
    fn a_label_indexes_its_own_metric() {
        let metrics = Metrics::new();
        for broker in Broker::ALL {
            metrics.outbox_backlog[broker].set(broker as i64);
        }
        metrics.rejected[Rejected::Internal].inc();
        let text = metrics.render();
        for broker in Broker::ALL {
            let line = format!("outbox_backlog{{broker=\"{broker}\"}} {}", broker as i64);
            assert!(text.contains(&line), "{line}");
        }
        assert!(text.contains("rejected_total{reason=\"internal\"} 1"));
    }

    #[test]
    fn instances_do_not_share_values() {
        let (one, other) = (Metrics::new(), Metrics::new());
        one.socket_deliveries.inc();
        assert_eq!(other.socket_deliveries.get(), 0);
    }
}
