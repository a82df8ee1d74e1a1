//! AlphaCal: per-antenna complex gains from visibilities and a model of the sky.

mod bootstrap;
mod solve;
mod visibilities;

use serde_json::{Value, json};

use super::SampleAgent;
use super::complex::Complex;
use super::contract::{Job, Reporter, figure};
use super::error::AgentError;
use super::params::{self, Kind, Params, Spec};
use super::random::SplitMix64;
use super::robust::median;
use bootstrap::{Errors, standard_errors};
use solve::{Settings, Solution, predict, solve};
use visibilities::{Dataset, Visibility};

pub(super) const AGENT: SampleAgent = SampleAgent {
    name: "AlphaCal",
    command: "calibrate",
    description: "Antenna gain calibration: solves the complex gain of every antenna from visibilities and a sky \
        model by alternating least squares, resists outliers, and gives standard errors.",
    datasets: "alpha-cal",
    params_schema: schema,
    run,
};

static PARAMS: &[Spec] = &[
    Spec {
        name: "reference_antenna",
        title: "Reference antenna",
        description: "The antenna whose phase is zero; it must have data in every solution interval.",
        kind: Kind::Integer { default: 0, minimum: 0, maximum: 255 },
    },
    Spec {
        name: "solution_interval",
        title: "Solution interval",
        description: "Timestamps that share one set of gains; 0 solves once over the whole dataset.",
        kind: Kind::Integer { default: 0, minimum: 0, maximum: 100_000 },
    },
    Spec {
        name: "robust",
        title: "Resist outliers",
        description: "Weigh down visibilities far from the fit (Huber weights beyond 3 sigma).",
        kind: Kind::Boolean { default: true },
    },
    Spec {
        name: "tolerance",
        title: "Tolerance",
        description: "Relative change of the gains at which they have converged.",
        kind: Kind::Number { default: 1e-8, minimum: 1e-13, maximum: 0.01 },
    },
    Spec {
        name: "max_iterations",
        title: "Iteration limit",
        description: "Iterations after which a fit that has not converged is given up.",
        kind: Kind::Integer { default: 500, minimum: 2, maximum: 10_000 },
    },
    Spec {
        name: "bootstrap_samples",
        title: "Bootstrap samples",
        description: "Resampled fits per dataset for the standard errors, shared between the solution intervals; \
            0 gives none. The run time grows with it.",
        kind: Kind::Integer { default: 50_000, minimum: 0, maximum: 1_000_000 },
    },
    Spec {
        name: "seed",
        title: "Random seed",
        description: "The same seed gives the same standard errors.",
        kind: Kind::Integer { default: 1, minimum: 0, maximum: 1_000_000_000 },
    },
];

/// Antennas whose amplitude is below this part of the median count as dead.
const DEAD_FRACTION: f64 = 0.05;
/// Rows of the gain table a result carries; `gains.csv` has all.
const RESULT_GAINS: usize = 64;

fn schema() -> Value {
    params::schema("AlphaCal parameters", AGENT.description, PARAMS)
}

/// The gains of one solution interval.
struct Interval {
    /// Visibilities between solvable antennas; never empty.
    rows: Vec<Visibility>,
    solvable: Vec<bool>,
    solution: Solution,
    errors: Option<Errors>,
}

fn run(job: &Job, reporter: &mut Reporter<'_>) -> Result<Value, AgentError> {
    let params = Params::check(PARAMS, &job.params)?;
    reporter.progress(0.0, || "reading visibilities".into())?;
    let dataset = Dataset::parse(&job.read_dataset()?)?;
    let settings = Settings {
        antennas: dataset.antennas,
        reference: params.count("reference_antenna"),
        max_iterations: params.count("max_iterations"),
        tolerance: params.number("tolerance"),
        robust: params.boolean("robust"),
    };
    if settings.reference >= dataset.antennas {
        let last = dataset.antennas - 1;
        return Err(AgentError::param("reference_antenna", format!("must be from 0 to {last} for this dataset")));
    }

    reporter.phase(0.0, 0.05);
    let mut intervals = solve_intervals(&dataset, params.count("solution_interval"), &settings, reporter)?;
    reporter.phase(0.05, 0.98);
    let samples = params.count("bootstrap_samples");
    estimate_errors(&mut intervals, &settings, samples, params.integer("seed") as u64, reporter)?;
    write_outputs(job, &dataset, &intervals)?;
    Ok(report(&dataset, &settings, &intervals))
}

