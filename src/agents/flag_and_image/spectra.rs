//! The dataset of an image: dynamic spectra of visibilities, one baseline and timestamp a line.

use std::collections::BTreeMap;

use super::super::complex::Complex;
use super::super::error::AgentError;
use super::super::table::Table;

/// Columns before the channels: `u_m` and `v_m` are the baseline's coordinates in metres.
pub(super) const LEADING_COLUMNS: &[&str] = &["time_s", "antenna_1", "antenna_2", "u_m", "v_m"];
const MAX_CHANNELS: usize = 4096;

/// The visibilities of one baseline over time and frequency.
pub(super) struct Spectrum {
    pub antennas: (usize, usize),
    /// Strictly increasing, in seconds.
    pub times: Vec<f64>,
    /// Per timestamp, in metres.
    pub uv: Vec<(f64, f64)>,
    /// In Jy, `time * channels + channel`.
    pub visibilities: Vec<Complex>,
}

pub(super) struct Dataset {
    /// Centre of each channel, in Hz.
    pub frequencies: Vec<f64>,
    pub baselines: Vec<Spectrum>,
}

impl Dataset {
    pub fn parse(text: &str) -> Result<Self, AgentError> {
        let table = Table::parse(text)?;
        let channels = channels(&table)?;
        let first = table.positive("first_channel_mhz")?;
        let width = table.positive("channel_width_mhz")?;
        let frequencies = (0..channels).map(|channel| 1e6 * (first + width * channel as f64)).collect();

        let mut baselines: BTreeMap<(usize, usize), Spectrum> = BTreeMap::new();
        for row in &table.rows {
            let antennas = (row.antenna(1)?, row.antenna(2)?);
            if antennas.0 == antennas.1 {
                return Err(AgentError::dataset(row.line, "antenna_1 and antenna_2 must differ"));
            }
            let spectrum = baselines.entry(antennas).or_insert_with(|| Spectrum {
                antennas,
                times: Vec::new(),
                uv: Vec::new(),
                visibilities: Vec::new(),
            });
            if spectrum.times.last().is_some_and(|&last| row.values[0] <= last) {
                return Err(AgentError::dataset(row.line, "time_s must increase within a baseline"));
            }
            spectrum.times.push(row.values[0]);
            spectrum.uv.push((row.values[3], row.values[4]));
            let values = &row.values[LEADING_COLUMNS.len()..];
            spectrum.visibilities.extend(values.chunks_exact(2).map(|pair| Complex::new(pair[0], pair[1])));
        }
        Ok(Self { frequencies, baselines: baselines.into_values().collect() })
    }

    pub fn channels(&self) -> usize {
        self.frequencies.len()
    }

    /// Number of visibilities: baselines × timestamps × channels.
    pub fn len(&self) -> usize {
        self.baselines.iter().map(|spectrum| spectrum.visibilities.len()).sum()
    }
}

/// Checks the column names and returns the number of channels.
fn channels(table: &Table<'_>) -> Result<usize, AgentError> {
    let mut names = table.columns.iter();
    let leading = LEADING_COLUMNS.iter().all(|expected| names.next() == Some(expected));
    let rest = names.as_slice();
    let paired =
        rest.chunks(2).enumerate().all(|(index, pair)| pair == [format!("ch{index}_re"), format!("ch{index}_im")]);
    if leading && paired && !rest.is_empty() && rest.len() <= 2 * MAX_CHANNELS {
        return Ok(rest.len() / 2);
    }
    let reason = format!(
        "the columns must be {},ch0_re,ch0_im,ch1_re,ch1_im,… (1 to {MAX_CHANNELS} channels)",
        LEADING_COLUMNS.join(",")
    );
    Err(AgentError::dataset(table.header_line, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "# first_channel_mhz: 1400\n# channel_width_mhz: 0.5\n\
        time_s,antenna_1,antenna_2,u_m,v_m,ch0_re,ch0_im,ch1_re,ch1_im\n";

    #[test]
    fn rows_gather_into_one_spectrum_a_baseline() {
        let dataset =
            Dataset::parse(&format!("{HEADER}0,0,1,10,20,1,2,3,4\n0,0,2,30,40,0,0,0,0\n5,0,1,11,21,5,6,7,8\n"))
                .unwrap();
        assert_eq!(dataset.frequencies, [1.4e9, 1.4005e9]);
        assert_eq!((dataset.baselines.len(), dataset.len()), (2, 6));
        let first = &dataset.baselines[0];
        assert_eq!((first.antennas, first.uv[1]), ((0, 1), (11.0, 21.0)));
        assert_eq!(first.visibilities[2], Complex::new(5.0, 6.0));
    }

    #[test]
    fn bad_headers_and_rows_are_named_by_line() {
        let bad = |text: String| Dataset::parse(&text).err().unwrap().to_string();
        assert!(
            bad(HEADER.replace("ch1_im", "ch2_im") + "0,0,1,0,0,1,1,1,1\n").starts_with("dataset line 3: the columns")
        );
        assert!(bad(HEADER.replace(",ch1_im", "") + "0,0,1,0,0,1,1,1\n").starts_with("dataset line 3: the columns"));
        assert!(
            bad(HEADER.replace("1400", "x") + "0,0,1,0,0,1,1,1,1\n").starts_with("dataset line 1: first_channel_mhz")
        );
        assert_eq!(
            bad(format!("{HEADER}5,0,1,0,0,1,1,1,1\n5,0,1,0,0,1,1,1,1\n")),
            "dataset line 5: time_s must increase within a baseline"
        );
    }
}
