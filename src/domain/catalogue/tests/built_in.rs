//! The built-in types against the specification, written down here a second time: names of
//! fields and routes are a promise to others, so changing one must take two edits.

use super::*;
use crate::domain::job::JobStatus;
use crate::domain::payload::BUILT_IN;

/// type | aggregate | RabbitMQ | Kafka | NATS | audience, Socket.IO event | order | payload
///
/// `?`: optional; `exchange key?`: a copy that no queue takes is skipped.
const SPECIFICATION: &str = "
job.submitted | job:job_id | job.events job.submitted | job-lifecycle job_id | - | job user job_update | aggregate \
| job_id job_name agent dataset_id tacc_system resource_request{num_nodes cores_per_node gpu_count_total memory_gb \
wall_time_minutes} estimated_cost_usd priority
job.status.changed | job:job_id | job.events job.{job_id}.status | job-lifecycle job_id | - | job user job_update \
| aggregate | job_id previous_status new_status attempt progress? reason? transition_time_ms?
job.completed | job:job_id | job.events job.completed | job-lifecycle job_id | - | job user job_update | aggregate \
| job_id attempt execution_time_ms output_location result_size_bytes metrics{cpu_utilization_percent \
gpu_utilization_percent memory_used_gb io_throughput_mbps}
job.failed | job:job_id | job.events job.failed | job-lifecycle job_id | - | job user job_update | aggregate \
| job_id attempt error_code error_message stack_trace? exit_code? retriable final retry_count max_retries \
next_retry_timestamp?
job.cancelled | job:job_id | job.events job.cancelled | job-lifecycle job_id | - | job user job_update | aggregate \
| job_id cancelled_by reason refund_amount_usd?
job.performance.summary | job:job_id | metrics metrics.summary? | job-metrics job_id | - | job job_update | aggregate \
| job_id execution_time_ms samples_collected metrics_aggregate{cpu_utilization_avg_percent \
cpu_utilization_max_percent gpu_utilization_avg_percent gpu_utilization_max_percent gpu_memory_peak_gb \
system_memory_peak_gb total_network_in_gb total_network_out_gb total_disk_read_gb total_disk_write_gb}
SubmitJobRequested | job_command:job_id | - | commands job_id | commands.job.submit.{runner} | - | aggregate \
| job_id attempt runner agent dataset_id params resource_request{num_nodes cores_per_node gpu_count_total memory_gb \
wall_time_minutes} wall_time_minutes
CancelJobRequested | job_command:job_id | - | commands job_id | commands.job.cancel | - | aggregate \
| job_id attempt cancelled_by reason
job.metrics.recorded | job_metrics:job_id | metrics metrics.job? | job-metrics job_id | - | job telemetry_update | none \
| job_id host? sample_timestamp sample_interval_seconds metrics{cpu_utilization_percent gpu_utilization_percent \
gpu_memory_used_gb system_memory_used_gb network_in_mbps network_out_mbps disk_read_iops disk_write_iops \
disk_read_throughput_mbps disk_write_throughput_mbps}
resource.allocation.changed | allocation:allocation_id | - | job-metrics job_id | - | - | none \
| allocation_id job_id change_type previous_allocation{num_nodes cores gpus memory_gb} \
new_allocation{num_nodes cores gpus memory_gb} reason
system.health.check | system:instance_id | metrics metrics.health? | system-health instance_id | - \
| role:operator stats_update | none \
| instance_id check_timestamp components{database rabbitmq kafka nats registry external_api} metrics{active_jobs \
pending_jobs failed_jobs_24h average_queue_depth average_response_time_ms}
notification.sent | notification:notification_id | notifications notifications.{channel}? \
| notifications recipient_user_id | - | user job_notification | none \
| notification_id recipient_user_id channel subject message related_job_id? data? read_status created_at
notification.read | notification:notification_id | notifications notifications.in_app? \
| notifications recipient_user_id | - | user job_notification | none | notification_id recipient_user_id at
notification.dismissed | notification:notification_id | notifications notifications.in_app? \
| notifications recipient_user_id | - | user job_notification | none | notification_id recipient_user_id at
alert.raised | alert:alert_id | notifications notifications.alert? | system-health alert_id | - \
| role:operator alert | aggregate | alert_id alert_type severity message affected_resource_id metrics?
alert.resolved | alert:alert_id | notifications notifications.alert? | system-health alert_id | - \
| role:operator alert | aggregate | alert_id original_alert_type resolution_reason resolved_at
audit.action.recorded | audit:target_resource_id | - | audit-trail target_resource_id | - | - | aggregate \
| AUDIT action actor_role? details? changes?{before? after?}
audit.policy.changed | audit:target_resource_id | - | audit-trail target_resource_id | - | - | aggregate \
| AUDIT policy_name changes{before? after?}
audit.data.access | audit:target_resource_id | - | audit-trail target_resource_id | - | - | aggregate \
| AUDIT access purpose?
audit.job.lifecycle | audit:target_resource_id | - | audit-trail target_resource_id | - | - | aggregate \
| AUDIT event_id event_type sequence
audit.compliance.check | audit:target_resource_id | - | audit-trail target_resource_id | - | - | aggregate \
| AUDIT check_name result details?
";

