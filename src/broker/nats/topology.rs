//! Streams and durable consumers: what there must be, declared where it is missing and
//! compared where it is there. What exists is never changed behind an operator's back,
//! except for a consumer's times and bounds.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, ConsumerErrorKind, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{Context, ErrorCode};

use crate::broker::{Source, Subscription};
use crate::domain::catalogue::{Catalogue, Stream, StreamKind, overlaps};

/// Unacknowledged messages of one durable consumer, over all its readers, each of which
/// keeps to its own prefetch.
const MAX_ACK_PENDING: i64 = 10_000;
/// A replica that its leader has not heard for so long is away: a leader hears each once a second.
const SILENT: Duration = Duration::from_secs(10);
/// An ephemeral consumer outlives a lost connection this long.
const EPHEMERAL_INACTIVE: Duration = Duration::from_secs(60);
const SUBJECT_OVERLAPS: ErrorCode = ErrorCode(10065);
const REPLICAS_WITHOUT_CLUSTER: ErrorCode = ErrorCode(10074);

/// What JetStream must have.
#[derive(Clone, Debug, Default)]
pub struct NatsTopology {
    pub streams: Vec<Stream>,
    /// Durable consumers: what is published before they first subscribe is kept for them.
    pub consumers: Vec<Subscription>,
}

/// How streams are kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keeping {
    pub replicas: usize,
    pub duplicate_window: Duration,
}

impl Keeping {
    pub fn new(config: &crate::config::Nats) -> Self {
        Self { replicas: config.replicas, duplicate_window: config.duplicate_window }
    }
}

/// Something that exists, but not as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// `stream COMMANDS_JOB`, `consumer runner-process of stream COMMANDS_JOB`.
    pub what: String,
    /// Named as the `nats` tool shows it.
    pub field: &'static str,
    pub found: String,
    pub wanted: String,
    pub fix: String,
}

impl Mismatch {
    fn missing(what: String) -> Self {
        let fix = "`event-gateway topology apply` declares it, and so does the gateway's start";
        Self { what, field: "State", found: "missing".into(), wanted: "there".into(), fix: fix.into() }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, field, found, wanted, fix } = self;
        write!(f, "{what}: {field} is {found}, must be {wanted}; {fix}")
    }
}

/// Why not everything is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DeclareError {
    /// JetStream cannot do it now.
    Away(String),
    /// Somebody has to change something.
    Mismatch(Vec<Mismatch>),
}

impl fmt::Display for DeclareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away(why) => f.write_str(why),
            Self::Mismatch(all) => f.write_str(&all.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
        }
    }
}

impl NatsTopology {
    /// The catalogue's streams, with the work queues among `consumers`.
    pub fn from_catalogue(catalogue: &Catalogue, consumers: Vec<Subscription>) -> Self {
        let durable = |consumer: &Subscription| matches!(consumer.source, Source::WorkQueue { .. });
        let consumers = consumers.into_iter().filter(durable).collect();
        Self { streams: catalogue.streams().to_vec(), consumers }
    }

    /// Everything that contradicts itself.
    pub(super) fn check(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (index, stream) in self.streams.iter().enumerate() {
            name(&stream.name, "stream", &mut wrong);
            for other in &self.streams[..index] {
                let both = |a: &Arc<str>| stream.subjects.iter().any(|b| overlaps(a, b));
                if stream.name == other.name || other.subjects.iter().any(both) {
                    wrong.push(format!("streams {} and {} share a name or a subject", other.name, stream.name));
                }
            }
        }
        let mut queues: Vec<(&Arc<str>, &Arc<str>, &Arc<str>)> = Vec::new();
        for Subscription { consumer, source, .. } in &self.consumers {
            name(consumer, "consumer", &mut wrong);
            let Source::WorkQueue { stream, filter } = source else {
                wrong.push(format!("consumer {consumer} is not durable; subscribe instead of declaring it"));
                continue;
            };
            let Some(known) = self.streams.iter().find(|known| known.name == *stream) else {
                wrong.push(format!("consumer {consumer} reads stream {stream}, which the catalogue does not have"));
                continue;
            };
            let exclusive = known.kind == StreamKind::WorkQueue;
            for (other, _, theirs) in queues.iter().filter(|(_, other, _)| *other == stream) {
                if exclusive && overlaps(filter, theirs) {
                    wrong.push(format!(
                        "consumers {other} and {consumer} of work queue {stream} have overlapping filters; \
                         a message is one consumer's"
                    ));
                }
            }
            queues.push((consumer, stream, filter));
        }
        wrong
    }

