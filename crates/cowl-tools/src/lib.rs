//! cowl-tools.
