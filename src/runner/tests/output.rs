//! Output that nobody asked for.

use super::*;

#[tokio::test]
async fn progress_goes_forward_only_and_not_too_often() {
    let site = Site::with_script(
        r#"
        echo '{"progress": 0.5}'
        while [ ! -e "$here/seen" ]; do sleep 0.01; done
        echo '{"progress": 0.4}'
        echo '{"progress": 7}'
        echo '{"progress": "x"}'
        i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo "{\"progress\": 0.$((500 + i))}"; done
        while [ ! -e "$here/done" ]; do sleep 0.01; done
        "#,
    );
    let id = site.submit();
    let working = site.start();
    site.control.until("the first", |state| (state.progress(id) == [0.5]).then_some(())).await;
    std::fs::write(site.path("seen"), "").unwrap();
    site.control.until("the last", |state| (state.progress(id).last() == Some(&0.8)).then_some(())).await;
    std::fs::write(site.path("done"), "").unwrap();
    site.control.ended(id).await;
    let progress = site.control.with(|state| state.progress(id));
    assert!(progress.is_sorted(), "{progress:?}");
    // 300 lines in some milliseconds: the second report carries whatever came first, and
    // each further one takes a quarter of a second.
    assert!(progress.len() <= 12, "{progress:?}");
    working.stop().await;
}

#[tokio::test]
async fn garbage_is_kept_as_log_and_harms_nothing() {
    let site = Site::with_script(
        r#"
        head -c 100000 /dev/urandom
        echo
        printf '{"progress": 0.5\n{"result"\n[]\nnull\n{}\n\n\377\376\n'
        echo '{"result": {"fine": 1}}'
        printf 'no end of line' >&2
        "#,
    );
    let job = site.run().await;
    assert_eq!(job.status, JobStatus::Completed, "{:?}", job.error);
    let result = job.result.unwrap();
    assert_eq!(result.summary["fine"], 1);
    let log = std::fs::read(PathBuf::from(result.output_location).with_file_name("agent.log")).unwrap();
    let text = String::from_utf8_lossy(&log);
    assert!(text.contains("{\"progress\": 0.5\n") && text.contains("no end of line\n"));
}

#[tokio::test]
async fn a_huge_line_is_cut_and_a_huge_result_refused() {
    let site = Site::with_script(
        r#"
        head -c 3000000 /dev/zero | tr '\0' x
        echo
        echo '{"result": {"fine": 1}}'
        "#,
    );
    let job = site.run().await;
    assert_eq!(job.status, JobStatus::Completed, "{:?}", job.error);
    let log = PathBuf::from(job.result.unwrap().output_location).with_file_name("agent.log");
    let text = std::fs::read_to_string(log).unwrap();
    assert!(text.len() < 66_000 && text.ends_with("x [2934464 bytes of this line were dropped]\n"), "{}", text.len());

    let site = Site::with_script(
        r#"
        printf '{"result": {"x": "'
        head -c 3000000 /dev/zero | tr '\0' x
        echo '"}}'
        "#,
    );
    let error = site.run().await.error.unwrap();
    assert_eq!((error.code.as_str(), error.retriable), ("bad_result", false));
    assert!(error.message.contains("256 kB"), "{}", error.message);

    // Longer than a line of log may be, but a result.
    let site = Site::with_script(
        r#"
        printf '{"result": {"x": "'
        head -c 200000 /dev/zero | tr '\0' x
        echo '"}}'
        "#,
    );
    let job = site.run().await;
    assert_eq!(job.result.unwrap().summary["x"].as_str().unwrap().len(), 200_000);
}

#[tokio::test]
async fn a_flood_fills_neither_disk_nor_memory_and_can_be_cancelled() {
    let site = Site::with_script(r#"echo $$ > "$here/pid"; yes 'a line of a flood that never ends'"#);
    let id = site.submit();
    let working = site.start();
    let pid = site.pid("pid").await;
    let run = until("a rotated log", || {
        let run = site.path("runs").join(id.to_string()).join("attempt-1");
        run.join("agent.log.1").exists().then_some(run)
    })
    .await;
    site.control.cancel(id);
    site.queue.publish("commands.job.cancel", id);
    assert_eq!(site.control.ended(id).await.status, JobStatus::Cancelled);
    working.stop().await;
    assert!(!is_alive(pid));
    let size = |name: &str| std::fs::metadata(run.join(name)).unwrap().len();
    assert!(size("agent.log") + size("agent.log.1") <= 1 << 20);
}