    /// Declares everything; reports all mismatches at once. The servers that hold replicas of streams and
    /// are away.
    pub(super) async fn declare(
        &self,
        jetstream: &Context,
        keeping: Keeping,
    ) -> Result<BTreeSet<String>, DeclareError> {
        let (mut mismatches, mut away) = (Vec::new(), BTreeSet::new());
        for stream in &self.streams {
            gather(declare_stream(jetstream, stream, keeping, &mut away).await, &mut mismatches)?;
        }
        // A consumer of a stream that is not as it must be says nothing new.
        if mismatches.is_empty() {
            for consumer in &self.consumers {
                gather(declare_consumer(jetstream, consumer, true).await.map(drop), &mut mismatches)?;
            }
        }
        if mismatches.is_empty() { Ok(away) } else { Err(DeclareError::Mismatch(mismatches)) }
    }
}

impl NatsTopology {
    /// What is missing or differs; changes nothing.
    pub(super) async fn differences(&self, jetstream: &Context, keeping: Keeping) -> Result<Vec<String>, DeclareError> {
        let mut differences = Vec::new();
        let mut note = |compared: Result<(), DeclareError>| match compared {
            Err(DeclareError::Mismatch(all)) => {
                differences.extend(all.iter().map(ToString::to_string));
                Ok(())
            }
            other => other,
        };
        let missing = |what: String| Err(DeclareError::Mismatch(vec![Mismatch::missing(what)]));
        for stream in &self.streams {
            note(match jetstream.get_stream(&*stream.name).await {
                Ok(found) => compare_streams(&found.cached_info().config, &stream_config(stream, keeping)),
                Err(error) if is_missing(&error) => missing(format!("stream {}", stream.name)),
                Err(error) => Err(DeclareError::Away(format!("stream {}: {error}", stream.name))),
            })?;
        }
        for consumer in &self.consumers {
            let Source::WorkQueue { stream, filter } = &consumer.source else { continue };
            let what = format!("consumer {} of stream {stream}", consumer.consumer);
            let found: Result<PullConsumer, _> =
                jetstream.get_consumer_from_stream(&*consumer.consumer, &**stream).await;
            note(match found {
                Ok(found) => {
                    let durable_name = Some(consumer.consumer.to_string());
                    let wanted = pull::Config { durable_name, ..consumer_config(filter, consumer.ack_wait) };
                    match compare_consumers(&found.cached_info().config, &wanted, what) {
                        none if none.is_empty() => Ok(()),
                        some => Err(DeclareError::Mismatch(some)),
                    }
                }
                Err(error) => match error.kind() {
                    ConsumerErrorKind::JetStream(why)
                        if [ErrorCode::CONSUMER_NOT_FOUND, ErrorCode::STREAM_NOT_FOUND].contains(&why.error_code()) =>
                    {
                        missing(what)
                    }
                    _ => Err(DeclareError::Away(format!("{what}: {error}"))),
                },
            })?;
        }
        Ok(differences)
    }
}

