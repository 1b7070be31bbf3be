//! Prints the guest content of a disk: `dump IMAGE > content`.

use std::io::Write;

use cowl::{BlockDevice, Disk, OpenOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: dump IMAGE")?;
    let disk = Disk::open(path.as_ref(), &OpenOptions::local())?;
    let size = disk.size().get();
    let mut output = std::io::stdout().lock();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < size {
        let length = usize::try_from((size - at).min(1 << 20))?;
        disk.read_at(&mut buffer[..length], at)?;
        output.write_all(&buffer[..length])?;
        at += length as u64;
    }
    Ok(())
}
