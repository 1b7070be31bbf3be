//! Each kind of request, from the ring to the device and back.

use std::sync::atomic::Ordering;

use cowl_block::ZeroRequest;

use crate::disk::Call;
use crate::front_end::{
    DATA, DISCARD, F_INDIRECT, FEATURE_INDIRECT, FLUSH, FrontEnd, GET_ID, HIGH, IN, IOERR, OK, OUT,
    Part, Setup, UNSUPP, WRITE_ZEROES, encode, raw_descriptor, to_read, to_write,
};
use crate::serving::{DISK_SIZE, Serving};

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|index| (index / 512 * 7 + index) as u8 ^ seed).collect()
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// Writes and reads back data that lies in `parts`, for both directions.
fn check_data(parts: &[(u64, u32)]) -> Vec<Call> {
    let serving = Serving::new();
    let mut guest = FrontEnd::new(serving.connect());
    let length = parts.iter().map(|(_, length)| *length as usize).sum();
    let bytes = pattern(length, 0x5a);
    let mut start = 0;
    for (at, length) in parts {
        guest.guest.put(*at, &bytes[start..start + *length as usize]);
        start += *length as usize;
    }
    let out: Vec<Part> = parts.iter().map(|(at, length)| to_read(*at, *length)).collect();
    assert_eq!(guest.request(OUT, 8, &out), (OK, 1));
    assert_eq!(serving.disk.bytes()[4096..4096 + length], bytes);
    for (at, length) in parts {
        guest.guest.put(*at, &vec![0; *length as usize]);
    }
    let into: Vec<Part> = parts.iter().map(|(at, length)| to_write(*at, *length)).collect();
    assert_eq!(guest.request(IN, 8, &into), (OK, length as u32 + 1));
    let mut seen = Vec::new();
    for (at, length) in parts {
        seen.extend(guest.guest.get(*at, *length as usize));
    }
    assert_eq!(seen, bytes);
    let calls = serving.disk.calls();
    serving.stop();
    calls
}

#[test]
fn data_of_one_piece_goes_to_the_device_where_it_lies() {
    let calls = check_data(&[(DATA, 4096)]);
    let write = Call::Write { at: 4096, length: 4096, shared: true };
    let read = Call::Read { at: 4096, length: 4096, shared: true };
    assert_eq!(calls, [write, read]);
}

#[test]
fn neighbouring_pieces_are_one() {
    let calls = check_data(&[(HIGH + DATA, 512), (HIGH + DATA + 512, 3584)]);
    assert_eq!(calls[0], Call::Write { at: 4096, length: 4096, shared: true });
    assert_eq!(calls.len(), 2);
}

#[test]
fn large_pieces_go_where_they_lie_and_small_ones_are_copied_together() {
    let calls = check_data(&[(DATA, 128 << 10), (HIGH + DATA, 64 << 10)]);
    assert!(calls.contains(&Call::Write { at: 4096, length: 128 << 10, shared: true }));
    assert!(calls.contains(&Call::Write {
        at: 4096 + (128 << 10),
        length: 64 << 10,
        shared: true
    }));
    assert_eq!(calls.len(), 4);
    let calls = check_data(&[(DATA, 4096), (HIGH + DATA, 4096), (DATA + 8192, 4096)]);
    let write = Call::Write { at: 4096, length: 12288, shared: false };
    let read = Call::Read { at: 4096, length: 12288, shared: false };
    assert_eq!(calls, [write, read]);
}

#[test]
fn data_that_is_not_aligned_is_copied() {
    let calls = check_data(&[(DATA + 3, 4096)]);
    assert_eq!(calls[0], Call::Write { at: 4096, length: 4096, shared: false });
    // Cut within a sector.
    let calls = check_data(&[(DATA, 100), (HIGH + DATA + 1, 924)]);
    assert_eq!(calls[0], Call::Write { at: 4096, length: 1024, shared: false });
}

