//! The system calls that nobody wraps: extents of a file, resource usage, the stack limit, and the
//! ring of the raw floor.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use io_uring::{IoUring, opcode, types};

/// What a process took.
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
}

impl Usage {
    fn new(usage: &libc::rusage) -> Self {
        let time = |value: libc::timeval| {
            let seconds = u64::try_from(value.tv_sec).unwrap_or(0);
            Duration::from_secs(seconds) + Duration::from_micros(value.tv_usec.unsigned_abs())
        };
        Self { cpu: time(usage.ru_utime) + time(usage.ru_stime) }
    }

    /// Of this process so far, all threads and kernel workers included.
    pub(crate) fn own() -> Self {
        let mut usage = MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: the pointer is to a live value that the kernel fills.
        unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
        // SAFETY: zeroed at first and filled by the kernel: integers throughout.
        Self::new(&unsafe { usage.assume_init() })
    }
}

/// Waits for a child that nobody else waits for. Its exit status, 0 for success, and its usage.
pub(crate) fn wait(child: u32) -> io::Result<(i32, Usage)> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    let id = libc::pid_t::try_from(child).map_err(io::Error::other)?;
    // SAFETY: both pointers are to live values that the kernel fills.
    let waited = unsafe { libc::wait4(id, &mut status, 0, usage.as_mut_ptr()) };
    if waited != id {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed at first and filled by the kernel: integers throughout.
    Ok((status, Usage::new(&unsafe { usage.assume_init() })))
}

/// Gives a command a large stack: `qemu-img bench` recurses once for each request that completes at
/// once, and runs into the end of its stack on hot files.
pub(crate) fn deepen_stack(command: &mut Command) {
    const STACK_BYTES: libc::rlim_t = 4 << 30;
    let deepen = || {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the pointer is to a live value.
        unsafe { libc::getrlimit(libc::RLIMIT_STACK, &mut limit) };
        limit.rlim_cur = STACK_BYTES.min(limit.rlim_max);
        // SAFETY: as above. Where it fails, the old limit stays.
        unsafe { libc::setrlimit(libc::RLIMIT_STACK, &limit) };
        Ok(())
    };
    // SAFETY: between fork and exec it makes two system calls and allocates nothing.
    unsafe { command.pre_exec(deepen) };
}

/// The next run of data in `file` from `at` on: its start and its end.
pub(crate) fn next_data(file: &File, at: i64) -> Option<(i64, i64)> {
    let seek = |at, whence| {
        // SAFETY: plain integers and an open file.
        unsafe { libc::lseek(file.as_raw_fd(), at, whence) }
    };
    let start = seek(at, libc::SEEK_DATA);
    (0 <= start).then(|| (start, seek(start, libc::SEEK_HOLE)))
}

/// Writes out what all files still have to write.
pub(crate) fn sync() {
    // SAFETY: takes nothing and returns nothing.
    unsafe { libc::sync() };
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// Blocks of memory that a ring reads into or writes from, each owned by one request at a time.
pub(crate) struct RingBlocks {
    // Moved nowhere while the ring is there: dropped after it.
    ring: IoUring,
    memory: Vec<u8>,
    block: usize,
    in_flight: usize,
}

impl RingBlocks {
    /// `count` blocks of `block` bytes, a power of two, aligned to their size.
    pub(crate) fn new(count: u32, block: usize) -> io::Result<Self> {
        let memory = vec![0; (count as usize + 1) * block];
        Ok(Self { ring: IoUring::new(count)?, memory, block, in_flight: 0 })
    }

    /// Fills all blocks. None is in flight.
    pub(crate) fn fill(&mut self, byte: u8) {
        assert_eq!(self.in_flight, 0);
        self.memory.fill(byte);
    }

    /// Starts reading or writing block number `slot`, which is not in flight, at `at`.
    pub(crate) fn start(
        &mut self,
        file: &File,
        slot: usize,
        at: u64,
        direction: Direction,
    ) -> io::Result<()> {
        let aligned = self.memory.as_ptr().align_offset(self.block) + slot * self.block;
        let buffer = self.memory[aligned..aligned + self.block].as_mut_ptr();
        let length = u32::try_from(self.block).map_err(io::Error::other)?;
        let file = types::Fd(file.as_raw_fd());
        let request = match direction {
            Direction::Read => opcode::Read::new(file, buffer, length).offset(at).build(),
            Direction::Write => opcode::Write::new(file, buffer, length).offset(at).build(),
        };
        let request = request.user_data(slot as u64);
        // SAFETY: the memory belongs to the ring's owner and outlives its last completion (see
        // `Drop`); the caller uses a slot once at a time, and nobody else touches the memory
        // meanwhile.
        unsafe { self.ring.submission().push(&request) }.map_err(io::Error::other)?;
        self.in_flight += 1;
        Ok(())
    }

    /// Waits for at least one request, and appends the slots that are free again.
    pub(crate) fn finish(&mut self, free: &mut Vec<usize>) -> io::Result<()> {
        self.ring.submit_and_wait(1)?;
        for completion in self.ring.completion() {
            self.in_flight -= 1;
            if usize::try_from(completion.result()).ok() != Some(self.block) {
                return Err(io::Error::other(format!("the ring did {}", completion.result())));
            }
            free.push(usize::try_from(completion.user_data()).map_err(io::Error::other)?);
        }
        Ok(())
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Drop for RingBlocks {
    fn drop(&mut self) {
        // The kernel may still use the memory.
        while 0 < self.in_flight {
            if self.ring.submit_and_wait(1).is_err() {
                std::mem::take(&mut self.memory).leak();
                return;
            }
            self.in_flight -= self.ring.completion().count();
        }
    }
}
