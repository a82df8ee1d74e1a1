//! What an agent is given, and what its end means.

use serde_json::{Value, json};

use super::*;
use crate::domain::job::{JobError, Report};

fn error(job: Job) -> JobError {
    assert_eq!(job.status, JobStatus::Failed, "{:?}", job.result);
    job.error.unwrap()
}

#[tokio::test]
async fn a_job_runs_and_its_result_is_reported() {
    let site = Site::with_script(
        r#"
        echo '{"progress": 0.25, "message": "reading"}'
        cat "$(sed 's/.*"dataset_path":"\([^"]*\)".*/\1/' "$GATEWAY_JOB_FILE")" > "$GATEWAY_OUTPUT_DIR/copy.csv"
        cp "$GATEWAY_JOB_FILE" "$here/job.json"
        echo "some log"
        echo '{"result": {"rows": 1, "nested": {"ok": true}}}'
        "#,
    );
    let id = site.submit_with(|job| job.params = params(r#"{"title": "$(touch /tmp/pwned) `id` ; 'x' \" é"}"#));
    let working = site.start();
    let job = site.control.ended(id).await;
    working.stop().await;

    assert_eq!(job.status, JobStatus::Completed, "{:?}", job.error);
    let result = job.result.unwrap();
    assert_eq!(Value::Object(result.summary), json!({"rows": 1, "nested": {"ok": true}}));
    assert_eq!(result.result_size_bytes, 4);
    let output = PathBuf::from(&result.output_location);
    assert_eq!(std::fs::read_to_string(output.join("copy.csv")).unwrap(), "1,2\n");
    assert_eq!(std::fs::read_to_string(output.with_file_name("agent.log")).unwrap(), "some log\n");
    site.control.with(|state| {
        let first = &state.reports[0].1;
        let reason = Some("reading".to_owned());
        assert_eq!(*first, Report::Running { progress: Some(0.25), reason, external_job_id: None });
    });

    let given: Value = serde_json::from_slice(&std::fs::read(site.path("job.json")).unwrap()).unwrap();
    let dataset = site.options.datasets_dir.canonicalize().unwrap().join("data.csv");
    assert_eq!(
        given,
        json!({
            "job_id": id, "attempt": 1, "agent": "Agent", "dataset_id": "data.csv", "dataset_path": dataset,
            "params": {"title": "$(touch /tmp/pwned) `id` ; 'x' \" é"},
            "resource_request": ResourceRequest::default(), "output_dir": output, "wall_time_seconds": 3600,
        })
    );
}

#[tokio::test]
async fn an_agent_gets_a_clean_environment_of_its_own() {
    let site = Site::with_script(
        r#"
        env > "$here/env"
        wc -c > "$here/stdin"
        pwd > "$here/cwd"
        ulimit -c > "$here/core"
        ps -o pid=,pgid=,sid= -p $$ > "$here/ids" 2>/dev/null || cut -d' ' -f1,5,6 /proc/$$/stat > "$here/ids"
        ls /proc/$$/fd > "$here/fds"
        "#,
    );
    let job = site.run().await;
    assert_eq!(job.status, JobStatus::Completed, "{:?}", job.error);
    let read = |name: &str| std::fs::read_to_string(site.path(name)).unwrap();

    let env = read("env");
    let env = variables(&env);
    let known = [
        "GATEWAY_ATTEMPT",
        "GATEWAY_JOB_FILE",
        "GATEWAY_JOB_ID",
        "GATEWAY_OUTPUT_DIR",
        "GATEWAY_RUN_ID",
        "HOME",
        "PATH",
        "TMPDIR",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "TZ",
        // The shell's own.
        "PWD",
        "OLDPWD",
        "SHLVL",
        "_",
    ];
    for name in env.keys() {
        assert!(known.contains(name), "{name} must not be passed on");
    }
    assert_eq!(env["GATEWAY_JOB_ID"], job.id.to_string());
    assert_eq!(env["GATEWAY_ATTEMPT"], "1");
    assert_eq!(read("stdin").trim(), "0");
    assert_eq!(read("cwd").trim(), env["HOME"]);
    assert!(env["HOME"].ends_with("attempt-1"), "{}", env["HOME"]);
    assert_eq!(read("core").trim(), "0");
    let ids = read("ids");
    let ids: Vec<&str> = ids.split_whitespace().collect();
    assert!(ids.len() == 3 && ids.iter().all(|id| *id == ids[0]), "pid, group and session are one: {ids:?}");
    // Standard streams, and what a shell opens for itself (10 and up).
    let fds: Vec<i32> = read("fds").lines().map(|fd| fd.parse().unwrap()).collect();
    assert!(fds.iter().all(|fd| *fd < 3 || *fd >= 10), "inherited descriptors: {fds:?}");
}

#[tokio::test]
async fn exit_codes_and_error_lines_say_whether_to_retry() {
    let line = |text: &str| format!(r#"echo '{{"error": {text}}}';"#);
    let cases = [
        ("echo oops >&2; exit 3".to_owned(), "exit_nonzero", true, Some(3)),
        ("exit 2".to_owned(), "bad_input", false, Some(2)),
        (line(r#"{"code": "bad_params", "message": "no"}"#) + "exit 2", "bad_params", false, Some(2)),
        (line(r#"{"code": "odd", "message": "no", "retriable": true}"#) + "exit 2", "odd", false, Some(2)),
        (line(r#"{"code": "hopeless", "message": "no", "retriable": false}"#) + "exit 1", "hopeless", false, Some(1)),
        (line(r#"{"code": "io_error", "message": "no"}"#) + "exit 1", "io_error", true, Some(1)),
        // It says that it failed: believe it.
        (line(r#"{"code": "liar", "message": "no"}"#) + "exit 0", "liar", true, Some(0)),
        ("kill -SEGV $$".to_owned(), "killed_by_signal", true, None),
        (r#"echo '{"result": {"x": NaN}}'"#.to_owned(), "bad_result", false, Some(0)),
        (r#"echo '{"result": [1]}'"#.to_owned(), "bad_result", false, Some(0)),
    ];
    for (script, code, retriable, exit_code) in cases {
        let error = error(Site::with_script(&script).run().await);
        assert_eq!((error.code.as_str(), error.retriable, error.exit_code), (code, retriable, exit_code), "{script}");
    }
    let told = error(Site::with_script("echo first >&2; echo oops >&2; exit 3").run().await);
    assert_eq!(told.stack_trace.as_deref(), Some("first\noops"));
}

#[tokio::test]
async fn an_agent_that_only_writes_files_succeeds() {
    let job = Site::with_script(
        "echo 12345 > \"$GATEWAY_OUTPUT_DIR/a\"; mkdir \"$GATEWAY_OUTPUT_DIR/d\"; echo 1 > \"$GATEWAY_OUTPUT_DIR/d/b\"",
    )
    .run()
    .await;
    assert_eq!(job.status, JobStatus::Completed);
    assert_eq!(job.result.unwrap().result_size_bytes, 8);
}

#[tokio::test]
async fn what_cannot_be_started_fails_with_the_reason() {
    let mut site = Site::with_script("exit 0");
    site.options.agents.insert("Missing".into(), vec!["/nonexistent/agent".into()]);
    let submit = |agent: &str, dataset: &str| {
        site.submit_with(|job| {
            job.agent = agent.into();
            job.dataset_id = dataset.into();
        })
    };
    let missing = submit("Missing", "data.csv");
    let outside = submit("Agent", "../../etc/passwd");
    let gone = submit("Agent", "gone.csv");
    let working = site.start();
    for (id, code, part) in [
        (missing, "spawn_failed", "/nonexistent/agent"),
        (outside, "bad_dataset", "relative path"),
        (gone, "bad_dataset", "gone.csv"),
    ] {
        let error = error(site.control.ended(id).await);
        assert_eq!((error.code.as_str(), error.retriable), (code, false));
        assert!(error.message.contains(part), "{}", error.message);
    }
    working.stop().await;
    let records = std::fs::read_dir(site.path("runs/active")).unwrap().count();
    assert_eq!(records, 0, "nothing is left to recover");
}

#[tokio::test]
async fn even_a_short_run_is_measured() {
    let site = Site::with_script("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done");
    let job = site.run().await;
    let samples = site.control.with(|state| state.samples[&job.id].clone());
    assert!(!samples.is_empty());
    assert!(samples.iter().any(|sample| sample.metrics.cpu_utilization_percent > 0.0), "{samples:?}");
    assert!(samples.iter().all(|sample| sample.sample_interval_seconds > 0.0 && sample.host.is_some()), "{samples:?}");
    let metrics = job.result.unwrap().metrics;
    assert!(metrics.cpu_utilization_percent > 0.0, "{metrics:?}");
}

#[tokio::test]
async fn a_run_is_measured_with_its_children_while_it_works() {
    // A child keeps a core busy and holds 30 MB; then it writes in small pieces.
    let site = Site::with_script(
        r#"
        sh -c 'x=$(head -c 30000000 /dev/zero | tr "\0" a); while [ ! -e "$0/seen" ]; do :; done' "$here"
        dd if=/dev/zero of="$GATEWAY_OUTPUT_DIR/zeros" bs=512 count=500 2>/dev/null
        while [ ! -e "$here/done" ]; do sleep 0.01; done
        "#,
    );
    let id = site.submit();
    let working = site.start();
    let busy = |state: &control::State| {
        let samples = state.samples.get(&id)?;
        samples
            .iter()
            .find(|sample| sample.metrics.cpu_utilization_percent > 5.0 && sample.metrics.system_memory_used_gb > 0.03)
            .cloned()
    };
    let sample = site.control.until("a sample of the busy child", busy).await;
    assert!(sample.metrics.system_memory_used_gb < 1.0, "{sample:?}");
    std::fs::write(site.path("seen"), "").unwrap();
    let writing = |state: &control::State| {
        state.samples[&id].iter().find(|sample| sample.metrics.disk_write_iops > 100.0).cloned()
    };
    site.control.until("a sample of the writes", writing).await;
    std::fs::write(site.path("done"), "").unwrap();
    let job = site.control.ended(id).await;
    assert_eq!(job.status, JobStatus::Completed, "{:?}", job.error);
    let metrics = job.result.unwrap().metrics;
    assert!(metrics.memory_used_gb > 0.001 && metrics.memory_used_gb < 1.0, "{metrics:?}");
    working.stop().await;
}

#[tokio::test]
async fn a_memory_limit_is_kept() {
    let mut site =
        Site::with_script("x=$(head -c 300000000 /dev/zero | tr '\\0' a) || exit 7; echo ${#x} > \"$here/got\"");
    site.options.memory_limit_bytes = Some(64 << 20);
    error(site.run().await);
    assert!(!site.path("got").exists());
}

#[tokio::test]
async fn no_more_run_at_once_than_allowed_and_the_best_come_first() {
    let mut site =
        Site::with_script(r#"echo "$GATEWAY_JOB_ID" >> "$here/order"; while [ ! -e "$here/go" ]; do sleep 0.01; done"#);
    site.options.concurrency = 2;
    let normal: Vec<Id> = (0..5).map(|_| site.submit()).collect();
    let high = site.submit_with(|job| job.priority = Priority::High);
    let working = site.start();
    site.control.until("two running", |state| (state.running() == 2).then_some(())).await;
    assert_eq!((working.handle.running(), working.handle.concurrency()), (2, 2));
    std::fs::write(site.path("go"), "").unwrap();
    for id in normal.iter().chain([&high]) {
        assert_eq!(site.control.ended(*id).await.status, JobStatus::Completed);
    }
    assert_eq!(site.control.with(|state| state.most_running), 2);
    let order = std::fs::read_to_string(site.path("order")).unwrap();
    let first: Vec<&str> = order.lines().take(2).collect();
    assert!(first.contains(&high.to_string().as_str()) && first.contains(&normal[0].to_string().as_str()), "{order}");
    working.stop().await;
}
