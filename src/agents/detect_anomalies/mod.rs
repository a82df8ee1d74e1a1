//! AnomalyDetection: anomalies in a time series with a trend and a season.

mod decompose;
mod events;
mod series;

use serde_json::{Value, json};

use super::SampleAgent;
use super::contract::{Job, Reporter, figure};
use super::error::AgentError;
use super::params::{self, Kind, Params, Spec};
use super::random::SplitMix64;
use decompose::{Decomposition, Settings, decompose};
use events::Event;
use series::Series;

pub(super) const AGENT: SampleAgent = SampleAgent {
    name: "AnomalyDetection",
    command: "detect-anomalies",
    description: "Finds anomalies in a time series: takes out trend and season by medians, scores what is left in \
        robust standard deviations, merges it to events, and simulates how likely noise alone makes them.",
    datasets: "anomaly-detection",
    params_schema: schema,
    run,
};

const YEAR_S: f64 = 366.0 * 86_400.0;

static PARAMS: &[Spec] = &[
    Spec {
        name: "period_s",
        title: "Season (s)",
        description: "Length of the season in seconds, 4 samples to half of the series; 0 for none.",
        kind: Kind::Number { default: 86_400.0, minimum: 0.0, maximum: YEAR_S },
    },
    Spec {
        name: "trend_window_s",
        title: "Trend window (s)",
        description: "The trend is the median over this many seconds; best a whole number of seasons.",
        kind: Kind::Number { default: 86_400.0, minimum: 1.0, maximum: YEAR_S },
    },
    Spec {
        name: "threshold",
        title: "Threshold",
        description: "Score from which a sample is anomalous, in robust standard deviations.",
        kind: Kind::Number { default: 5.0, minimum: 2.5, maximum: 100.0 },
    },
    Spec {
        name: "merge_gap",
        title: "Merge gap",
        description: "Anomalous samples with at most this many others between them are one event.",
        kind: Kind::Integer { default: 4, minimum: 0, maximum: 10_000 },
    },
    Spec {
        name: "iterations",
        title: "Passes",
        description: "Passes of the decomposition; each leaves out what the one before found anomalous.",
        kind: Kind::Integer { default: 3, minimum: 1, maximum: 20 },
    },
    Spec {
        name: "simulations",
        title: "Simulations",
        description: "Noise-only series that are decomposed to give each event its false alarm probability; 0 gives \
            none. The run time grows with it.",
        kind: Kind::Integer { default: 5_000, minimum: 0, maximum: 1_000_000 },
    },
    Spec {
        name: "seed",
        title: "Random seed",
        description: "The same seed gives the same probabilities.",
        kind: Kind::Integer { default: 1, minimum: 0, maximum: 1_000_000_000 },
    },
];

/// Events a result carries, the strongest; `anomalies.csv` has all.
const RESULT_EVENTS: usize = 50;

fn schema() -> Value {
    params::schema("AnomalyDetection parameters", AGENT.description, PARAMS)
}

/// What was found in a series.
struct Findings {
    decomposition: Decomposition,
    correlation: f64,
    events: Vec<Event>,
    /// Largest scores of noise alone, sorted; empty without simulations.
    noise: Vec<f64>,
}

fn run(job: &Job, reporter: &mut Reporter<'_>) -> Result<Value, AgentError> {
    let params = Params::check(PARAMS, &job.params)?;
    reporter.progress(0.0, || "reading the series".into())?;
    let series = Series::parse(&job.read_dataset()?)?;
    let settings = settings(&params, &series)?;

    let decomposition = decompose(&series.values, &settings);
    let events = events::merge(&decomposition.scores, settings.threshold, params.count("merge_gap"));
    let correlation = events::correlation(&decomposition.scores, settings.threshold);
    reporter.phase(0.0, 0.98);
    let simulations = params.count("simulations");
    let mut random = SplitMix64::new(params.integer("seed") as u64);
    let mut done = 0;
    let noise = events::strongest_of_noise(
        &series.values,
        &decomposition,
        correlation,
        &settings,
        simulations,
        &mut random,
        || {
            done += 1;
            reporter.progress(done as f64 / simulations as f64, || format!("simulated {done} of {simulations} series"))
        },
    )?;
    let findings = Findings { decomposition, correlation, events, noise };
    write_outputs(job, &series, &findings)?;
    Ok(report(&series, &settings, &findings))
}

