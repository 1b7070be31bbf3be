//! cowl-testkit.
