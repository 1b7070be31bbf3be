//! Checks the metadata of an image: `fsck IMAGE`.

use std::io::Write;
use std::sync::Arc;

use cowl::{Sharing, WorkerPool};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: fsck IMAGE")?;
    let pool = Arc::new(WorkerPool::for_this_machine()?);
    let report = cowl::check(path.as_ref(), None, Sharing::NoWriters, Some(pool), &())?;
    let mut output = std::io::stdout().lock();
    for finding in &report.findings {
        writeln!(output, "{}", finding.text)?;
    }
    writeln!(output, "{} corruptions, {} leaks", report.corruptions, report.leaks)?;
    Ok(())
}
