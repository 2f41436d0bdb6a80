//! Sequence numbers (RFC 9293 3.4): 32 bits that wrap, ordered only within half the space.
#![forbid(unsafe_code)]

use std::ops::{Add, AddAssign, Sub};

/// A TCP sequence number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Seq(pub u32);

impl Seq {
    /// self < other, modulo 2^32.
    pub fn before(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0).cast_signed() < 0
    }

    /// The distance from `earlier` to self, or 0 when it is not earlier.
    pub fn past(self, earlier: Self) -> u32 {
        if earlier.before(self) { self - earlier } else { 0 }
    }

    #[must_use]
    pub fn later_of(self, other: Self) -> Self {
        if self.before(other) { other } else { self }
    }

    #[must_use]
    pub fn earlier_of(self, other: Self) -> Self {
        if self.before(other) { self } else { other }
    }
}

impl Add<u32> for Seq {
    type Output = Self;
    fn add(self, count: u32) -> Self {
        Self(self.0.wrapping_add(count))
    }
}

impl AddAssign<u32> for Seq {
    fn add_assign(&mut self, count: u32) {
        *self = *self + count;
    }
}

impl Sub for Seq {
    type Output = u32;
    /// The distance forward from `other` to self.
    fn sub(self, other: Self) -> u32 {
        self.0.wrapping_sub(other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_wraps() {
        let cases = [
            (0, 1, true),
            (1, 0, false),
            (5, 5, false),
            (u32::MAX, 0, true),
            (0, u32::MAX, false),
            (0x7fff_ffff, 0xffff_fffe, true),
        ];
        for (a, b, want) in cases {
            assert_eq!(Seq(a).before(Seq(b)), want, "{a} {b}");
        }
        assert_eq!(Seq(2).past(Seq(u32::MAX)), 3);
        assert_eq!(Seq(u32::MAX).past(Seq(2)), 0);
        assert_eq!(Seq(u32::MAX).later_of(Seq(2)), Seq(2));
        assert_eq!(Seq(u32::MAX).earlier_of(Seq(2)), Seq(u32::MAX));
    }
}
