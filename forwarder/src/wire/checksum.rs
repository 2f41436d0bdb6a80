//! The Internet checksum (RFC 1071) and the pseudo-headers of TCP, UDP and ICMPv6.

use std::net::IpAddr;

/// A ones' complement sum being formed. Parts before the last must have an even length.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    #[must_use]
    pub fn bytes(self, data: &[u8]) -> Self {
        let (words, rest) = data.as_chunks::<4>();
        let mut sum = self.0;
        for word in words {
            sum += u64::from(u32::from_be_bytes(*word));
        }
        sum += match *rest {
            [a, b, c] => u64::from(u16::from_be_bytes([a, b])) + u64::from(u16::from_be_bytes([c, 0])),
            [a, b] => u64::from(u16::from_be_bytes([a, b])),
            [a] => u64::from(u16::from_be_bytes([a, 0])),
            _ => 0,
        };
        Self(sum)
    }

    #[must_use]
    pub fn number(self, value: u32) -> Self {
        Self(self.0 + u64::from(value))
    }

    #[must_use]
    pub fn address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(a) => self.bytes(&a.octets()),
            IpAddr::V6(a) => self.bytes(&a.octets()),
        }
    }

    /// The pseudo-header (RFC 9293 3.1, RFC 8200 8.1) of a transport packet of `len` bytes.
    pub fn pseudo(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> Self {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        Self::default().address(src).address(dst).number(u32::from(protocol)).number(len)
    }

    /// The sum in 16 bits: what a partial checksum field holds.
    pub fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap_or(0)
    }

    /// The complement: what a finished checksum field holds.
    pub fn finish(self) -> u16 {
        !self.fold()
    }

    /// Whether data summed together with its own checksum is intact.
    pub fn is_valid(self) -> bool {
        self.fold() == 0xffff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_1071_example() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().bytes(&data).fold(), 0xddf2);
        assert!(Sum::default().bytes(&data).number(u32::from(!0xddf2u16)).is_valid());
    }

    #[test]
    fn odd_lengths_are_padded_at_the_end() {
        for len in 0..9 {
            let data: Vec<u8> = (1..=len).collect();
            let mut padded = data.clone();
            padded.resize(12, 0);
            assert_eq!(Sum::default().bytes(&data).fold(), Sum::default().bytes(&padded).fold(), "{len}");
        }
    }

    #[test]
    fn pseudo_headers() {
        let v4 = Sum::pseudo([10, 0, 2, 2].into(), [10, 0, 2, 100].into(), 6, 20);
        assert_eq!(v4.fold(), 0x0a00 + 0x0202 + 0x0a00 + 0x0264 + 6 + 20);
        let v6 = Sum::pseudo("fd00::2".parse().unwrap(), "fd00::64".parse().unwrap(), 58, 8);
        // fd00 + fd00 + 2 + 64 + 3a + 8 with the carry added back.
        assert_eq!(v6.finish(), !0xfaa9);
    }
}