/// Turns seconds into samples of this series.
fn settings(params: &Params, series: &Series) -> Result<Settings, AgentError> {
    let period_s = params.number("period_s");
    let (shortest, longest) = (4.0 * series.cadence, 0.5 * series.cadence * series.values.len() as f64);
    if period_s != 0.0 && !(shortest..=longest).contains(&period_s) {
        let reason = format!("must be 0 or from {shortest} to {longest} for this dataset");
        return Err(AgentError::param("period_s", reason));
    }
    let window_s = params.number("trend_window_s");
    let shortest = 3.0 * series.cadence;
    if window_s < shortest {
        return Err(AgentError::param("trend_window_s", format!("must be at least {shortest} for this dataset")));
    }
    Ok(Settings {
        period: (period_s > 0.0).then_some(period_s / series.cadence),
        half_window: ((0.5 * window_s / series.cadence).round() as usize).min(series.values.len()),
        iterations: params.count("iterations"),
        threshold: params.number("threshold"),
    })
}

impl Findings {
    fn false_alarm_probability(&self, event: &Event) -> Option<f64> {
        (!self.noise.is_empty()).then(|| events::false_alarm_probability(&self.noise, event.score))
    }

    /// Residual at the peak, in units of the series.
    fn deviation(&self, event: &Event) -> f64 {
        event.score * self.decomposition.sigma
    }
}

/// `anomalies.csv` and `decomposition.csv`.
fn write_outputs(job: &Job, series: &Series, findings: &Findings) -> Result<(), AgentError> {
    job.write_output("anomalies.csv", |file| {
        writeln!(file, "start_s,end_s,peak_s,samples,score,deviation,false_alarm_probability")?;
        for event in &findings.events {
            let probability = findings.false_alarm_probability(event).map(|p| format!("{p:.6}")).unwrap_or_default();
            let (start, end, peak) = (series.time(event.first), series.time(event.last), series.time(event.peak));
            let (samples, score, deviation) = (event.samples, event.score, findings.deviation(event));
            writeln!(file, "{start},{end},{peak},{samples},{score:.3},{deviation:.6},{probability}")?;
        }
        Ok(())
    })?;
    job.write_output("decomposition.csv", |file| {
        writeln!(file, "time_s,value,trend,seasonal,score")?;
        let parts = &findings.decomposition;
        for (at, value) in series.values.iter().enumerate() {
            if let (Some(value), Some(score)) = (value, parts.scores[at]) {
                let (time, trend, seasonal) = (series.time(at), parts.trend[at], parts.seasonal[at]);
                writeln!(file, "{time},{value},{trend:.6},{seasonal:.6},{score:.3}")?;
            }
        }
        Ok(())
    })
}

fn report(series: &Series, settings: &Settings, findings: &Findings) -> Value {
    let mut strongest: Vec<&Event> = findings.events.iter().collect();
    strongest.sort_by(|a, b| b.score.abs().total_cmp(&a.score.abs()));
    strongest.truncate(RESULT_EVENTS);
    let anomalies: Vec<Value> = strongest
        .into_iter()
        .map(|event| {
            json!({
                "start_s": series.time(event.first),
                "end_s": series.time(event.last),
                "peak_s": series.time(event.peak),
                "samples": event.samples,
                "direction": if event.score > 0.0 { "high" } else { "low" },
                "score": figure(event.score),
                "deviation": figure(findings.deviation(event)),
                "false_alarm_probability": findings.false_alarm_probability(event).map(figure),
            })
        })
        .collect();
    let amplitude = findings
        .decomposition
        .seasonal
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &x| (low.min(x), high.max(x)));
    json!({
        "samples": series.samples(),
        "missing_samples": series.values.len() - series.samples(),
        "cadence_s": figure(series.cadence),
        "threshold": settings.threshold,
        "residual_sigma": figure(findings.decomposition.sigma),
        "residual_correlation": figure(findings.correlation),
        "seasonal_range": figure(amplitude.1 - amplitude.0),
        "anomalies_total": findings.events.len(),
        "anomalies": anomalies,
        "files": ["anomalies.csv", "decomposition.csv"],
    })
}
