//! `--pcap`: the frames of the TAP, in both directions, in a file that Wireshark and tcpdump read (pcapng,
//! draft-ietf-opsawg-pcapng).
//!
//! The file is a ring of equal slots behind a header, one frame a slot: when [`FILE_BYTES`] are used, the newest frame
//! takes the place of the oldest. Each slot is a whole block of the format and is written by one write(2) within a page,
//! so the file is right at any moment, also after kill -9; only the order is not that of time once the ring has come
//! round (`reordercap`, or Wireshark's Time column, puts it right). The file's own offset is where the next slot goes,
//! and outlives a forwarder, as the monitor holds the open file.
//!
//! Of a frame the first [`SNAPLEN`] bytes are kept, which is every header. A super-frame is one frame; checksums that
//! the kernel leaves to devices are not yet in it.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::wire::VNET_LEN;

/// One slot, and the header: no slot crosses the border of a page.
const SLOT: usize = 512;
/// What the file grows to: some 32,000 frames.
const FILE_BYTES: u64 = 16 << 20;
/// Bytes kept of a frame: a slot less 28 before it, 12 of options and 4 of length after it.
const SNAPLEN: usize = SLOT - HEAD - TAIL;

const HEAD: usize = 28;
const TAIL: usize = 16;
const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const INTERFACE: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const LINKTYPE_ETHERNET: u32 = 1;
/// An option's code and length: which way a frame went, in 4 bytes.
const FLAGS_OPTION: u32 = 4 << 16 | 2;

/// Inbound and outbound, as the workspace sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToTap = 1,
    FromTap = 2,
}

/// The file being written.
#[derive(Debug)]
pub struct Capture {
    file: File,
    position: u64,
    /// The slot being made.
    slot: [u8; SLOT],
}

/// Makes a new, empty capture of `file`, for [`Capture::resume`].
pub fn begin(file: &mut File) -> io::Result<()> {
    let mut header = [0; SLOT];
    // Section length unknown (all ones); the interface's block fills the rest, its options end with the first zeroes.
    let section = [SECTION_HEADER, 28, BYTE_ORDER, 1, u32::MAX, u32::MAX, 28];
    let rest = u32::try_from(SLOT).unwrap_or(0) - 28;
    let interface = [INTERFACE, rest, LINKTYPE_ETHERNET, u32::try_from(SNAPLEN).unwrap_or(0)];
    put(&mut header, 0, section.into_iter().chain(interface));
    put(&mut header, SLOT - 4, [rest]);
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&header)
}

impl Capture {
    /// Goes on where `file` stands.
    pub fn resume(mut file: File) -> io::Result<Self> {
        let position = file.stream_position()?;
        Ok(Self { file, position, slot: [0; SLOT] })
    }

    /// Writes one frame with its virtio-net header.
    pub fn frame(&mut self, direction: Direction, bytes: &[u8]) -> io::Result<()> {
        let frame = bytes.get(usize::from(VNET_LEN)..).unwrap_or_default();
        let kept = frame.get(..SNAPLEN).unwrap_or(frame);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let [h3, h2, h1, h0, l3, l2, l1, l0] = u64::try_from(now.as_micros()).unwrap_or(u64::MAX).to_be_bytes();
        let (high, low) = (u32::from_be_bytes([h3, h2, h1, h0]), u32::from_be_bytes([l3, l2, l1, l0]));
        let [size, kept_len, len] = [SLOT, kept.len(), frame.len()].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        put(&mut self.slot, 0, [ENHANCED_PACKET, size, 0, high, low, kept_len, len]);
        let data_end = HEAD + kept.len();
        self.slot[HEAD..data_end].copy_from_slice(kept);
        // Zeroes: up to the next word, and after the option, where they end the options.
        self.slot[data_end..].fill(0);
        put(&mut self.slot, data_end.next_multiple_of(4), [FLAGS_OPTION, direction as u32]);
        put(&mut self.slot, SLOT - 4, [size]);

        if self.position + SLOT as u64 > FILE_BYTES {
            self.position = self.file.seek(SeekFrom::Start(SLOT as u64))?;
        }
        self.file.write_all(&self.slot)?;
        self.position += SLOT as u64;
        Ok(())
    }
}

/// Words in little-endian order, as the header says.
fn put<const N: usize>(slot: &mut [u8; N], at: usize, words: impl IntoIterator<Item = u32>) {
    for (place, word) in slot[at..].chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (kept bytes, length, flags) of each packet.
    fn packets(file: &[u8]) -> Vec<(Vec<u8>, u32, u32)> {
        let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
        let (mut at, mut found) = (0, Vec::new());
        while at < file.len() {
            let size = word(at + 4) as usize;
            assert_eq!(word(at + size - 4) as usize, size, "block at {at}");
            if word(at) == ENHANCED_PACKET {
                let kept = word(at + 20) as usize;
                let option = at + HEAD + kept.next_multiple_of(4);
                assert_eq!((word(option), word(option + 8)), (FLAGS_OPTION, 0));
                found.push((file[at + HEAD..at + HEAD + kept].to_vec(), word(at + 24), word(option + 4)));
            }
            at += size;
        }
        assert_eq!(at, file.len());
        found
    }

    #[test]
    fn a_ring_of_the_newest_frames_that_a_successor_goes_on_with() {
        let mut file = tempfile::tempfile().unwrap();
        begin(&mut file).unwrap();
        let whole = |count: u64| -> Vec<u8> {
            let len = [0, 1, 60, SNAPLEN - 1, SNAPLEN, SNAPLEN + 1, 65_000][usize::try_from(count % 7).unwrap()];
            let mut bytes = vec![0xee; usize::from(VNET_LEN)];
            bytes.extend(std::iter::repeat_n(u8::try_from(count % 251).unwrap(), len));
            bytes
        };
        let slots = FILE_BYTES / SLOT as u64 - 1;
        let mut capture = Capture::resume(file.try_clone().unwrap()).unwrap();
        for count in 0..slots + 100 {
            if count == slots + 50 {
                capture = Capture::resume(file.try_clone().unwrap()).unwrap();
            }
            let direction = if count % 2 == 0 { Direction::FromTap } else { Direction::ToTap };
            capture.frame(direction, &whole(count)).unwrap();
        }
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        io::Read::read_to_end(&mut file, &mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, FILE_BYTES);
        let found = packets(&bytes);
        for (place, (kept, len, flags)) in (0..).zip(&found) {
            let count = if place < 100 { slots + place } else { place };
            let sent = &whole(count)[usize::from(VNET_LEN)..];
            assert_eq!((*len as usize, *flags), (sent.len(), if count % 2 == 0 { 2 } else { 1 }), "{count}");
            assert!(*kept == sent[..sent.len().min(SNAPLEN)], "{count}");
        }
        assert_eq!(found.len() as u64, slots);
    }
}