/// What every audit payload begins with.
const AUDIT: &str = "audit_id actor_user_id target_resource_id target_resource_type timestamp ip_address? chain_no? \
                     previous_digest? digest?";

fn fields(schema: &Schema) -> String {
    match schema {
        Schema::Record(record) => {
            let field = |field: &apache_avro::schema::RecordField| match &field.schema {
                Schema::Union(union) => format!("{}?{}", field.name, braced(schema::optional(union).unwrap())),
                other => format!("{}{}", field.name, braced(other)),
            };
            record.fields.iter().map(field).collect::<Vec<_>>().join(" ")
        }
        _ => String::new(),
    }
}

fn braced(schema: &Schema) -> String {
    let fields = fields(schema);
    if fields.is_empty() { fields } else { format!("{{{fields}}}") }
}

fn line(event_type: &EventType) -> String {
    let route = |wanted: Broker| {
        let found = event_type.templates.iter().find(|(broker, ..)| *broker == wanted);
        found.map_or("-".to_owned(), |(broker, target, key, optional)| match broker {
            Broker::Rabbitmq => format!("{target} {key}{}", if *optional { "?" } else { "" }),
            Broker::Kafka => format!("{target} {}", key.to_string().trim_matches(['{', '}'])),
            Broker::Nats => target.to_string(),
        })
    };
    let Audience { job, user, operator } = event_type.audience;
    let audience = [(job, "job"), (user, "user"), (operator, "role:operator"), (true, &*event_type.socket_event)];
    let audience = audience.into_iter().filter_map(|(yes, name)| (yes && !name.is_empty()).then_some(name));
    let audience = audience.collect::<Vec<_>>().join(" ");
    [
        event_type.name.to_string(),
        format!("{}:{}", event_type.aggregate, event_type.aggregate_id_field()),
        route(Broker::Rabbitmq),
        route(Broker::Kafka),
        route(Broker::Nats),
        if audience.is_empty() { "-".to_owned() } else { audience },
        event_type.order.as_str().to_owned(),
        fields(event_type.payload_schema()),
    ]
    .join(" | ")
}

#[test]
fn the_built_in_types_are_those_of_the_specification() {
    let mut wanted: Vec<_> = SPECIFICATION.trim().lines().map(|line| line.replace("AUDIT", AUDIT)).collect();
    wanted.sort();
    let mut found: Vec<_> = CATALOGUE.types().map(|event_type| line(event_type)).collect();
    found.sort();
    for (wanted, found) in wanted.iter().zip(&found) {
        assert_eq!(wanted, found);
    }
    assert_eq!(wanted.len(), found.len());
}

#[test]
fn commands_are_the_requested_types_and_nobody_may_post_a_built_in_one() {
    for event_type in CATALOGUE.types() {
        assert_eq!(event_type.command, event_type.name.ends_with("Requested"), "{}", event_type.name);
        assert!(event_type.ingest.is_empty(), "{}", event_type.name);
        assert_eq!(event_type.version, 1);
        assert!(event_type.record_name().starts_with("com.cosmic_horizons.events."));
    }
    assert_eq!(CATALOGUE.types().count(), BUILT_IN.len());
    assert!(CATALOGUE.get("job.unheard.of").is_none());
}

