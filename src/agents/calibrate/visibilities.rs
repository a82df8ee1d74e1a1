//! The dataset of a calibration: one visibility a line, with the model it should have.

use std::ops::Range;

use super::super::complex::Complex;
use super::super::error::AgentError;
use super::super::table::Table;

/// `time_s` never goes back; visibilities and models in Jy, `sigma` the noise of each component.
pub(super) const COLUMNS: &[&str] =
    &["time_s", "antenna_1", "antenna_2", "vis_re", "vis_im", "model_re", "model_im", "sigma"];

/// One visibility of the baseline of antennas `p < q`, in Jy.
#[derive(Debug, Clone, Copy)]
pub(super) struct Visibility {
    /// Index of its timestamp.
    pub time: usize,
    pub p: usize,
    pub q: usize,
    pub observed: Complex,
    pub model: Complex,
    /// Noise of the real and of the imaginary part.
    pub sigma: f64,
}

pub(super) struct Dataset {
    pub antennas: usize,
    /// The distinct timestamps, in seconds.
    pub times: Vec<f64>,
    /// In order of time.
    pub rows: Vec<Visibility>,
}

impl Dataset {
    pub fn parse(text: &str) -> Result<Self, AgentError> {
        let table = Table::parse(text)?;
        table.expect_columns(COLUMNS)?;
        let mut dataset = Self { antennas: 0, times: Vec::new(), rows: Vec::with_capacity(table.rows.len()) };
        for row in &table.rows {
            let refuse = |reason: &str| Err(AgentError::dataset(row.line, reason));
            let time = row.values[0];
            match dataset.times.last() {
                Some(&last) if time < last => return refuse("time_s goes back; sort the rows by time"),
                Some(&last) if time == last => {}
                _ => dataset.times.push(time),
            }
            let (p, q) = (row.antenna(1)?, row.antenna(2)?);
            if p == q {
                return refuse("antenna_1 and antenna_2 must differ");
            }
            let sigma = row.values[7];
            if sigma <= 0.0 {
                return refuse("sigma must be above 0");
            }
            let mut observed = Complex::new(row.values[3], row.values[4]);
            let mut model = Complex::new(row.values[5], row.values[6]);
            if p > q {
                (observed, model) = (observed.conj(), model.conj());
            }
            let (p, q) = (p.min(q), p.max(q));
            dataset.antennas = dataset.antennas.max(q + 1);
            dataset.rows.push(Visibility { time: dataset.times.len() - 1, p, q, observed, model, sigma });
        }
        Ok(dataset)
    }

    /// Rows of each solution interval of `timestamps` times; 0 is one interval over everything.
    pub fn intervals(&self, timestamps: usize) -> Vec<Range<usize>> {
        let length = if timestamps == 0 { self.times.len() } else { timestamps };
        let starts: Vec<usize> = (0..self.times.len())
            .step_by(length)
            .map(|first| self.rows.partition_point(|row| row.time < first))
            .collect();
        let ends = starts.iter().copied().skip(1).chain([self.rows.len()]);
        starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect()
    }
}

/// Which antennas these rows can solve for, relative to `reference`: those that baselines with a
/// model connect to it. Says why if none can.
pub(super) fn solvable(rows: &[Visibility], antennas: usize, reference: usize) -> Result<Vec<bool>, String> {
    let mut neighbours = vec![Vec::new(); antennas];
    for row in rows.iter().filter(|row| row.model.norm_sqr() > 0.0) {
        neighbours[row.p].push(row.q);
        neighbours[row.q].push(row.p);
    }
    neighbours.iter_mut().for_each(|list| {
        list.sort_unstable();
        list.dedup();
    });
    // Without a closed loop of an odd number of baselines the product of gains is known, but no
    // single amplitude: the graph can then be coloured with two colours.
    let mut colour: Vec<Option<bool>> = vec![None; antennas];
    let mut odd_loop = false;
    let mut open = vec![reference];
    colour[reference] = Some(false);
    while let Some(p) = open.pop() {
        for &q in &neighbours[p] {
            if colour[q].is_none() {
                colour[q] = colour[p].map(|colour| !colour);
                open.push(q);
            }
            odd_loop |= colour[q] == colour[p];
        }
    }
    if neighbours[reference].is_empty() {
        return Err(format!("antenna {reference}, the reference, has no data"));
    }
    if !odd_loop {
        return Err("the baselines close no triangle, so amplitudes cannot be determined".into());
    }
    Ok(colour.iter().map(Option::is_some).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "time_s,antenna_1,antenna_2,vis_re,vis_im,model_re,model_im,sigma\n";

    fn parse(rows: &str) -> Result<Dataset, String> {
        Dataset::parse(&format!("{HEADER}{rows}")).map_err(|error| error.to_string())
    }

    fn baselines(pairs: &[(usize, usize)]) -> Vec<Visibility> {
        let one = Complex::new(1.0, 0.0);
        pairs.iter().map(|&(p, q)| Visibility { time: 0, p, q, observed: one, model: one, sigma: 1.0 }).collect()
    }

    #[test]
    fn a_reversed_baseline_is_conjugated() {
        let dataset = parse("0,3,1,1,2,3,4,0.5\n").unwrap();
        let row = dataset.rows[0];
        assert_eq!((row.p, row.q, dataset.antennas), (1, 3, 4));
        assert_eq!((row.observed, row.model), (Complex::new(1.0, -2.0), Complex::new(3.0, -4.0)));
    }

    #[test]
    fn bad_rows_are_named_by_line() {
        let bad = |rows| parse(rows).err().unwrap();
        assert_eq!(bad("0,1,1,1,0,1,0,1\n"), "dataset line 2: antenna_1 and antenna_2 must differ");
        assert_eq!(bad("0,0,1,1,0,1,0,0\n"), "dataset line 2: sigma must be above 0");
        assert_eq!(bad("0,0,-1,1,0,1,0,1\n"), "dataset line 2: an antenna must be an integer from 0 to 255");
        assert_eq!(
            bad("5,0,1,1,0,1,0,1\n4,0,1,1,0,1,0,1\n"),
            "dataset line 3: time_s goes back; sort the rows by time"
        );
    }

    #[test]
    fn intervals_cut_between_timestamps() {
        let dataset = parse("0,0,1,1,0,1,0,1\n0,0,2,1,0,1,0,1\n1,0,1,1,0,1,0,1\n2,0,1,1,0,1,0,1\n").unwrap();
        assert_eq!(dataset.intervals(0), vec![0..4; 1]);
        assert_eq!(dataset.intervals(2), [0..3, 3..4]);
        assert_eq!(dataset.intervals(1), [0..2, 2..3, 3..4]);
    }

    #[test]
    fn only_antennas_tied_to_the_reference_by_an_odd_loop_are_solvable() {
        assert_eq!(
            solvable(&baselines(&[(0, 1), (1, 2), (0, 2), (3, 4)]), 5, 0).unwrap(),
            [true, true, true, false, false]
        );
        assert!(solvable(&baselines(&[(0, 1), (1, 2), (2, 3), (0, 3)]), 4, 0).unwrap_err().contains("triangle"));
        assert!(solvable(&baselines(&[(0, 1), (1, 2), (0, 2)]), 4, 3).unwrap_err().contains("antenna 3"));
    }
}
