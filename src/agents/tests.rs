//! The agents on the datasets that ship, held against the truth those were made with; and the
//! contract, with a real process.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::complex::Complex;
use super::generate::{CalibrationTruth, ImagingTruth, SeriesTruth};
use super::*;

/// One run of an agent.
struct Run {
    dir: TempDir,
    exit_code: u8,
    lines: Vec<Value>,
}

impl Run {
    fn new(command: &str, dataset: &str, params: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let job_file = job_file(&dir, dataset, params);
        let mut out = Vec::new();
        let exit_code = run(command, Some(&job_file), &mut out);
        let lines = String::from_utf8(out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        Self { dir, exit_code, lines }
    }

    /// The result of a run that keeps the contract.
    fn result(&self) -> &Value {
        assert_eq!(self.exit_code, 0, "{:?}", self.lines.last());
        let (last, progress) = self.lines.split_last().unwrap();
        let progress: Vec<f64> = progress.iter().map(|line| line["progress"].as_f64().unwrap()).collect();
        assert!(progress.windows(2).all(|pair| pair[0] <= pair[1]), "{progress:?}");
        assert_eq!((progress[0], progress[progress.len() - 1]), (0.0, 1.0));
        for file in last["result"]["files"].as_array().unwrap() {
            assert!(self.output(file.as_str().unwrap()).metadata().unwrap().len() > 0);
        }
        &last["result"]
    }

    /// Code and message of a run that refused its input.
    fn refusal(&self) -> (&str, &str) {
        assert_eq!(self.exit_code, 2);
        let error = &self.lines.last().unwrap()["error"];
        assert_eq!(error["retriable"], false);
        (error["code"].as_str().unwrap(), error["message"].as_str().unwrap())
    }

    fn output(&self, name: &str) -> PathBuf {
        self.dir.path().join("out").join(name)
    }

    /// Rows of a CSV file the agent wrote; empty cells are NaN.
    fn table(&self, name: &str) -> Vec<Vec<f64>> {
        let text = std::fs::read_to_string(self.output(name)).unwrap();
        let rows = text.lines().filter(|line| !line.starts_with('#')).skip(1);
        rows.map(|line| line.split(',').map(|cell| cell.parse().unwrap_or(f64::NAN)).collect()).collect()
    }
}

fn job_file(dir: &TempDir, dataset: &str, params: Value) -> PathBuf {
    let dataset_path = dir.path().join("dataset.csv");
    std::fs::write(&dataset_path, dataset).unwrap();
    let job = json!({
        "job_id": "0198c7a2-0000-7000-8000-000000000000", "attempt": 1, "agent": "x", "dataset_id": "dataset.csv",
        "dataset_path": dataset_path, "params": params, "resource_request": {}, "output_dir": dir.path().join("out"),
        "wall_time_seconds": 60,
    });
    let path = dir.path().join("job.json");
    std::fs::write(&path, job.to_string()).unwrap();
    path
}

fn calibration(id: &str) -> (String, CalibrationTruth) {
    let found = generate::calibration_datasets().into_iter().find(|dataset| dataset.id.contains(id)).unwrap();
    (found.contents, found.truth)
}

fn imaging(id: &str) -> (String, ImagingTruth) {
    let found = generate::imaging_datasets().into_iter().find(|dataset| dataset.id.contains(id)).unwrap();
    (found.contents, found.truth)
}

fn series(id: &str) -> (String, SeriesTruth) {
    let found = generate::series_datasets().into_iter().find(|dataset| dataset.id.contains(id)).unwrap();
    (found.contents, found.truth)
}

#[test]
fn calibration_recovers_the_gains_within_their_errors() {
    let (dataset, truth) = calibration("point-source");
    let run = Run::new("calibrate", &dataset, json!({"bootstrap_samples": 200}));
    let result = run.result();
    assert_eq!((&result["converged"], &result["solution_intervals"]), (&json!(true), &json!(1)));
    assert_eq!(result["outliers"], truth.outliers);
    let gains = run.table("gains.csv");
    assert_eq!(gains.len(), 10);
    let mut pulls = Vec::new();
    for row in &gains {
        let (antenna, amplitude, error, phase, phase_error) = (row[2] as usize, row[3], row[4], row[5], row[6]);
        let expected = truth.gains[0][antenna];
        assert!(error > 0.001 && error < 0.02, "{error}");
        pulls.push((amplitude - expected.abs()) / error);
        if antenna > 0 {
            assert!(phase_error < 2.0);
            pulls.push((phase - expected.arg().to_degrees()) / phase_error);
        }
    }
    // 19 deviates in units of their errors: their mean square is 1 within a few tenths.
    let mean_square = pulls.iter().map(|pull| pull * pull).sum::<f64>() / pulls.len() as f64;
    assert!(pulls.iter().all(|pull| pull.abs() < 4.0) && (0.3..2.5).contains(&mean_square), "{pulls:?}");
    let rms = |key: &str| result[key].as_f64().unwrap();
    assert!(rms("residual_rms_after_jy") < 0.5 * rms("residual_rms_before_jy"));
    assert!((rms("noise_scale") - 1.0).abs() < 0.1);
    // The last relative change is the one that met the tolerance.
    assert!(run.table("convergence.csv").last().unwrap()[2] <= 1e-8);
}

#[test]
fn calibration_follows_drifting_phases_in_short_intervals_only() {
    let (dataset, truth) = calibration("drifting");
    let short = Run::new("calibrate", &dataset, json!({"solution_interval": 2, "bootstrap_samples": 0}));
    let whole = Run::new("calibrate", &dataset, json!({"bootstrap_samples": 0}));
    assert_eq!(short.result()["solution_intervals"], 16);
    assert!((short.result()["noise_scale"].as_f64().unwrap() - 1.0).abs() < 0.15);
    assert!(whole.result()["noise_scale"].as_f64().unwrap() > 1.8);
    for (index, row) in short.table("gains.csv").iter().enumerate() {
        let (interval, antenna) = (index / 8, index % 8);
        let expected = (truth.gains[2 * interval][antenna] + truth.gains[2 * interval + 1][antenna]).scale(0.5);
        let found = Complex::polar(row[3], row[5].to_radians());
        assert!((found - expected).abs() < 0.12, "interval {interval} antenna {antenna}: {row:?} {expected:?}");
    }
}

#[test]
fn calibration_names_the_dead_antenna() {
    let (dataset, _) = calibration("dead");
    let run = Run::new("calibrate", &dataset, json!({"bootstrap_samples": 0}));
    assert_eq!(run.result()["dead_antennas"], json!([7]));
    assert_eq!(run.result()["converged"], true);
}

#[test]
fn calibration_leaves_unconnected_antennas_unsolved() {
    let (dataset, _) = calibration("point-source");
    // Antenna 9 keeps no baseline.
    let dataset: String =
        dataset.lines().filter(|line| !line.contains(",9,")).map(|line| format!("{line}\n")).collect();
    let dataset = dataset + "99999,20,21,1,0,1,0,1\n";
    let run = Run::new("calibrate", &dataset, json!({"bootstrap_samples": 20}));
    assert_eq!(run.result()["unsolved_antennas"], json!([9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]));
    assert_eq!(run.table("gains.csv").len(), 9);
}

/// Cells (timestamp, channel, baseline) an imaging run flagged.
fn flagged(run: &Run) -> HashSet<(usize, usize, (usize, usize))> {
    let cell = |row: &Vec<f64>| ((row[0] / 300.0) as usize, row[3] as usize, (row[1] as usize, row[2] as usize));
    run.table("flags.csv").iter().map(cell).collect()
}

/// Part of the interference that was flagged, and part of the clean cells that were.
fn flagging_rates(run: &Run, truth: &ImagingTruth, baselines: usize) -> (f64, f64) {
    let flagged = flagged(run);
    let hits = flagged.iter().filter(|(time, channel, _)| truth.interference.contains(&(*time, *channel))).count();
    let bad = truth.interference.len() * baselines;
    let clean = truth.timestamps * 24 * baselines - bad;
    (hits as f64 / bad as f64, (flagged.len() - hits) as f64 / clean as f64)
}

fn assert_brightest_source(result: &Value, truth: &ImagingTruth, tolerance_jy: f64) {
    let (flux, east, north) = truth.sources[0];
    let figure = |key: &str| result[key].as_f64().unwrap();
    let pixel = figure("pixel_arcsec");
    assert!((figure("peak_jy_per_beam") - flux).abs() < tolerance_jy, "{result}");
    assert!((figure("peak_east_arcsec") - east).abs() < 0.5 * pixel, "{result}");
    assert!((figure("peak_north_arcsec") - north).abs() < 0.5 * pixel, "{result}");
}

#[test]
fn imaging_flags_strong_interference_and_finds_the_source() {
    let (dataset, truth) = imaging("strong");
    let run = Run::new("flag-and-image", &dataset, json!({"image_size": 128}));
    let (recall, false_alarms) = flagging_rates(&run, &truth, 21);
    assert!(recall > 0.98 && false_alarms < 0.02, "{recall} {false_alarms}");
    assert_brightest_source(run.result(), &truth, 0.03);
    let fraction = run.result()["flagged_fraction"].as_f64().unwrap();
    assert!((fraction - flagged(&run).len() as f64 / (21.0 * 16.0 * 24.0)).abs() < 1e-5);
    assert_eq!(run.result()["most_flagged_channels"][0]["channel"], 5);

    let blind = Run::new("flag-and-image", &dataset, json!({"image_size": 128, "threshold": 50, "flag_iterations": 1}));
    let noise = |run: &Run| run.result()["robust_rms_jy_per_beam"].as_f64().unwrap();
    assert!(noise(&run) < noise(&blind), "{} {}", noise(&run), noise(&blind));
}

#[test]
fn imaging_flags_weak_interference_and_keeps_quiet_data() {
    let (dataset, truth) = imaging("weak");
    let run = Run::new("flag-and-image", &dataset, json!({"image_size": 128}));
    let (recall, false_alarms) = flagging_rates(&run, &truth, 15);
    assert!(recall > 0.8 && false_alarms < 0.02, "{recall} {false_alarms}");
    // The other source's sidelobes reach the brightest one.
    assert_brightest_source(run.result(), &truth, 0.2);

    let (dataset, truth) = imaging("quiet");
    let run = Run::new("flag-and-image", &dataset, json!({"image_size": 128, "weighting": "uniform"}));
    assert!(flagged(&run).len() < 20, "{}", flagged(&run).len());
    assert_brightest_source(run.result(), &truth, 0.05);
}

#[test]
fn the_image_file_shows_what_the_result_says() {
    let (dataset, _) = imaging("strong");
    let run = Run::new("flag-and-image", &dataset, json!({"image_size": 64}));
    let bytes = std::fs::read(run.output("image.pgm")).unwrap();
    let (header, pixels) = bytes.split_at(bytes.len() - 2 * 64 * 64);
    assert!(header.starts_with(b"P5\n#") && header.ends_with(b"\n64 64\n65535\n"));
    let brightest = pixels.chunks(2).position(|pixel| pixel == [255, 255]).unwrap();
    let pixel = run.result()["pixel_arcsec"].as_f64().unwrap();
    let (east, north) = ((32.0 - (brightest % 64) as f64) * pixel, (32.0 - (brightest / 64) as f64) * pixel);
    assert!((east - run.result()["peak_east_arcsec"].as_f64().unwrap()).abs() < pixel);
    assert!((north - run.result()["peak_north_arcsec"].as_f64().unwrap()).abs() < pixel);
}

#[test]
fn anomalies_are_those_that_were_injected() {
    for id in ["system-temperature", "station-power", "quiet-receiver"] {
        let (dataset, truth) = series(id);
        let run = Run::new("detect-anomalies", &dataset, json!({"simulations": 99}));
        let result = run.result();
        let mut found: Vec<&Value> = result["anomalies"].as_array().unwrap().iter().collect();
        found.sort_by(|a, b| a["start_s"].as_f64().unwrap().total_cmp(&b["start_s"].as_f64().unwrap()));
        assert_eq!(found.len(), truth.anomalies.len(), "{id}: {result}");
        assert_eq!(result["anomalies_total"], found.len());
        assert_eq!(run.table("anomalies.csv").len(), found.len());
        for (event, &(start, end, high)) in found.iter().zip(&truth.anomalies) {
            let time = |key: &str| event[key].as_f64().unwrap();
            assert!(time("start_s") <= end && time("end_s") >= start, "{id}: {event}");
            assert!((start..=end).contains(&time("peak_s")), "{id}: {event}");
            assert_eq!(event["direction"], if high { "high" } else { "low" });
            assert!(time("false_alarm_probability") <= 0.05, "{id}: {event}");
        }
    }
}

#[test]
fn gaps_of_a_series_are_counted_not_filled() {
    let (dataset, _) = series("station-power");
    let run = Run::new("detect-anomalies", &dataset, json!({"simulations": 0}));
    let result = run.result();
    assert_eq!((&result["samples"], &result["missing_samples"]), (&json!(1410), &json!(30)));
    assert_eq!(run.table("decomposition.csv").len(), 1410);
    assert!(result["anomalies"].as_array().unwrap().iter().all(|event| event["false_alarm_probability"].is_null()));
}

#[test]
fn schemas_are_what_a_form_needs_and_accept_the_defaults() {
    for agent in ALL {
        let schema = (agent.params_schema)();
        assert!(jsonschema::meta::is_valid(&schema));
        assert_eq!(schema["additionalProperties"], false);
        let validator = jsonschema::validator_for(&schema).unwrap();
        let mut defaults = json!({});
        for (name, property) in schema["properties"].as_object().unwrap() {
            for key in ["title", "description", "type", "default", "x-order"] {
                assert!(!property[key].is_null(), "{} {name} {key}", agent.name);
            }
            if ["integer", "number"].contains(&property["type"].as_str().unwrap()) {
                assert!(property["minimum"].is_number() && property["maximum"].is_number());
            }
            defaults[name] = property["default"].clone();
        }
        assert!(validator.is_valid(&defaults), "{}", agent.name);
    }
}

#[test]
fn bad_parameters_are_refused_with_field_and_range() {
    let datasets: HashMap<&str, String> = [
        ("calibrate", calibration("point-source").0),
        ("flag-and-image", imaging("quiet").0),
        ("detect-anomalies", series("quiet").0),
    ]
    .into();
    for (command, params, expected) in [
        ("calibrate", json!({"speed": 1}), "params.speed: unknown parameter; known are reference_antenna, "),
        ("calibrate", json!({"robust": 1}), "params.robust: must be true or false"),
        ("calibrate", json!({"tolerance": 0}), "params.tolerance: must be a number from 0.0000000000001 to 0.01"),
        (
            "calibrate",
            json!({"reference_antenna": 10}),
            "params.reference_antenna: must be from 0 to 9 for this dataset",
        ),
        ("flag-and-image", json!({"image_size": 31}), "params.image_size: must be an integer from 32 to 2048"),
        ("flag-and-image", json!({"weighting": "briggs"}), "params.weighting: must be one of natural, uniform"),
        ("detect-anomalies", json!({"seed": -1}), "params.seed: must be an integer from 0 to 1000000000"),
        (
            "detect-anomalies",
            json!({"period_s": 10}),
            "params.period_s: must be 0 or from 2400 to 432000 for this dataset",
        ),
        (
            "detect-anomalies",
            json!({"trend_window_s": 60}),
            "params.trend_window_s: must be at least 1800 for this dataset",
        ),
        ("detect-anomalies", json!([]), "params: must be an object"),
    ] {
        let run = Run::new(command, &datasets[command], params);
        let (code, message) = run.refusal();
        assert!(code == "bad_params" && message.starts_with(expected), "{code} {message}");
        assert!(!run.output("").exists(), "a refused job writes nothing");
    }
}

#[test]
fn bad_datasets_and_job_files_are_refused() {
    let bad = |command, dataset: &str| {
        let run = Run::new(command, dataset, Value::Null);
        let (code, message) = run.refusal();
        assert_eq!(code, "bad_dataset");
        message.to_owned()
    };
    for agent in ALL {
        assert_eq!(bad(agent.command, ""), "dataset: the file is empty");
        assert!(bad(agent.command, "a,b\n1,2\n").starts_with("dataset line 1: the columns must be"));
        assert_eq!(bad(agent.command, "a,b\n1,\u{0}\n"), "dataset line 2: b must be a finite number");
    }
    let pair = "time_s,antenna_1,antenna_2,vis_re,vis_im,model_re,model_im,sigma\n0,0,1,1,0,1,0,1\n";
    assert!(bad("calibrate", pair).contains("close no triangle"));
    let centre = "# first_channel_mhz: 1\n# channel_width_mhz: 1\ntime_s,antenna_1,antenna_2,u_m,v_m,ch0_re,ch0_im\n0,0,1,0,0,1,0\n";
    assert!(bad("flag-and-image", centre).contains("nothing to image"));

    let dir = tempfile::tempdir().unwrap();
    let refuse = |command: &str, job_file: Option<&Path>| {
        let mut out = Vec::new();
        let exit_code = run(command, job_file, &mut out);
        let last = out.trim_ascii_end().rsplit(|&byte| byte == b'\n').next().unwrap();
        (exit_code, serde_json::from_slice::<Value>(last).unwrap()["error"].clone())
    };
    let (exit_code, error) = refuse("calibrate", None);
    assert_eq!((exit_code, &error["code"]), (2, &json!("bad_job_file")));
    let (exit_code, error) = refuse("paint", None);
    assert!(exit_code == 2 && error["message"].as_str().unwrap().contains("calibrate, flag-and-image"));
    let (exit_code, error) = refuse("calibrate", Some(&dir.path().join("none.json")));
    assert_eq!((exit_code, &error["code"], &error["retriable"]), (1, &json!("io_error"), &json!(true)));
    let job = job_file(&dir, "", Value::Null);
    std::fs::write(dir.path().join("dataset.csv"), b"a,b\n1,2\n\xff,1\n").unwrap();
    let (_, error) = refuse("calibrate", Some(&job));
    assert_eq!(error["message"], "dataset line 3: not UTF-8 text");
    std::fs::remove_file(dir.path().join("dataset.csv")).unwrap();
    let (exit_code, error) = refuse("calibrate", Some(&job));
    assert_eq!((exit_code, &error["message"]), (2, &json!("dataset: there is no such file")));
    std::fs::write(&job, "{").unwrap();
    assert_eq!(refuse("calibrate", Some(&job)).1["code"], "bad_job_file");
}

/// Not a test of its own: the process that the tests below start.
#[test]
#[ignore = "started by the tests of the contract"]
fn agent_process() {
    let command = std::env::var("AGENT_COMMAND").expect("set by the test that starts this");
    let job_file = std::env::var_os("GATEWAY_JOB_FILE").map(PathBuf::from);
    std::process::exit(run(&command, job_file.as_deref(), &mut io::stdout()).into());
}

fn start(command: &str, job_file: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["agents::tests::agent_process", "--exact", "--ignored", "--nocapture"])
        .env("AGENT_COMMAND", command)
        .env("GATEWAY_JOB_FILE", job_file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Reads lines until a progress above `least`.
fn wait_for_progress(stdout: &mut impl BufRead, least: f64) {
    let mut line = String::new();
    while stdout.read_line(&mut line).unwrap() > 0 {
        // The test harness writes lines of its own, one without an end.
        let json = line.find('{').map(|at| serde_json::from_str::<Value>(&line[at..]));
        if json.is_some_and(|json| json.is_ok_and(|json| json["progress"].as_f64().is_some_and(|found| found > least)))
        {
            return;
        }
        line.clear();
    }
    panic!("the agent ended early");
}

#[test]
fn term_ends_an_agent_at_once_and_leaves_no_output() {
    let (dataset, _) = series("quiet");
    let dir = tempfile::tempdir().unwrap();
    let job_file = job_file(&dir, &dataset, json!({"simulations": 1_000_000}));
    let mut agent = start("detect-anomalies", &job_file);
    let mut stdout = BufReader::new(agent.stdout.take().unwrap());
    wait_for_progress(&mut stdout, 0.0);
    kill(Pid::from_raw(agent.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(agent.wait().unwrap().signal(), Some(Signal::SIGTERM as i32));
    assert!(!dir.path().join("out").exists());
}

#[test]
fn an_agent_whose_reader_is_gone_ends_by_itself() {
    let (dataset, _) = calibration("point-source");
    let dir = tempfile::tempdir().unwrap();
    let job_file = job_file(&dir, &dataset, json!({"bootstrap_samples": 1_000_000}));
    let mut agent = start("calibrate", &job_file);
    let mut stdout = BufReader::new(agent.stdout.take().unwrap());
    wait_for_progress(&mut stdout, 0.0);
    drop(stdout);
    assert_eq!(agent.wait().unwrap().code(), Some(1));
}