fn solve_intervals(
    dataset: &Dataset,
    timestamps: usize,
    settings: &Settings,
    reporter: &mut Reporter<'_>,
) -> Result<Vec<Interval>, AgentError> {
    let ranges = dataset.intervals(timestamps);
    let count = ranges.len();
    let mut intervals = Vec::with_capacity(count);
    for (index, range) in ranges.into_iter().enumerate() {
        let rows = &dataset.rows[range];
        let solvable = visibilities::solvable(rows, dataset.antennas, settings.reference).map_err(|reason| {
            let start = dataset.times[rows[0].time];
            AgentError::dataset(None, format!("{reason}, in the solution interval that starts at {start} s"))
        })?;
        let rows: Vec<Visibility> = rows.iter().copied().filter(|row| solvable[row.p] && solvable[row.q]).collect();
        let observed: Vec<Complex> = rows.iter().map(|row| row.observed).collect();
        let solution = solve(&rows, &observed, None, settings);
        reporter.progress((index + 1) as f64 / count as f64, || format!("solved interval {} of {count}", index + 1))?;
        intervals.push(Interval { rows, solvable, solution, errors: None });
    }
    Ok(intervals)
}

fn estimate_errors(
    intervals: &mut [Interval],
    settings: &Settings,
    samples: usize,
    seed: u64,
    reporter: &mut Reporter<'_>,
) -> Result<(), AgentError> {
    if samples == 0 {
        return Ok(());
    }
    let mut random = SplitMix64::new(seed);
    // Fewer than 20 samples would give an error bar of no use.
    let each = (samples / intervals.len()).max(20);
    let total = each * intervals.len();
    let mut done = 0;
    for interval in intervals {
        let errors = standard_errors(&interval.rows, &interval.solution, settings, each, &mut random, || {
            done += 1;
            reporter.progress(done as f64 / total as f64, || format!("bootstrap sample {done} of {total}"))
        })?;
        interval.errors = Some(errors);
    }
    Ok(())
}

/// `gains.csv` and `convergence.csv`.
fn write_outputs(job: &Job, dataset: &Dataset, intervals: &[Interval]) -> Result<(), AgentError> {
    job.write_output("gains.csv", |file| {
        writeln!(file, "# gains of V = g1 M conj(g2); phases relative to the reference antenna")?;
        writeln!(file, "start_s,end_s,antenna,amplitude,amplitude_error,phase_deg,phase_error_deg")?;
        for interval in intervals {
            let (start, end) = interval.span(dataset);
            for antenna in (0..dataset.antennas).filter(|&antenna| interval.solvable[antenna]) {
                let gain = interval.solution.gains[antenna];
                let (amplitude_error, phase_error) = interval.errors_of(antenna).map_or_else(
                    || (String::new(), String::new()),
                    |(amplitude, phase)| (format!("{amplitude:.6}"), format!("{:.4}", phase.to_degrees())),
                );
                let (amplitude, phase) = (gain.abs(), gain.arg().to_degrees());
                writeln!(file, "{start},{end},{antenna},{amplitude:.6},{amplitude_error},{phase:.4},{phase_error}")?;
            }
        }
        Ok(())
    })?;
    job.write_output("convergence.csv", |file| {
        writeln!(file, "start_s,iteration,relative_change")?;
        for interval in intervals {
            for (index, change) in interval.solution.changes.iter().enumerate() {
                writeln!(file, "{},{},{change:.3e}", interval.span(dataset).0, 2 * (index + 1))?;
            }
        }
        Ok(())
    })
}