fn is_missing(error: &async_nats::jetstream::context::GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(why) if why.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

fn gather(declared: Result<(), DeclareError>, mismatches: &mut Vec<Mismatch>) -> Result<(), DeclareError> {
    match declared {
        Err(DeclareError::Mismatch(more)) => mismatches.extend(more),
        other => return other,
    }
    Ok(())
}

/// JetStream's rule for names.
fn name(text: &str, what: &str, wrong: &mut Vec<String>) {
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control() || ".*>/\\".contains(c)) {
        wrong.push(format!("{what} {text:?} has no legal name: leave out spaces, dots, slashes, '*' and '>'"));
    }
}

fn stream_config(stream: &Stream, keeping: Keeping) -> Config {
    let (retention, max_age) = match stream.kind {
        StreamKind::WorkQueue => (RetentionPolicy::WorkQueue, Duration::ZERO),
        StreamKind::Limits { max_age } => (RetentionPolicy::Limits, max_age),
    };
    Config {
        name: stream.name.to_string(),
        subjects: stream.subjects.iter().map(ToString::to_string).collect(),
        retention,
        max_age,
        storage: StorageType::File,
        num_replicas: keeping.replicas,
        // JetStream allows no window longer than the stream keeps its messages.
        duplicate_window: if max_age.is_zero() {
            keeping.duplicate_window
        } else {
            keeping.duplicate_window.min(max_age)
        },
        description: Some("declared by event-gateway".into()),
        ..Config::default()
    }
}

async fn declare_stream(
    jetstream: &Context,
    stream: &Stream,
    keeping: Keeping,
    away: &mut BTreeSet<String>,
) -> Result<(), DeclareError> {
    let wanted = stream_config(stream, keeping);
    match jetstream.get_stream(&*stream.name).await {
        Ok(found) => {
            let replicas = found.cached_info().cluster.iter().flat_map(|cluster| &cluster.replicas);
            let silent = replicas.filter(|replica| replica.offline || replica.active > SILENT);
            away.extend(silent.map(|replica| replica.name.clone()));
            compare_streams(&found.cached_info().config, &wanted)
        }
        Err(error) if is_missing(&error) => create_stream(jetstream, wanted).await,
        Err(error) => Err(DeclareError::Away(format!("stream {}: {error}", stream.name))),
    }
}

async fn create_stream(jetstream: &Context, wanted: Config) -> Result<(), DeclareError> {
    let (name, replicas) = (wanted.name.clone(), wanted.num_replicas);
    let Err(error) = jetstream.create_stream(wanted.clone()).await else {
        tracing::info!(stream = name, replicas, "declared");
        return Ok(());
    };
    let mismatch = |field, found: String, wanted: String, fix: &str| {
        let what = format!("stream {name}");
        Err(DeclareError::Mismatch(vec![Mismatch { what, field, found, wanted, fix: fix.to_owned() }]))
    };
    match error.kind() {
        CreateStreamErrorKind::JetStream(why) if why.error_code() == SUBJECT_OVERLAPS => mismatch(
            "Subjects",
            "taken by another stream".into(),
            wanted.subjects.join(","),
            "delete that stream or change its subjects (`nats stream ls --subject=...` finds it)",
        ),
        CreateStreamErrorKind::JetStream(why) if why.error_code() == REPLICAS_WITHOUT_CLUSTER => mismatch(
            "Replicas",
            "1 at most on a server without a cluster".into(),
            replicas.to_string(),
            "set nats.replicas = 1, or connect to a cluster",
        ),
        // Another instance was faster.
        CreateStreamErrorKind::JetStream(why) if why.error_code() == ErrorCode::STREAM_NAME_EXIST => {
            match jetstream.get_stream(&name).await {
                Ok(found) => compare_streams(&found.cached_info().config, &wanted),
                Err(error) => Err(DeclareError::Away(format!("stream {name}: {error}"))),
            }
        }
        _ => Err(DeclareError::Away(format!("stream {name} cannot be created: {error}"))),
    }
}

