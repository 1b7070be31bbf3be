//! What a device cannot do reaches the caller as it is.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cowl_fuse::{Caching, Sizing};

use crate::odd_device::OddDevice;
use crate::program::can_mount;
use crate::serving::{How, Serving};

fn mount(how: How) -> (Arc<OddDevice>, Serving<OddDevice>) {
    let device = Arc::new(OddDevice::new(1 << 20));
    let folder = tempfile::tempdir().unwrap();
    let serving = Serving::of_device(folder, Arc::clone(&device), how).unwrap();
    (device, serving)
}

#[test]
fn the_caller_gets_the_errno_of_the_device() {
    let Some(_alone) = can_mount() else { return };
    for caching in [Caching::PageCache, Caching::Direct] {
        let (device, mut serving) = mount(How { caching, ..How::PLAIN });
        let file = serving.open();
        let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
        for expected in [28, 5, 122] {
            device.write_errno.store(expected, Ordering::SeqCst);
            assert_eq!(errno(file.write_all_at(&[1; 512], 0)), Some(expected));
        }
        device.write_errno.store(0, Ordering::SeqCst);
        device.read_errno.store(5, Ordering::SeqCst);
        assert_eq!(errno(file.read_exact_at(&mut [0; 512], 8192)), Some(5));
        device.read_errno.store(0, Ordering::SeqCst);
        file.write_all_at(&[1; 512], 0).unwrap();
        device.flush_errno.store(28, Ordering::SeqCst);
        assert_eq!(errno(file.sync_all()), Some(28));
        assert_eq!(errno(file.sync_data()), Some(28));
        // An errno that no kernel knows must not end the mount.
        device.flush_errno.store(100_000, Ordering::SeqCst);
        assert_eq!(errno(file.sync_all()), Some(5));
        device.flush_errno.store(-1, Ordering::SeqCst);
        assert_eq!(errno(file.sync_all()), Some(5));
        device.flush_errno.store(0, Ordering::SeqCst);
        file.sync_all().unwrap();
        drop(file);
        serving.end();
    }
}

#[test]
fn closing_tells_that_flushing_failed() {
    let Some(_alone) = can_mount() else { return };
    let (device, mut serving) = mount(How::PLAIN);
    let file = serving.open();
    file.write_all_at(&[1; 512], 0).unwrap();
    device.flush_errno.store(28, Ordering::SeqCst);
    let dd = crate::program::try_run(
        "dd",
        &["if=/dev/zero", &format!("of={}", serving.file.display()), "count=1", "conv=notrunc"],
    );
    assert_ne!(dd.code, 0);
    assert!(dd.stderr.contains("No space left"), "{dd:?}");
    // Who only reads has nothing to lose.
    assert_eq!(std::fs::read(&serving.file).unwrap().len(), 1 << 20);
    device.flush_errno.store(0, Ordering::SeqCst);
    drop(file);
    serving.end();
}

#[test]
fn a_device_of_fixed_size_refuses_to_grow() {
    let Some(_alone) = can_mount() else { return };
    let (_device, mut serving) = mount(How { sizing: Sizing::Growable, ..How::PLAIN });
    let file = serving.open();
    assert_eq!(file.set_len(2 << 20).unwrap_err().raw_os_error(), Some(95));
    assert_eq!(file.write_at(b"x", 1 << 20).unwrap_err().raw_os_error(), Some(95));
    drop(file);
    serving.end();
}
