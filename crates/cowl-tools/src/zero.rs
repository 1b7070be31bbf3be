//! Finding zeros.

/// Whether every byte is zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // Blocks without a branch inside, which the compiler turns into vector instructions; the first
    // block that is not zero ends the search.
    let blocks = bytes.chunks_exact(256);
    let rest = blocks.remainder();
    let any = |block: &[u8]| block.iter().fold(0, |all, byte| all | byte) != 0;
    !any(rest) && !blocks.into_iter().any(any)
}

#[cfg(test)]
mod tests {
    use super::is_zero;

    #[test]
    fn one_byte_anywhere_is_found() {
        for length in [1, 255, 256, 257, 4096, 5000] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for at in [0, length / 2, length - 1] {
                bytes[at] = 1;
                assert!(!is_zero(&bytes));
                bytes[at] = 0;
            }
        }
        assert!(is_zero(&[]));
    }
}
