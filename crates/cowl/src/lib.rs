//! cowl.
