//! Random operations for the model test: mostly small, often aligned, often around the end of the
//! file.

use cowl_storage::ZeroMode;
use proptest::prelude::*;

use crate::common::Step;

const OFFSET_MAX: u64 = 48 << 10;

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        2 => (0..OFFSET_MAX / 512).prop_map(|sector| sector * 512),
        1 => (0..OFFSET_MAX / 4096).prop_map(|page| page * 4096),
        2 => 0..OFFSET_MAX,
    ]
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![
        2 => (0..8_u64).prop_map(|sectors| sectors * 512),
        2 => (0..6_u64).prop_map(|pages| pages * 4096),
        2 => 0..9000_u64,
        1 => 1..3_u64,
    ]
}

fn memory() -> impl Strategy<Value = usize> {
    length().prop_map(|length| usize::try_from(length).unwrap())
}

fn memories() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(memory(), 0..5)
}

fn step() -> impl Strategy<Value = Step> {
    let mode = prop_oneof![Just(ZeroMode::MayUnmap), Just(ZeroMode::KeepAllocated)];
    prop_oneof![
        4 => (offset(), memory()).prop_map(|(at, length)| Step::Read { at, length }),
        2 => (offset(), memory()).prop_map(|(at, length)| Step::TryRead { at, length }),
        2 => (offset(), memories()).prop_map(|(at, lengths)| Step::ReadVectored { at, lengths }),
        6 => (offset(), memory(), any::<u8>())
            .prop_map(|(at, length, fill)| Step::Write { at, length, fill }),
        2 => (offset(), memory(), any::<u8>())
            .prop_map(|(at, length, fill)| Step::TryWrite { at, length, fill }),
        3 => (offset(), memories(), any::<u8>())
            .prop_map(|(at, lengths, fill)| Step::WriteVectored { at, lengths, fill }),
        3 => (offset(), length(), mode)
            .prop_map(|(at, length, mode)| Step::Zero { at, length, mode }),
        2 => (offset(), length()).prop_map(|(at, length)| Step::Discard { at, length }),
        1 => (offset(), length()).prop_map(|(at, length)| Step::Reserve { at, length }),
        1 => (offset(), length()).prop_map(|(at, length)| Step::WriteZeros { at, length }),
        2 => offset().prop_map(|length| Step::SetLength { length }),
        1 => Just(Step::Extents),
        1 => Just(Step::Barrier),
    ]
}

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..40)
}
