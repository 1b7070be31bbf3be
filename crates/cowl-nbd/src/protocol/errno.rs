//! Error numbers as the protocol has them: nine, whatever the host's own are.

/// An error number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    /// The export is read-only.
    Perm,
    /// The device failed.
    Io,
    /// No memory.
    NoMem,
    /// The request makes no sense, or reaches past the end without writing.
    Inval,
    /// No space, or a write past the end.
    NoSpc,
    /// A read that must not be split is too large for one piece.
    Overflow,
    /// Not to be done as asked; for zeros: not fast.
    NotSup,
    /// The server is stopping.
    Shutdown,
}

impl Errno {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Perm => 1,
            Self::Io => 5,
            Self::NoMem => 12,
            Self::Inval => 22,
            Self::NoSpc => 28,
            Self::Overflow => 75,
            Self::NotSup => 95,
            Self::Shutdown => 108,
        }
    }

    /// What becomes of an error number of Linux.
    #[must_use]
    pub const fn from_linux(number: i32) -> Self {
        match number {
            1 | 13 | 30 => Self::Perm,    // EPERM, EACCES, EROFS
            12 => Self::NoMem,            // ENOMEM
            22 => Self::Inval,            // EINVAL
            27 | 28 | 122 => Self::NoSpc, // EFBIG, ENOSPC, EDQUOT
            75 => Self::Overflow,         // EOVERFLOW
            95 => Self::NotSup,           // EOPNOTSUPP
            108 => Self::Shutdown,        // ESHUTDOWN
            _ => Self::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Errno;

    #[test]
    fn numbers_of_the_protocol_come_back_as_themselves() {
        let all = [
            Errno::Perm,
            Errno::Io,
            Errno::NoMem,
            Errno::Inval,
            Errno::NoSpc,
            Errno::Overflow,
            Errno::NotSup,
            Errno::Shutdown,
        ];
        for errno in all {
            assert_eq!(Errno::from_linux(i32::try_from(errno.number()).unwrap()), errno);
        }
    }

    #[test]
    fn a_full_quota_is_no_space_and_the_unknown_is_an_io_error() {
        assert_eq!(Errno::from_linux(122), Errno::NoSpc);
        assert_eq!(Errno::from_linux(-1), Errno::Io);
    }
}