fn compare_streams(found: &Config, wanted: &Config) -> Result<(), DeclareError> {
    let name = &wanted.name;
    let mut mismatches = Vec::new();
    let mut differ = |field, found: String, wanted: String, fix: String| {
        if found != wanted {
            mismatches.push(Mismatch { what: format!("stream {name}"), field, found, wanted, fix });
        }
    };
    let again = || format!("it cannot be changed: when {name} is drained, delete it and it is declared anew");
    let edit = |option: &str, or: &str| format!("`nats stream edit {name} {option}`, or {or}");
    let sorted = |subjects: &[String]| {
        let mut subjects = subjects.to_vec();
        subjects.sort();
        subjects.join(",")
    };
    let subjects = sorted(&wanted.subjects);
    differ(
        "Subjects",
        sorted(&found.subjects),
        subjects.clone(),
        edit(&format!("--subjects={subjects}"), "change the catalogue"),
    );
    differ("Retention", retention(found.retention), retention(wanted.retention), again());
    differ("Storage", storage(found.storage), storage(wanted.storage), again());
    let replicas = wanted.num_replicas.to_string();
    let option = format!("--replicas={replicas}");
    differ("Replicas", found.num_replicas.to_string(), replicas, edit(&option, "change nats.replicas"));
    let age = time(wanted.max_age);
    differ("Maximum Age", time(found.max_age), age.clone(), edit(&format!("--max-age={age}"), "change the catalogue"));
    let window = time(wanted.duplicate_window);
    let option = format!("--dupe-window={window}");
    differ("Duplicate Window", time(found.duplicate_window), window, edit(&option, "change nats.duplicate_window"));
    let drops = wanted.retention == RetentionPolicy::WorkQueue
        && found.discard == DiscardPolicy::Old
        && (found.max_messages > 0 || found.max_bytes > 0 || found.max_messages_per_subject > 0);
    if drops {
        let fix = edit("--discard=new", "lift its limits on messages and bytes");
        differ("Discard Policy", "old: it drops work that nobody has done".into(), "new".into(), fix);
    }
    if mismatches.is_empty() { Ok(()) } else { Err(DeclareError::Mismatch(mismatches)) }
}

fn retention(policy: RetentionPolicy) -> String {
    match policy {
        RetentionPolicy::Limits => "limits",
        RetentionPolicy::Interest => "interest",
        RetentionPolicy::WorkQueue => "workqueue",
    }
    .into()
}

fn storage(storage: StorageType) -> String {
    match storage {
        StorageType::File => "file",
        StorageType::Memory => "memory",
    }
    .into()
}

fn time(duration: Duration) -> String {
    if duration.is_zero() {
        "unlimited".into()
    } else {
        humantime::format_duration(duration).to_string().replace(' ', "")
    }
}

/// A pull consumer of this subscription, without its name.
fn consumer_config(filter: &str, ack_wait: Duration) -> pull::Config {
    pull::Config {
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait,
        // Attempts are counted in the store; a message never silently stops coming.
        max_deliver: -1,
        filter_subject: filter.to_owned(),
        max_ack_pending: MAX_ACK_PENDING,
        description: Some("declared by event-gateway".into()),
        ..pull::Config::default()
    }
}