impl Interval {
    /// First and last time, in seconds.
    fn span(&self, dataset: &Dataset) -> (f64, f64) {
        let last = self.rows.len() - 1;
        (dataset.times[self.rows[0].time], dataset.times[self.rows[last].time])
    }

    fn errors_of(&self, antenna: usize) -> Option<(f64, f64)> {
        self.errors.as_ref().map(|errors| (errors.amplitude[antenna], errors.phase[antenna]))
    }

    fn dead(&self) -> Vec<usize> {
        let amplitudes: Vec<f64> = self.solution.gains.iter().map(|gain| gain.abs()).collect();
        let mut solved: Vec<f64> =
            amplitudes.iter().zip(&self.solvable).filter(|(_, solvable)| **solvable).map(|(&gain, _)| gain).collect();
        let limit = DEAD_FRACTION * median(&mut solved);
        (0..amplitudes.len()).filter(|&antenna| self.solvable[antenna] && amplitudes[antenna] < limit).collect()
    }
}

fn report(dataset: &Dataset, settings: &Settings, intervals: &[Interval]) -> Value {
    let (mut before, mut after, mut chi_squared, mut count, mut outliers) = (0.0, 0.0, 0.0, 0usize, 0usize);
    for interval in intervals {
        for (row, &weight) in interval.rows.iter().zip(&interval.solution.weights) {
            let residual = (row.observed - predict(row, &interval.solution.gains)).norm_sqr();
            before += (row.observed - row.model).norm_sqr();
            after += residual;
            chi_squared += residual / (row.sigma * row.sigma);
            count += 1;
            outliers += usize::from(weight < 0.5);
        }
    }
    // A complex gain an antenna, less the phase of the reference; two reals a visibility.
    let solved = |interval: &Interval| interval.solvable.iter().filter(|solvable| **solvable).count();
    let fitted: usize = intervals.iter().map(|interval| 2 * solved(interval) - 1).sum();
    let freedom = (2 * count).saturating_sub(fitted);
    let unsolved: Vec<usize> =
        (0..dataset.antennas).filter(|&antenna| intervals.iter().any(|interval| !interval.solvable[antenna])).collect();
    let mut dead: Vec<usize> = intervals.iter().flat_map(Interval::dead).collect();
    dead.sort_unstable();
    dead.dedup();
    let mut noise: Vec<f64> = intervals.iter().map(|interval| interval.solution.noise_scale).collect();
    let changes = |interval: &Interval| interval.solution.changes.len();
    let gains: Vec<Value> = intervals
        .iter()
        .flat_map(|interval| (0..dataset.antennas).map(move |antenna| (interval, antenna)))
        .filter(|(interval, antenna)| interval.solvable[*antenna])
        .take(RESULT_GAINS)
        .map(|(interval, antenna)| {
            let gain = interval.solution.gains[antenna];
            let errors = interval.errors_of(antenna);
            json!({
                "start_s": interval.span(dataset).0,
                "antenna": antenna,
                "amplitude": figure(gain.abs()),
                "amplitude_error": errors.map(|errors| figure(errors.0)),
                "phase_deg": figure(gain.arg().to_degrees()),
                "phase_error_deg": errors.map(|errors| figure(errors.1.to_degrees())),
            })
        })
        .collect();
    json!({
        "antennas": dataset.antennas,
        "visibilities": dataset.rows.len(),
        "timestamps": dataset.times.len(),
        "solution_intervals": intervals.len(),
        "reference_antenna": settings.reference,
        "converged": intervals.iter().all(|interval| interval.solution.converged),
        "iterations": 2 * intervals.iter().map(changes).max().unwrap_or(0),
        "residual_rms_before_jy": figure((before / count as f64).sqrt()),
        "residual_rms_after_jy": figure((after / count as f64).sqrt()),
        "reduced_chi_squared": (freedom > 0).then(|| figure(chi_squared / freedom as f64)),
        "noise_scale": figure(median(&mut noise)),
        "outliers": outliers,
        "dead_antennas": dead,
        "unsolved_antennas": unsolved,
        "gains": gains,
        "files": ["gains.csv", "convergence.csv"],
    })
}