#[test]
fn a_long_request_of_many_pieces_is_copied_bit_by_bit() {
    let parts: Vec<_> = (0..20).map(|index| (DATA + 131_072 * index, 64 << 10)).collect();
    let calls = check_data(&parts);
    let lengths = [512 << 10, 512 << 10, 256 << 10];
    let writes: Vec<_> = calls
        .iter()
        .filter_map(|call| match call {
            Call::Write { length, shared: false, .. } => Some(*length),
            _ => None,
        })
        .collect();
    assert_eq!(writes, lengths);
}

#[test]
fn pieces_across_two_regions_of_memory_are_no_request_of_one_piece() {
    // The last bytes of the low region; nothing lies behind them.
    let calls = check_data(&[(0x7f_f000, 4096)]);
    assert_eq!(calls[0], Call::Write { at: 4096, length: 4096, shared: true });
}

#[test]
fn the_header_may_lie_in_pieces_and_with_the_data() {
    let serving = Serving::new();
    let mut guest = FrontEnd::new(serving.connect());
    let mut bytes = vec![0; 16];
    bytes[0] = 1;
    bytes[8] = 2;
    bytes.extend(pattern(1024, 9));
    guest.guest.put(DATA, &bytes);
    guest.guest.put(HIGH, &[0xee]);
    let parts = [to_read(DATA, 3), to_read(DATA + 3, 600), to_read(DATA + 603, 437)];
    let _head = guest.submit_chain(&[&parts[..], &[to_write(HIGH, 1)]].concat());
    let _used = guest.queues[0].await_used(&guest.guest);
    assert_eq!(guest.guest.get(HIGH, 1), [OK]);
    assert_eq!(serving.disk.bytes()[1024..2048], pattern(1024, 9));
    // And the status with the data that is read.
    let mut header = [0; 16];
    header[8] = 2;
    guest.guest.put(DATA, &header);
    let _head = guest.submit_chain(&[to_read(DATA, 16), to_write(HIGH, 1025)]);
    assert_eq!(guest.queues[0].await_used(&guest.guest).1, 1025);
    assert_eq!(guest.guest.get(HIGH, 1024), pattern(1024, 9));
    assert_eq!(guest.guest.get(HIGH + 1024, 1), [OK]);
    serving.stop();
}

#[test]
fn descriptors_may_lie_in_a_table_of_their_own() {
    let serving = Serving::new();
    let mut setup = Setup::new();
    setup.features |= FEATURE_INDIRECT;
    let mut guest = FrontEnd::with(serving.connect(), setup);
    guest.guest.put(HIGH, &[0; 16]);
    guest.guest.put(HIGH + 32, &[0xee]);
    serving.disk.bytes()[..512].fill(7);
    let parts = [to_read(HIGH, 16), to_write(DATA, 512), to_write(HIGH + 32, 1)];
    // At an address that is not aligned, which is allowed.
    let table: Vec<u8> = (0..3_u16)
        .flat_map(|number| encode(parts[usize::from(number)], (number < 2).then_some(number + 1)))
        .collect();
    guest.guest.put(DATA + 4099, &table);
    let indirect = raw_descriptor(DATA + 4099, 48, F_INDIRECT, 0);
    guest.queues[0].put_descriptor(&guest.guest, 5, indirect);
    guest.queues[0].offer(&guest.guest, 5);
    guest.queues[0].kick.write(1).unwrap();
    assert_eq!(guest.queues[0].await_used(&guest.guest), (5, 513));
    assert_eq!(guest.guest.get(DATA, 512), [7; 512]);
    assert_eq!(guest.guest.get(HIGH + 32, 1), [OK]);
    serving.stop();
}

#[test]
fn flush_flushes_the_device_once() {
    let serving = Serving::new();
    let mut guest = FrontEnd::new(serving.connect());
    assert_eq!(guest.request(FLUSH, 0, &[]), (OK, 1));
    assert_eq!(serving.disk.calls(), [Call::Flush]);
    serving.stop();
}

