//! The dataset of an anomaly search: a time series on a regular grid, samples may be missing.

use super::super::error::AgentError;
use super::super::robust::median;
use super::super::table::Table;

pub(super) const COLUMNS: &[&str] = &["time_s", "value"];
const MAX_GRID: f64 = 2_000_000.0;
/// How far off the grid a time may be, as part of the cadence.
const JITTER: f64 = 0.1;
const MIN_SAMPLES: usize = 16;

#[derive(Debug)]
pub(super) struct Series {
    /// Time of the first sample, in seconds.
    pub start: f64,
    /// Seconds from sample to sample: the median over the file.
    pub cadence: f64,
    /// On the grid; `None` where a sample is missing.
    pub values: Vec<Option<f64>>,
}

impl Series {
    pub fn parse(text: &str) -> Result<Self, AgentError> {
        let table = Table::parse(text)?;
        table.expect_columns(COLUMNS)?;
        let rows = &table.rows;
        if rows.len() < MIN_SAMPLES {
            return Err(AgentError::dataset(
                None,
                format!("{} samples; at least {MIN_SAMPLES} are needed", rows.len()),
            ));
        }
        let mut steps = Vec::with_capacity(rows.len());
        for pair in rows.windows(2) {
            let step = pair[1].values[0] - pair[0].values[0];
            if step <= 0.0 {
                return Err(AgentError::dataset(pair[1].line, "time_s must increase"));
            }
            steps.push(step);
        }
        let (start, cadence) = (rows[0].values[0], median(&mut steps));
        let mut values = Vec::with_capacity(rows.len());
        let mut previous = start;
        for row in rows {
            let steps = ((row.values[0] - previous) / cadence).round();
            let off = (row.values[0] - previous - steps * cadence).abs();
            if off > JITTER * cadence || (steps < 1.0 && !values.is_empty()) {
                let reason = format!("time_s is off the grid: samples are {cadence} s apart, or a multiple of it");
                return Err(AgentError::dataset(row.line, reason));
            }
            if values.len() as f64 + steps > MAX_GRID {
                return Err(AgentError::dataset(row.line, format!("the series spans more than {MAX_GRID} samples")));
            }
            values.resize(values.len() + (steps as usize).saturating_sub(1), None);
            values.push(Some(row.values[1]));
            previous = row.values[0];
        }
        Ok(Self { start, cadence, values })
    }

    /// Time of grid point `index`, in seconds.
    pub fn time(&self, index: usize) -> f64 {
        self.start + self.cadence * index as f64
    }

    pub fn samples(&self) -> usize {
        self.values.iter().flatten().count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(times: impl Iterator<Item = f64>) -> Result<Series, String> {
        let rows: String = times.map(|time| format!("{time},1\n")).collect();
        Series::parse(&format!("time_s,value\n{rows}")).map_err(|error| error.to_string())
    }

    #[test]
    fn missing_samples_leave_holes_in_the_grid() {
        let series = parse((0..20).filter(|k| ![5, 6].contains(k)).map(|k| 100.0 + 10.0 * f64::from(k))).unwrap();
        assert_eq!((series.cadence, series.values.len(), series.samples()), (10.0, 20, 18));
        assert_eq!(
            (series.values[4], series.values[5], series.values[6], series.time(7)),
            (Some(1.0), None, None, 170.0)
        );
    }

    #[test]
    fn irregular_times_are_named_by_line() {
        let with = |last: f64| parse((0..20).map(f64::from).chain([last])).unwrap_err();
        assert_eq!(with(19.0), "dataset line 22: time_s must increase");
        assert!(with(20.5).starts_with("dataset line 22: time_s is off the grid: samples are 1 s apart"));
        assert!(with(1e12).starts_with("dataset line 22: the series spans more than"));
        assert_eq!(parse([1.0, 2.0].into_iter()).unwrap_err(), "dataset: 2 samples; at least 16 are needed");
    }
}