/// The durable consumer of a work queue; `tune` sets the times and bounds of an existing
/// one, too.
pub(super) async fn declare_consumer(
    jetstream: &Context,
    subscription: &Subscription,
    tune: bool,
) -> Result<PullConsumer, DeclareError> {
    let Source::WorkQueue { stream, filter } = &subscription.source else {
        return Err(DeclareError::Away(format!("{} is not durable", subscription.consumer)));
    };
    let name = &*subscription.consumer;
    let wanted = pull::Config { durable_name: Some(name.to_owned()), ..consumer_config(filter, subscription.ack_wait) };
    let what = || format!("consumer {name} of stream {stream}");
    let away = |why: String| DeclareError::Away(format!("{}: {why}", what()));
    let found: Result<PullConsumer, _> = jetstream.get_consumer_from_stream(name, &**stream).await;
    let mismatches = match found {
        Ok(found) => {
            let config = &found.cached_info().config;
            let mismatches = compare_consumers(config, &wanted, what());
            let same = (config.ack_wait, config.max_ack_pending) == (wanted.ack_wait, wanted.max_ack_pending);
            if mismatches.is_empty() && (same || !tune) {
                return Ok(found);
            }
            mismatches
        }
        Err(error) => match error.kind() {
            ConsumerErrorKind::JetStream(why) if why.error_code() == ErrorCode::CONSUMER_NOT_FOUND => Vec::new(),
            ConsumerErrorKind::InvalidConsumerType => vec![Mismatch {
                what: what(),
                field: "Pull Mode",
                found: "false".into(),
                wanted: "true".into(),
                fix: remove(name, stream),
            }],
            _ => return Err(away(error.to_string())),
        },
    };
    if !mismatches.is_empty() {
        return Err(DeclareError::Mismatch(mismatches));
    }
    jetstream.create_consumer_on_stream(wanted, &**stream).await.map_err(|error| match error.kind() {
        ConsumerErrorKind::JetStream(why) if why.error_code() == ErrorCode::CONSUMER_WQ_CONSUMER_NOT_UNIQUE => {
            DeclareError::Mismatch(vec![Mismatch {
                what: what(),
                field: "Filter Subject",
                found: "partly another consumer's".into(),
                wanted: filter.to_string(),
                fix: format!("delete the other one (`nats consumer ls {stream}`): a message is one consumer's"),
            }])
        }
        _ => away(error.to_string()),
    })
}

fn remove(name: &str, stream: &str) -> String {
    format!("`nats consumer rm {stream} {name}` and it is declared anew")
}

fn compare_consumers(
    found: &async_nats::jetstream::consumer::Config,
    wanted: &pull::Config,
    what: String,
) -> Vec<Mismatch> {
    let name = wanted.durable_name.as_deref().unwrap_or_default();
    let stream = what.rsplit(' ').next().unwrap_or_default();
    let filter = match found.filter_subjects.as_slice() {
        [] => found.filter_subject.clone(),
        several => several.join(","),
    };
    [
        ("Filter Subject", filter, wanted.filter_subject.clone()),
        ("Ack Policy", format!("{:?}", found.ack_policy), format!("{:?}", wanted.ack_policy)),
        ("Deliver Policy", format!("{:?}", found.deliver_policy), format!("{:?}", wanted.deliver_policy)),
        ("Maximum Deliveries", found.max_deliver.to_string(), wanted.max_deliver.to_string()),
    ]
    .into_iter()
    .filter(|(_, found, wanted)| found != wanted)
    .map(|(field, found, wanted)| Mismatch { what: what.clone(), field, found, wanted, fix: remove(name, stream) })
    .collect()
}

