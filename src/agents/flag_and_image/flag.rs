//! Flagging of radio frequency interference in the time-frequency plane of one baseline: SumThreshold
//! (Offringa et al. 2010, MNRAS 405, 155) on amplitudes above a moving-median background, iterated
//! with a threshold that falls while the background is cleaned of what is flagged.

use super::super::robust::{median, median_and_sigma};

/// The threshold for sums of `2^k` neighbours is that of a single cell over `1.5^k`.
const FALL_PER_DOUBLING: f64 = 1.5;
const LONGEST_SUM: usize = 64;

pub(super) struct Settings {
    /// Threshold of a single cell, in robust standard deviations.
    pub threshold: f64,
    pub iterations: usize,
    /// The background is the median within this many cells in time and in frequency.
    pub background_half_width: usize,
}

/// A plane of amplitudes, `time * channels + channel`.
pub(super) struct Plane<'a> {
    pub amplitudes: &'a [f64],
    pub channels: usize,
}

/// Flags of the plane's cells.
pub(super) fn flag(plane: &Plane<'_>, settings: &Settings) -> Vec<bool> {
    let mut flags = vec![false; plane.amplitudes.len()];
    for iteration in (0..settings.iterations).rev() {
        let background = background(plane, &flags, settings.background_half_width);
        let excess: Vec<f64> = plane.amplitudes.iter().zip(&background).map(|(value, level)| value - level).collect();
        let mut unflagged: Vec<f64> =
            excess.iter().zip(&flags).filter(|(_, flagged)| !**flagged).map(|(&value, _)| value).collect();
        let (_, sigma) = median_and_sigma(&mut unflagged);
        if sigma == 0.0 {
            break;
        }
        // Strong interference first: it would raise the background and the scatter for the weak.
        let threshold = settings.threshold * sigma * 2f64.powi(iteration as i32);
        flags = sum_threshold(&excess, plane.channels, threshold);
    }
    flags
}

/// Median of the unflagged cells around each cell; where none are left, of all unflagged ones.
fn background(plane: &Plane<'_>, flags: &[bool], half_width: usize) -> Vec<f64> {
    let (cells, channels) = (plane.amplitudes.len(), plane.channels);
    let times = cells / channels;
    let unflagged =
        |range: std::ops::Range<usize>| range.filter(|&cell| !flags[cell]).map(|cell| plane.amplitudes[cell]);
    let overall = median(&mut unflagged(0..cells).collect::<Vec<_>>());
    let mut window = Vec::new();
    (0..cells)
        .map(|cell| {
            let (time, channel) = (cell / channels, cell % channels);
            let first = channel.saturating_sub(half_width);
            let end = (channel + half_width + 1).min(channels);
            window.clear();
            for time in time.saturating_sub(half_width)..(time + half_width + 1).min(times) {
                window.extend(unflagged(time * channels + first..time * channels + end));
            }
            if window.is_empty() { overall } else { median(&mut window) }
        })
        .collect()
}

/// Flags every run of 1, 2, 4, … cells in time or in frequency whose unflagged cells exceed, on
/// average, the threshold of that length.
fn sum_threshold(excess: &[f64], channels: usize, threshold: f64) -> Vec<bool> {
    let times = excess.len() / channels;
    let mut flags = vec![false; excess.len()];
    let mut length = 1;
    let mut limit = threshold;
    while length <= LONGEST_SUM && length <= times.max(channels) {
        // Both directions see the flags of shorter runs only, so that their order does not matter.
        let before = flags.clone();
        for channel in 0..channels {
            flag_runs(excess, &before, &mut flags, channel, channels, times, length, limit);
        }
        for time in 0..times {
            flag_runs(excess, &before, &mut flags, time * channels, 1, channels, length, limit);
        }
        length *= 2;
        limit /= FALL_PER_DOUBLING;
    }
    flags
}

/// One line of `count` cells from `start` in steps of `stride`, with a sliding sum over `length`.
#[expect(clippy::too_many_arguments, reason = "a line of a plane is start, stride and count")]
fn flag_runs(
    excess: &[f64],
    before: &[bool],
    flags: &mut [bool],
    start: usize,
    stride: usize,
    count: usize,
    length: usize,
    limit: f64,
) {
    if count < length {
        return;
    }
    let cell = |index: usize| start + index * stride;
    let (mut sum, mut unflagged) = (0.0, 0i64);
    for index in 0..count {
        if !before[cell(index)] {
            sum += excess[cell(index)];
            unflagged += 1;
        }
        if index >= length && !before[cell(index - length)] {
            sum -= excess[cell(index - length)];
            unflagged -= 1;
        }
        if index + 1 >= length && unflagged > 0 && sum > limit * unflagged as f64 {
            (index + 1 - length..=index).for_each(|index| flags[cell(index)] = true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::random::SplitMix64;

    const SETTINGS: Settings = Settings { threshold: 6.0, iterations: 3, background_half_width: 5 };
    const CHANNELS: usize = 40;

    /// Amplitudes of a 3 Jy source in noise of 0.5 Jy per component, 30 times by 40 channels.
    fn quiet(seed: u64) -> Vec<f64> {
        let mut random = SplitMix64::new(seed);
        (0..30 * CHANNELS)
            .map(|_| {
                let noise = random.normal_pair().scale(0.5);
                (3.0 + noise.re).hypot(noise.im)
            })
            .collect()
    }

    fn flags(amplitudes: &[f64]) -> Vec<bool> {
        flag(&Plane { amplitudes, channels: CHANNELS }, &SETTINGS)
    }

    #[test]
    fn quiet_planes_stay_unflagged() {
        let flagged: usize = (0..20).map(|seed| flags(&quiet(seed)).iter().filter(|&&flag| flag).count()).sum();
        // 24,000 cells.
        assert!(flagged <= 12, "{flagged}");
    }

    #[test]
    fn a_single_strong_cell_is_flagged_alone() {
        let mut plane = quiet(1);
        plane[7 * CHANNELS + 9] += 20.0;
        let flagged: Vec<usize> = (0..plane.len()).filter(|&cell| flags(&plane)[cell]).collect();
        assert_eq!(flagged, [7 * CHANNELS + 9]);
    }

    #[test]
    fn a_weak_line_is_flagged_although_no_cell_of_it_stands_out() {
        let mut plane = quiet(2);
        (0..30).for_each(|time| plane[time * CHANNELS + 21] += 1.5);
        let flags = flags(&plane);
        let in_line = (0..30).filter(|time| flags[time * CHANNELS + 21]).count();
        let elsewhere = flags.iter().filter(|&&flag| flag).count() - in_line;
        assert!(in_line >= 28 && elsewhere <= 15, "{in_line} {elsewhere}");
    }

    #[test]
    fn a_burst_over_all_channels_is_flagged() {
        let mut plane = quiet(3);
        (0..CHANNELS).for_each(|channel| plane[11 * CHANNELS + channel] += 4.0);
        let flags = flags(&plane);
        assert_eq!((0..CHANNELS).filter(|channel| flags[11 * CHANNELS + channel]).count(), CHANNELS);
    }

    #[test]
    fn a_constant_plane_has_no_scatter_and_no_flags() {
        assert_eq!(flags(&[2.0; 4 * CHANNELS]), [false; 4 * CHANNELS]);
    }
}
