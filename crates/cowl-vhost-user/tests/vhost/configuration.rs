//! What the guest is told about the disk, and what it may change.

use std::io::Read;
use std::os::unix::net::UnixStream;

use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

use crate::disk::Call;
use crate::front_end::{
    DATA, FEATURE_FLUSH, FEATURE_PROTOCOL, FEATURE_VERSION_1, FEATURE_WCE, FrontEnd, OK, OUT,
    Setup, negotiate, protocol_features, to_read,
};
use crate::serving::{DISK_SIZE, Serving};

const CONFIG_SIZE: u32 = 60;

fn config(guest: &mut FrontEnd) -> Vec<u8> {
    let flags = VhostUserConfigFlags::WRITABLE;
    let empty = [0; CONFIG_SIZE as usize];
    guest.frontend.get_config(0, CONFIG_SIZE, flags, &empty).unwrap().1
}

fn number(config: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(config[offset..offset + 4].try_into().unwrap())
}

fn capacity(config: &[u8]) -> u64 {
    u64::from_le_bytes(config[..8].try_into().unwrap())
}

#[test]
fn the_configuration_space_is_laid_out_as_the_standard_says() {
    let serving = Serving::with(|export| {
        export.queues_max = 7;
        export.queue_size_max = 128;
    });
    let setup = Setup { queues: 0, ..Setup::new() };
    let mut guest = FrontEnd::with(serving.connect(), setup);
    let config = config(&mut guest);
    assert_eq!(capacity(&config), DISK_SIZE as u64 / 512);
    assert_eq!(number(&config, 12), 126, "segments of a request");
    assert_eq!(number(&config, 20), 512, "block size");
    assert_eq!(config[24], 3, "4 KiB are 2^3 blocks");
    assert_eq!(number(&config, 28), 8, "best I/O size in blocks");
    assert_eq!(config[32], 1, "write cache");
    assert_eq!(u16::from_le_bytes([config[34], config[35]]), 7, "queues");
    assert_eq!(number(&config, 36), 1 << 21, "sectors to discard");
    assert_eq!(number(&config, 40), 32, "ranges to discard");
    assert_eq!(number(&config, 44), 8, "alignment of discards");
    assert_eq!(number(&config, 48), 1 << 21, "sectors to zero");
    assert_eq!(number(&config, 52), 32, "ranges to zero");
    assert_eq!(config[56], 1, "zeroing may unmap");
    assert_eq!(guest.frontend.get_queue_num().unwrap(), 7);
    serving.stop();
}

#[test]
fn everything_that_the_tests_use_is_offered() {
    let serving = Serving::new();
    let mut frontend = negotiate(serving.connect(), 1, FEATURE_PROTOCOL | FEATURE_VERSION_1);
    let offered = frontend.get_protocol_features().unwrap();
    assert!(offered.contains(protocol_features()), "{offered:?}");
    serving.stop();
}

#[test]
fn read_only_exports_say_so() {
    for read_only in [false, true] {
        let serving = Serving::with(|export| export.read_only = read_only);
        let frontend = negotiate(serving.connect(), 1, FEATURE_PROTOCOL | FEATURE_VERSION_1);
        let features = vhost::VhostBackend::get_features(&frontend).unwrap();
        assert_eq!(features & (1 << 5) != 0, read_only);
        assert_eq!(features & (1 << 13 | 1 << 14) == 0, read_only, "discard, zeroes");
        serving.stop();
    }
}

#[test]
fn without_the_write_cache_each_write_is_durable() {
    let serving = Serving::new();
    let mut setup = Setup::new();
    setup.features |= FEATURE_WCE;
    let mut guest = FrontEnd::with(serving.connect(), setup);
    let flags = VhostUserConfigFlags::WRITABLE;
    assert_eq!(guest.request(OUT, 0, &[to_read(DATA, 512)]).0, OK);
    assert_eq!(serving.disk.calls(), [Call::Write { at: 0, length: 512, shared: true }]);
    guest.frontend.set_config(32, flags, &[0]).unwrap();
    assert_eq!(config(&mut guest)[32], 0);
    assert_eq!(guest.request(OUT, 0, &[to_read(DATA, 512)]).0, OK);
    assert_eq!(serving.disk.calls(), [Call::WriteThrough { at: 0, length: 512 }]);
    // Also where it is carried out in other ways.
    let parts = [to_read(DATA, 512), to_read(DATA + 4096, 512)];
    assert_eq!(guest.request(OUT, 0, &parts).0, OK);
    let write = Call::Write { at: 0, length: 1024, shared: false };
    assert_eq!(serving.disk.calls(), [write, Call::Flush]);
    guest.frontend.set_config(32, flags, &[1]).unwrap();
    assert_eq!(guest.request(OUT, 0, &[to_read(DATA, 512)]).0, OK);
    assert_eq!(serving.disk.calls(), [Call::Write { at: 0, length: 512, shared: true }]);
    serving.stop();
}

#[test]
fn a_guest_that_cannot_flush_gets_durable_writes() {
    let serving = Serving::new();
    let mut setup = Setup::new();
    setup.features &= !FEATURE_FLUSH;
    let mut guest = FrontEnd::with(serving.connect(), setup);
    assert_eq!(guest.request(OUT, 0, &[to_read(DATA, 512)]).0, OK);
    assert_eq!(serving.disk.calls(), [Call::WriteThrough { at: 0, length: 512 }]);
    serving.stop();
}

#[test]
fn a_new_size_is_announced_and_served() {
    let serving = Serving::new();
    let mut guest = FrontEnd::new(serving.connect());
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    guest.frontend.set_backend_request_fd(&theirs).unwrap();
    let before = capacity(&config(&mut guest));
    assert_ne!(guest.request(OUT, before, &[to_read(DATA, 512)]).0, OK);
    serving.disk.grow(DISK_SIZE * 2);
    serving.server.announce_resize();
    let mut message = [0; 12];
    ours.read_exact(&mut message).unwrap();
    assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], "CONFIG_CHANGE_MSG");
    assert_eq!(capacity(&config(&mut guest)), before * 2);
    assert_eq!(guest.request(OUT, before, &[to_read(DATA, 512)]).0, OK);
    serving.stop();
}

#[test]
fn what_cannot_be_configured_ends_the_connection_only() {
    let serving = Serving::new();
    let flags = VhostUserConfigFlags::WRITABLE;
    for (offset, bytes) in [(0, &[1][..]), (32, &[2]), (32, &[0, 0]), (255, &[0]), (4000, &[0])] {
        let mut guest = FrontEnd::new(serving.connect());
        assert!(guest.frontend.set_config(offset, flags, bytes).is_err());
    }
    let mut guest = FrontEnd::new(serving.connect());
    assert_eq!(guest.request(OUT, 0, &[to_read(DATA, 512)]).0, OK);
    serving.stop();
}