/// A consumer of this reader alone, from now on; it goes with its reader.
pub(super) async fn create_ephemeral(
    jetstream: &Context,
    consumer: &str,
    stream: &str,
    filter: &str,
    ack_wait: Duration,
) -> Result<PullConsumer, DeclareError> {
    let config = pull::Config {
        name: Some(format!("{consumer}-{:016x}", rand::random::<u64>())),
        deliver_policy: DeliverPolicy::New,
        inactive_threshold: EPHEMERAL_INACTIVE,
        num_replicas: 1,
        memory_storage: true,
        ..consumer_config(filter, ack_wait)
    };
    let created = jetstream.create_consumer_on_stream(config, stream).await;
    created.map_err(|error| DeclareError::Away(format!("consumer {consumer} of stream {stream}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEPING: Keeping = Keeping { replicas: 3, duplicate_window: Duration::from_secs(120) };

    fn stream(name: &str, subject: &str, kind: StreamKind) -> Stream {
        Stream { name: name.into(), subjects: vec![subject.into()], kind }
    }

    fn queue(consumer: &str, stream: &str, filter: &str) -> Subscription {
        Subscription {
            consumer: consumer.into(),
            source: Source::WorkQueue { stream: stream.into(), filter: filter.into() },
            prefetch: 1,
            ack_wait: Duration::from_secs(30),
        }
    }

    #[test]
    fn the_built_in_catalogue_is_declared_as_the_topology_says() {
        let catalogue = Catalogue::load(&[]).unwrap();
        let topology = NatsTopology::from_catalogue(
            &catalogue,
            vec![
                queue("runner-process", "COMMANDS_JOB", "commands.job.submit.process"),
                Subscription { source: Source::Topics(vec!["job-lifecycle".into()]), ..queue("metrics", "", "") },
            ],
        );
        assert_eq!(topology.check(), Vec::<String>::new());
        assert_eq!(topology.consumers.len(), 1);
        let configs: Vec<Config> = topology.streams.iter().map(|stream| stream_config(stream, KEEPING)).collect();
        let [jobs, cancel] = &configs[..] else { panic!("{configs:?}") };
        assert_eq!((&*jobs.name, &*jobs.subjects), ("COMMANDS_JOB", &["commands.job.submit.>".to_owned()][..]));
        assert_eq!((jobs.retention, jobs.max_age, jobs.num_replicas), (RetentionPolicy::WorkQueue, Duration::ZERO, 3));
        assert_eq!(jobs.duplicate_window, Duration::from_secs(120));
        assert_eq!((cancel.retention, cancel.max_age), (RetentionPolicy::Limits, Duration::from_secs(3600)));
    }

    #[test]
    fn every_contradiction_is_reported_at_once() {
        let topology = NatsTopology {
            streams: vec![
                stream("WORK", "work.>", StreamKind::WorkQueue),
                stream("OTHER", "work.*", StreamKind::WorkQueue),
                stream("A.B", "a", StreamKind::WorkQueue),
            ],
            consumers: vec![
                queue("a", "WORK", "work.*"),
                queue("b", "WORK", "work.b"),
                queue("c", "MISSING", "x"),
                Subscription {
                    source: Source::Ephemeral { stream: "WORK".into(), filter: ">".into() },
                    ..queue("d", "", "")
                },
            ],
        };
        let wrong = topology.check();
        for expected in ["share", "\"A.B\"", "overlapping", "MISSING", "not durable"] {
            assert!(wrong.iter().any(|line| line.contains(expected)), "{expected}: {wrong:#?}");
        }
        assert_eq!(wrong.len(), 5, "{wrong:#?}");
    }

    #[test]
    fn every_difference_names_field_found_wanted_and_fix() {
        let wanted = stream_config(&stream("WORK", "work.>", StreamKind::WorkQueue), KEEPING);
        compare_streams(&wanted, &wanted).unwrap();
        let found = Config {
            subjects: vec!["other.>".into()],
            retention: RetentionPolicy::Limits,
            num_replicas: 1,
            max_age: Duration::from_secs(90),
            duplicate_window: Duration::from_secs(1),
            storage: StorageType::Memory,
            max_messages: 10,
            ..wanted.clone()
        };
        let Err(DeclareError::Mismatch(all)) = compare_streams(&found, &wanted) else { panic!("no mismatch") };
        let fields: Vec<&str> = all.iter().map(|mismatch| mismatch.field).collect();
        assert_eq!(
            fields,
            ["Subjects", "Retention", "Storage", "Replicas", "Maximum Age", "Duplicate Window", "Discard Policy"]
        );
        assert_eq!(
            all[3].to_string(),
            "stream WORK: Replicas is 1, must be 3; `nats stream edit WORK --replicas=3`, or change nats.replicas"
        );
        assert!(all[4].to_string().contains("1m30s, must be unlimited"), "{}", all[4]);
    }

    #[test]
    fn a_duplicate_window_is_never_longer_than_messages_are_kept() {
        let short = StreamKind::Limits { max_age: Duration::from_secs(60) };
        assert_eq!(stream_config(&stream("S", "s", short), KEEPING).duplicate_window, Duration::from_secs(60));
    }
}
