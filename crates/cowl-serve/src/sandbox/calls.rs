//! The system calls that serving needs.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};

use super::{Needs, SandboxError};

/// What any serving process does.
const ALWAYS: &[libc::c_long] = &[
    // I/O on what is open.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_copy_file_range,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_fcntl,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // Clients.
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_eventfd2,
    // What a virtual machine's server would lose in a crash is kept by the machine.
    libc::SYS_memfd_create,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_ppoll,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    // Threads and time.
    libc::SYS_clone3,
    libc::SYS_clone,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_futex,
    libc::SYS_membarrier,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    // The ring asks which kernel it is on.
    libc::SYS_uname,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    // Sockets and the pid file are removed at the end; Landlock says which.
    libc::SYS_unlinkat,
];

/// What architectures have that are older than the calls above.
#[cfg(target_arch = "x86_64")]
const OLD: &[libc::c_long] =
    &[libc::SYS_dup2, libc::SYS_poll, libc::SYS_epoll_wait, libc::SYS_unlink, libc::SYS_newfstatat];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[libc::c_long] = &[libc::SYS_newfstatat];

/// What opening images later takes.
const TO_OPEN: &[libc::c_long] =
    &[libc::SYS_openat, libc::SYS_readlinkat, libc::SYS_getcwd, libc::SYS_ioctl];
#[cfg(target_arch = "x86_64")]
const OLD_TO_OPEN: &[libc::c_long] = &[libc::SYS_open, libc::SYS_readlink];
#[cfg(not(target_arch = "x86_64"))]
const OLD_TO_OPEN: &[libc::c_long] = &[];

/// What FUSE mounts take: further ends of their connections, and unmounting.
const FOR_FILES: &[libc::c_long] =
    &[libc::SYS_openat, libc::SYS_ioctl, libc::SYS_umount2, libc::SYS_syncfs, libc::SYS_statfs];

pub(super) fn restrict(needs: &Needs<'_>) -> Result<(), SandboxError> {
    let fail = |reason: String| SandboxError::Seccomp { reason };
    let program = program(needs).map_err(|error| fail(error.to_string()))?;
    apply_filter_all_threads(&program).map_err(|error| fail(error.to_string()))
}

fn program(needs: &Needs<'_>) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<libc::c_long, Vec<SeccompRule>> = BTreeMap::new();
    let mut calls = vec![ALWAYS, OLD];
    if needs.control && !needs.allowed.is_empty() {
        calls.extend([TO_OPEN, OLD_TO_OPEN]);
    }
    if needs.files {
        calls.extend([FOR_FILES, OLD_TO_OPEN]);
    }
    for &call in calls.into_iter().flatten() {
        rules.insert(call, Vec::new());
    }
    // Threads name themselves, and say how their memory is named; nothing else of prctl.
    let names = [libc::PR_SET_NAME, libc::PR_SET_VMA].map(|what| only_with(0, what as u64));
    rules.insert(libc::SYS_prctl, names.into_iter().collect::<Result<_, _>>()?);
    // A signal to itself is how abort() ends a process.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![only_with(0, own)?]);
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Errno(libc::EPERM as u32),
        SeccompAction::Allow,
        TargetArch::try_from(std::env::consts::ARCH)?,
    )?;
    filter.try_into()
}

/// A call whose argument `index` is `value`.
fn only_with(index: u8, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)?;
    SeccompRule::new(vec![condition])
}