#[test]
fn the_serial_number_is_padded_and_cut() {
    let serving = Serving::with(|export| export.serial = "0123456789abcdefghijKLM".to_owned());
    let mut guest = FrontEnd::new(serving.connect());
    guest.guest.put(DATA, &[9; 24]);
    assert_eq!(guest.request(GET_ID, 0, &[to_write(DATA, 20)]), (OK, 21));
    assert_eq!(guest.guest.get(DATA, 21), b"0123456789abcdefghij\x09");
    assert_eq!(guest.request(GET_ID, 0, &[to_write(DATA, 4)]), (OK, 5));
    serving.stop();
    let serving = Serving::with(|export| export.serial = "short".to_owned());
    let mut guest = FrontEnd::new(serving.connect());
    guest.guest.put(DATA, &[9; 24]);
    assert_eq!(guest.request(GET_ID, 0, &[to_write(DATA, 20)]), (OK, 21));
    assert_eq!(guest.guest.get(DATA, 20), [&b"short"[..], &[0; 15]].concat());
    serving.stop();
}

#[test]
fn discard_and_zeroes_reach_the_device_range_by_range() {
    let serving = Serving::new();
    let mut guest = FrontEnd::new(serving.connect());
    let ranges = [range(8, 16, 0), range(1024, 8, 0)].concat();
    guest.guest.put(DATA, &ranges);
    assert_eq!(guest.request(DISCARD, 0, &[to_read(DATA, 32)]), (OK, 1));
    let first = Call::Discard { at: 4096, length: 8192 };
    assert_eq!(serving.disk.calls(), [first, Call::Discard { at: 524_288, length: 4096 }]);
    guest.guest.put(DATA, &[range(1, 1, 1), range(8, 16, 0)].concat());
    assert_eq!(guest.request(WRITE_ZEROES, 0, &[to_read(DATA, 32)]), (OK, 1));
    let unmapping = Call::Zero { at: 512, length: 512, how: ZeroRequest::MayUnmap };
    let keeping = Call::Zero { at: 4096, length: 8192, how: ZeroRequest::KeepAllocated };
    assert_eq!(serving.disk.calls(), [unmapping, keeping]);
    serving.stop();
}

#[test]
fn every_change_outlives_the_process_before_it_is_answered() {
    let serving = Serving::new();
    let mut guest = FrontEnd::new(serving.connect());
    let persisted = || serving.disk.persisted.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(guest.request(IN, 0, &[to_write(DATA, 512)]), (OK, 513));
    assert_eq!(persisted(), 0);
    assert_eq!(guest.request(OUT, 0, &[to_read(DATA, 512)]), (OK, 1));
    assert_eq!(persisted(), 1);
    guest.guest.put(DATA, &range(8, 16, 0));
    assert_eq!(guest.request(DISCARD, 0, &[to_read(DATA, 16)]), (OK, 1));
    assert_eq!(persisted(), 2);
    assert_eq!(guest.request(WRITE_ZEROES, 0, &[to_read(DATA, 16)]), (OK, 1));
    assert_eq!(persisted(), 3);
    serving.stop();
}

#[test]
fn ranges_with_unknown_flags_are_unsupported_and_wrong_ones_fail() {
    let serving = Serving::new();
    let mut guest = FrontEnd::new(serving.connect());
    let mut check = |number: u32, ranges: &[u8], expected: u8| {
        guest.guest.put(DATA, ranges);
        let data = [to_read(DATA, ranges.len() as u32)];
        assert_eq!(guest.request(number, 0, &data), (expected, 1), "{number} {ranges:?}");
    };
    check(DISCARD, &range(0, 8, 1), UNSUPP);
    check(DISCARD, &range(0, 8, 2), UNSUPP);
    check(WRITE_ZEROES, &range(0, 8, 3), UNSUPP);
    check(DISCARD, &range(DISK_SIZE as u64 / 512, 8, 0), IOERR);
    check(DISCARD, &range(u64::MAX, 8, 0), IOERR);
    check(WRITE_ZEROES, &range(u64::MAX / 512, u32::MAX, 0), IOERR);
    check(WRITE_ZEROES, &range(0, 8, 0)[..15], IOERR);
    check(DISCARD, &range(0, 1, 0).repeat(33), IOERR);
    check(WRITE_ZEROES, &[range(0, 8, 0), range(1 << 40, 8, 0)].concat(), IOERR);
    assert_eq!(serving.disk.calls(), []);
    check(DISCARD, &range(0, 1, 0).repeat(32), OK);
    serving.stop();
}