#[test]
fn the_files_are_exactly_those_compiled_in() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas");
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    // Released ones are beside them, in a directory.
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    let mut files: Vec<_> = files.map(|entry| entry.file_name().into_string().unwrap()).collect();
    files.sort();
    let mut wanted: Vec<_> = BUILT_IN.iter().map(|built_in| format!("{}.avsc", built_in.name)).collect();
    wanted.push("catalogue.toml".to_owned());
    wanted.sort();
    assert_eq!(files, wanted);
}

#[test]
fn the_topology_is_what_the_brokers_are_given() {
    let exchanges: Vec<_> = CATALOGUE.exchanges().iter().map(|e| (&*e.name, e.kind)).collect();
    let topic = ExchangeKind::Topic;
    assert_eq!(
        exchanges,
        [("job.events", topic), ("notifications", topic), ("metrics", topic), ("dlx", ExchangeKind::Direct)]
    );
    let days = |topic: &Topic| topic.retention.as_secs() / 86_400;
    let topics: Vec<_> = CATALOGUE.topics().iter().map(|t| (&*t.name, t.partitions, days(t))).collect();
    assert_eq!(
        topics,
        [
            ("job-lifecycle", 10, 30),
            ("job-metrics", 20, 30),
            ("notifications", 5, 7),
            ("audit-trail", 5, 90),
            ("system-health", 3, 7),
            ("commands", 5, 30),
        ]
    );
    let streams: Vec<_> = CATALOGUE.streams().iter().map(|s| (&*s.name, &*s.subjects[0], s.kind)).collect();
    let hour = StreamKind::Limits { max_age: std::time::Duration::from_secs(3600) };
    assert_eq!(
        streams,
        [
            ("COMMANDS_JOB", "commands.job.submit.>", StreamKind::WorkQueue),
            ("COMMANDS_JOB_CANCEL", "commands.job.cancel", hour),
        ]
    );
}

fn routes(event_type: &EventType, payload: &EncodedPayload) -> Vec<(Broker, String, String, bool)> {
    let id = event_type.aggregate_id(&payload.json).unwrap();
    let routes = event_type.routes(&id, &payload.json);
    assert_eq!(routes.iter().map(|route| route.broker).collect::<Vec<_>>(), event_type.brokers());
    routes.into_iter().map(|r| (r.broker, r.target.to_string(), r.key.to_string(), r.optional)).collect()
}

#[test]
fn a_status_change_is_routed_by_its_job() {
    let payload = JobStatusChanged {
        job_id: Id::new(),
        previous_status: JobStatus::Queued,
        new_status: JobStatus::Running,
        attempt: 1,
        progress: None,
        reason: None,
        transition_time_ms: Some(7),
    };
    let id = payload.job_id.to_string();
    let event_type = get("job.status.changed");
    let encoded = event_type.encode(&payload).unwrap();
    assert_eq!(
        routes(event_type, &encoded),
        [
            (Broker::Rabbitmq, "job.events".to_owned(), format!("job.{id}.status"), false),
            (Broker::Kafka, "job-lifecycle".to_owned(), id, false),
        ]
    );
}

#[test]
fn a_command_is_routed_by_its_runner() {
    let payload = submit_requested();
    let id = payload.job_id.to_string();
    let event_type = get("SubmitJobRequested");
    let encoded = event_type.encode(&payload).unwrap();
    assert_eq!(
        routes(event_type, &encoded),
        [
            (Broker::Kafka, "commands".to_owned(), id.clone(), false),
            (Broker::Nats, "commands.job.submit.external".to_owned(), id, false),
        ]
    );
    assert_eq!(&*CATALOGUE.stream_of("commands.job.submit.external").unwrap().name, "COMMANDS_JOB");
    assert_eq!(&*CATALOGUE.stream_of("commands.job.cancel").unwrap().name, "COMMANDS_JOB_CANCEL");
}
