//! Complex numbers: the few operations the agents need.

use std::ops::{Add, AddAssign, Mul, Sub};

#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Complex {
    pub re: f64,
    pub im: f64,
}

impl Complex {
    pub const ZERO: Self = Self::new(0.0, 0.0);

    pub const fn new(re: f64, im: f64) -> Self {
        Self { re, im }
    }

    /// From amplitude and phase (radians).
    pub fn polar(amplitude: f64, phase: f64) -> Self {
        Self::new(amplitude * phase.cos(), amplitude * phase.sin())
    }

    pub fn conj(self) -> Self {
        Self::new(self.re, -self.im)
    }

    pub fn scale(self, factor: f64) -> Self {
        Self::new(self.re * factor, self.im * factor)
    }

    pub fn norm_sqr(self) -> f64 {
        self.re * self.re + self.im * self.im
    }

    pub fn abs(self) -> f64 {
        self.norm_sqr().sqrt()
    }

    /// Phase in radians, -π to π.
    pub fn arg(self) -> f64 {
        self.im.atan2(self.re)
    }
}

impl Add for Complex {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self::new(self.re + other.re, self.im + other.im)
    }
}

impl AddAssign for Complex {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Complex {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self::new(self.re - other.re, self.im - other.im)
    }
}

impl Mul for Complex {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        Self::new(self.re * other.re - self.im * other.im, self.re * other.im + self.im * other.re)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_add_phases() {
        let product = Complex::polar(2.0, 0.5) * Complex::polar(3.0, 0.75).conj();
        assert!((product.abs() - 6.0).abs() < 1e-12 && (product.arg() + 0.25).abs() < 1e-12);
        assert_eq!(Complex::new(1.0, 2.0) * Complex::new(3.0, -1.0), Complex::new(5.0, 5.0));
    }
}