#[test]
fn requests_past_the_end_fail_as_a_whole() {
    let serving = Serving::new();
    let mut guest = FrontEnd::new(serving.connect());
    let last = DISK_SIZE as u64 / 512 - 1;
    for number in [IN, OUT] {
        let part = |length| Part { at: DATA, length, write: number == IN };
        assert_eq!(guest.request(number, last, &[part(512)]).0, OK);
        assert_eq!(guest.request(number, last, &[part(1024)]).0, IOERR);
        assert_eq!(guest.request(number, last + 1, &[part(512)]).0, IOERR);
        assert_eq!(guest.request(number, u64::MAX, &[part(512)]).0, IOERR);
        assert_eq!(guest.request(number, 1 << 55, &[part(512)]).0, IOERR);
        assert_eq!(guest.request(number, 0, &[part(511)]).0, IOERR);
        assert_eq!(guest.request(number, 0, &[]).0, IOERR);
    }
    assert_eq!(serving.disk.calls().len(), 2);
    serving.stop();
}

#[test]
fn unknown_requests_are_unsupported() {
    let serving = Serving::new();
    let mut guest = FrontEnd::new(serving.connect());
    for number in [2, 3, 5, 14, 0x8000_0000, u32::MAX] {
        assert_eq!(guest.request(number, 0, &[to_write(DATA, 512)]), (UNSUPP, 1));
    }
    serving.stop();
}

#[test]
fn failures_of_the_device_are_told() {
    let serving = Serving::new();
    let mut guest = FrontEnd::new(serving.connect());
    serving.disk.failing.store(true, Ordering::SeqCst);
    assert_eq!(guest.request(IN, 0, &[to_write(DATA, 512)]), (UNSUPP, 1));
    assert_eq!(guest.request(FLUSH, 0, &[]), (UNSUPP, 1));
    serving.disk.failing.store(false, Ordering::SeqCst);
    assert_eq!(guest.request(FLUSH, 0, &[]), (OK, 1));
    serving.stop();
}

#[test]
fn a_read_only_export_takes_no_change() {
    let serving = Serving::with(|export| export.read_only = true);
    let mut guest = FrontEnd::new(serving.connect());
    let ranges = range(0, 8, 0);
    guest.guest.put(DATA, &ranges);
    assert_eq!(guest.request(OUT, 0, &[to_read(DATA, 512)]), (IOERR, 1));
    assert_eq!(guest.request(DISCARD, 0, &[to_read(DATA, 16)]), (IOERR, 1));
    assert_eq!(guest.request(WRITE_ZEROES, 0, &[to_read(DATA, 16)]), (IOERR, 1));
    assert_eq!(guest.request(FLUSH, 0, &[]), (OK, 1));
    assert_eq!(guest.request(IN, 0, &[to_write(DATA, 512)]), (OK, 513));
    assert_eq!(serving.disk.calls(), [Call::Read { at: 0, length: 512, shared: true }]);
    serving.stop();
}

#[test]
fn two_requests_over_the_same_bytes_do_not_share_them() {
    let serving = Serving::new();
    let mut guest = FrontEnd::new(serving.connect());
    guest.guest.put(DATA, &[3; 4096]);
    serving.disk.hold(0);
    let _first = guest.submit(0, OUT, 0, &[to_read(DATA, 4096)]);
    serving.disk.await_waiting(1);
    let _second = guest.submit(0, OUT, 64, &[to_read(DATA, 4096)]);
    serving.disk.await_waiting(2);
    serving.disk.release();
    for _ in 0..2 {
        assert_eq!(guest.await_answer(0).1, OK);
    }
    let first = Call::Write { at: 0, length: 4096, shared: true };
    let second = Call::Write { at: 32768, length: 4096, shared: false };
    assert_eq!(serving.disk.calls(), [first, second]);
    assert_eq!(serving.disk.bytes()[32768..36864], [3; 4096]);
    serving.stop();
}
