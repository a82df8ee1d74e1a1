//! Monitoring series with trend, daily season and correlated noise, and injected anomalies.

use std::f64::consts::TAU;
use std::fmt::Write;

use super::super::random::SplitMix64;
use super::Generated;

/// What the series was made with.
#[cfg_attr(not(test), expect(dead_code, reason = "only tests compare with the truth"))]
pub(in super::super) struct SeriesTruth {
    /// First and last time in seconds of each anomaly, and whether it is high.
    pub anomalies: Vec<(f64, f64, bool)>,
}

struct Monitor {
    seed: u64,
    cadence_s: f64,
    samples: usize,
    level: f64,
    /// Amplitude of the slow wave that is the trend.
    trend: f64,
    daily: f64,
    /// Standard deviation and lag-one correlation of the noise.
    noise: (f64, f64),
    /// First and last of missing samples.
    gaps: &'static [(usize, usize)],
    anomalies: &'static [Anomaly],
}

/// Added to `length` samples from `first`, decaying to `1/e` within `decay` samples.
struct Anomaly {
    first: usize,
    length: usize,
    height: f64,
    decay: f64,
}

const DAY_S: f64 = 86_400.0;
const STEADY: f64 = f64::INFINITY;

pub(in super::super) fn datasets() -> Vec<Generated<SeriesTruth>> {
    vec![
        Monitor {
            seed: 301,
            cadence_s: 600.0,
            samples: 2016,
            level: 25.0,
            trend: 1.5,
            daily: 1.6,
            noise: (0.2, 0.4),
            gaps: &[],
            anomalies: &[
                Anomaly { first: 310, length: 1, height: 4.0, decay: STEADY },
                Anomaly { first: 742, length: 3, height: -6.0, decay: STEADY },
                Anomaly { first: 1190, length: 18, height: 2.4, decay: STEADY },
                Anomaly { first: 1701, length: 12, height: 5.0, decay: 6.0 },
            ],
        }
        .record(
            "anomaly-detection/system-temperature.csv",
            "System temperature in K of a receiver every 10 minutes for 14 days: a spike, a drop-out, a raised level \
             of three hours and a jump that decays.",
        ),
        Monitor {
            seed: 302,
            cadence_s: 3600.0,
            samples: 1440,
            level: 118.0,
            trend: 9.0,
            daily: 14.0,
            noise: (1.5, 0.6),
            gaps: &[(200, 205), (911, 934)],
            anomalies: &[
                Anomaly { first: 417, length: 2, height: 26.0, decay: STEADY },
                Anomaly { first: 660, length: 5, height: -35.0, decay: STEADY },
                Anomaly { first: 1302, length: 1, height: -22.0, decay: STEADY },
            ],
        }
        .record(
            "anomaly-detection/station-power.csv",
            "Power in kW that a station draws, every hour for 60 days with two gaps: a peak, an outage of five hours \
             and a single low reading.",
        ),
        Monitor {
            seed: 303,
            cadence_s: 600.0,
            samples: 1440,
            level: 25.0,
            trend: 1.0,
            daily: 1.2,
            noise: (0.25, 0.3),
            gaps: &[(700, 719)],
            anomalies: &[],
        }
        .record(
            "anomaly-detection/quiet-receiver.csv",
            "System temperature in K of a receiver every 10 minutes for 10 days, nothing wrong with it.",
        ),
    ]
}

impl Monitor {
    fn record(&self, id: &'static str, description: &'static str) -> Generated<SeriesTruth> {
        let mut random = SplitMix64::new(self.seed);
        let (sigma, correlation) = self.noise;
        let mut noise = random.normal();
        let mut contents = format!(
            "# {description}\n\
             # Made by `event-gateway agent generate-datasets`: simulated.\n\
             time_s,value\n"
        );
        let span_s = self.samples as f64 * self.cadence_s;
        for at in 0..self.samples {
            let time = at as f64 * self.cadence_s;
            let trend = self.trend * (TAU * 0.7 * time / span_s).sin();
            let day = TAU * time / DAY_S;
            let season = self.daily * (day.sin() + 0.35 * (2.0 * day + 0.8).cos());
            let anomaly: f64 = self.anomalies.iter().map(|anomaly| anomaly.at(at)).sum();
            let value = self.level + trend + season + sigma * noise + anomaly;
            noise = correlation * noise + (1.0 - correlation * correlation).sqrt() * random.normal();
            if !self.gaps.iter().any(|&(first, last)| (first..=last).contains(&at)) {
                writeln!(contents, "{time},{value:.3}").expect("a string takes everything");
            }
        }
        let anomalies = self
            .anomalies
            .iter()
            .map(|anomaly| {
                let last = anomaly.first + anomaly.length - 1;
                (anomaly.first as f64 * self.cadence_s, last as f64 * self.cadence_s, anomaly.height > 0.0)
            })
            .collect();
        Generated { id, description, contents, truth: SeriesTruth { anomalies } }
    }
}

impl Anomaly {
    fn at(&self, at: usize) -> f64 {
        if !(self.first..self.first + self.length).contains(&at) {
            return 0.0;
        }
        self.height * (-((at - self.first) as f64) / self.decay).exp()
    }
}
