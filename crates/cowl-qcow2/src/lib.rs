//! cowl-qcow2.
