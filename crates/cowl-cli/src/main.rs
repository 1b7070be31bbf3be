//! The `cowl` command.

fn main() {}
