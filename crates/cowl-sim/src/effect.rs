//! The parts a change of a file falls into when the power goes: sectors, and lengths.

use std::sync::Arc;

/// What a power cut never tears, in bytes.
pub const SECTOR: u64 = 512;

/// A part of a change that is there or not after a power cut, independent of all other parts.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    /// Bytes of a write, within one sector. Present, they lengthen the file as far as needed.
    Data { at: u64, bytes: Arc<[u8]>, from: usize, length: usize },
    /// Zeros within one sector, as far as the file reaches.
    Zeros { at: u64, length: u64 },
    /// The file has this length.
    Length { length: u64 },
    /// The file has at least this length.
    Extend { end: u64 },
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("simulated files fit in memory")
}

impl Effect {
    /// Does it to `content`.
    pub(crate) fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Data { at, bytes, from, length } => {
                let start = index(*at);
                if content.len() < start + length {
                    content.resize(start + length, 0);
                }
                content[start..start + length].copy_from_slice(&bytes[*from..from + length]);
            }
            Self::Zeros { at, length } => {
                let end = content.len().min(index(at + length));
                let start = end.min(index(*at));
                content[start..end].fill(0);
            }
            Self::Length { length } => content.resize(index(*length), 0),
            Self::Extend { end } => content.resize(content.len().max(index(*end)), 0),
        }
    }
}

/// The pieces of `at..at + length`, none of them over a sector's end: start and length.
fn sectors(at: u64, length: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = at + length;
    let mut next = at;
    std::iter::from_fn(move || {
        if end <= next {
            return None;
        }
        let start = next;
        next = ((start / SECTOR + 1) * SECTOR).min(end);
        Some((start, next - start))
    })
}

/// The parts of a write. The length may reach the disk without the bytes, and the other way round.
pub(crate) fn of_write(at: u64, bytes: &Arc<[u8]>) -> Vec<Effect> {
    let end = at + bytes.len() as u64;
    let data = sectors(at, bytes.len() as u64).map(|(start, length)| Effect::Data {
        at: start,
        bytes: bytes.clone(),
        from: index(start - at),
        length: index(length),
    });
    std::iter::once(Effect::Extend { end }).chain(data).collect()
}

/// The parts of a discard: the length stays.
pub(crate) fn of_discard(at: u64, length: u64) -> Vec<Effect> {
    sectors(at, length).map(|(at, length)| Effect::Zeros { at, length }).collect()
}

/// The parts of a write of zeros.
pub(crate) fn of_zero(at: u64, length: u64) -> Vec<Effect> {
    let mut parts = vec![Effect::Extend { end: at + length }];
    parts.extend(of_discard(at, length));
    parts
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{of_write, of_zero};

    #[test]
    fn all_parts_of_a_write_are_the_write() {
        let bytes: Arc<[u8]> = (0..1300).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let parts = of_write(700, &bytes);
        assert_eq!(parts.len(), 1 + 3);
        let mut content = vec![9; 10];
        parts.iter().for_each(|part| part.apply(&mut content));
        assert_eq!(content[700..], bytes[..]);
        assert_eq!(content[10..700], [0; 690]);
    }

    #[test]
    fn zeros_past_the_end_need_the_length() {
        let parts = of_zero(512, 1024);
        let mut content = vec![9; 1024];
        parts[1..].iter().for_each(|part| part.apply(&mut content));
        assert_eq!(content.len(), 1024);
        assert_eq!(content[512..], [0; 512]);
        parts[0].apply(&mut content);
        assert_eq!(content.len(), 1536);
    }
}
