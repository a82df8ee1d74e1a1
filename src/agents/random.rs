//! SplitMix64: a small generator whose stream never changes, so that datasets and resampling are
//! the same on every machine and with every version of a library.

use super::complex::Complex;

pub(super) struct SplitMix64(u64);

impl SplitMix64 {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `[from, to)`.
    pub fn uniform(&mut self, from: f64, to: f64) -> f64 {
        from + (to - from) * (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..n`, for `n` far below 2^64.
    pub fn index(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// Two independent standard normal deviates (Box-Muller), as the parts of a complex number.
    pub fn normal_pair(&mut self) -> Complex {
        let radius = (-2.0 * (1.0 - self.uniform(0.0, 1.0)).ln()).sqrt();
        Complex::polar(radius, self.uniform(0.0, std::f64::consts::TAU))
    }

    pub fn normal(&mut self) -> f64 {
        self.normal_pair().re
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_values_for_seed_zero_are_the_published_ones() {
        let mut random = SplitMix64::new(0);
        assert_eq!(random.next_u64(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(random.next_u64(), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let mut random = SplitMix64::new(7);
        let n = 100_000_i32;
        let normals: Vec<f64> = (0..n).map(|_| random.normal()).collect();
        let mean = normals.iter().sum::<f64>() / f64::from(n);
        let variance = normals.iter().map(|x| x * x).sum::<f64>() / f64::from(n);
        assert!(mean.abs() < 0.015 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
        let mut counts = [0i32; 5];
        (0..n).for_each(|_| counts[random.index(5)] += 1);
        assert!(counts.iter().all(|&count| (count - n / 5).abs() < 600), "{counts:?}");
    }
}
