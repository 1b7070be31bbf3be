//! Descriptors of a block status reply, gathered extent by extent.

use cowl_block::{DirtyRun, Extent};

use crate::protocol::limits::DESCRIPTOR_COUNT_MAX;
use crate::protocol::metadata::Context;
use crate::protocol::request::Headers;
use crate::protocol::wire::state;

/// The descriptors of one context so far. Neighbours that say the same are one.
#[derive(Clone, Debug)]
pub struct Descriptors {
    context: Context,
    count_max: usize,
    list: Vec<Descriptor>,
    is_full: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Descriptor {
    length: u64,
    flags: u32,
}

impl Descriptors {
    /// None yet.
    #[must_use]
    pub fn new(context: Context, first_only: bool) -> Self {
        let count_max = if first_only { 1 } else { DESCRIPTOR_COUNT_MAX };
        Self { context, count_max, list: Vec::new(), is_full: false }
    }

    /// The context.
    #[must_use]
    pub fn context(&self) -> Context {
        self.context
    }

    /// Adds the next extent, of which the client asked about `length` bytes. A full list takes no
    /// more.
    pub fn push(&mut self, extent: &Extent, length: u64) {
        self.push_flags(self.context.flags(extent), length);
    }

    /// Adds the next run of a bitmap, likewise.
    pub fn push_dirty(&mut self, run: DirtyRun) {
        self.push_flags(if run.is_dirty { state::DIRTY } else { 0 }, run.length);
    }

    fn push_flags(&mut self, flags: u32, length: u64) {
        if self.is_full {
            return;
        }
        let is_at_max = self.list.len() == self.count_max;
        match self.list.last_mut() {
            Some(last) if last.flags == flags => last.length += length,
            _ if is_at_max => self.is_full = true,
            _ => self.list.push(Descriptor { length, flags }),
        }
    }

    /// Whether further extents change nothing.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// Number of descriptors.
    #[must_use]
    pub fn count(&self) -> u32 {
        u32::try_from(self.list.len()).expect("bounded by DESCRIPTOR_COUNT_MAX")
    }

    /// The bytes behind the head of the chunk.
    #[must_use]
    pub fn encode(&self, headers: Headers) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16 * self.list.len());
        for descriptor in &self.list {
            if headers == Headers::Extended {
                bytes.extend(descriptor.length.to_be_bytes());
                bytes.extend(u64::from(descriptor.flags).to_be_bytes());
            } else {
                let length = u32::try_from(descriptor.length)
                    .expect("a compact request asks about less than 4 GiB");
                bytes.extend(length.to_be_bytes());
                bytes.extend(descriptor.flags.to_be_bytes());
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use cowl_block::{Extent, ExtentKind};
    use cowl_format::{ByteCount, GuestOffset};

    use super::Descriptors;
    use crate::protocol::metadata::Context;
    use crate::protocol::request::Headers;

    const DATA: ExtentKind = ExtentKind::Data { host: None, hole: false };
    const ZERO: ExtentKind = ExtentKind::Zero { host: None };

    fn gather(first_only: bool, kinds: &[ExtentKind]) -> Descriptors {
        let mut descriptors = Descriptors::new(Context::Allocation, first_only);
        for &kind in kinds {
            let length = ByteCount::new(512);
            let extent = Extent { start: GuestOffset::ZERO, length, depth: 0, kind };
            descriptors.push(&extent, 512);
        }
        descriptors
    }

    #[test]
    fn neighbours_that_say_the_same_are_one_descriptor() {
        let gathered = gather(false, &[DATA, ExtentKind::Compressed, ZERO, ZERO]);
        assert_eq!(
            gathered.encode(Headers::Structured),
            [0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 3]
        );
        assert_eq!(gathered.encode(Headers::Extended).len(), 32);
    }

    #[test]
    fn the_first_descriptor_only_grows_until_something_else_comes() {
        let gathered = gather(true, &[DATA, DATA, ZERO, DATA]);
        assert!(gathered.is_full());
        assert_eq!(gathered.encode(Headers::Structured), [0, 0, 4, 0, 0, 0, 0, 0]);
    }
}
