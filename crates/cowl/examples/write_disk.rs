//! Writes to a disk with blocking calls: `write_disk IMAGE OFFSET TEXT`.

use std::path::Path;

use cowl::{Access, Disk, OpenOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [image, offset, text] = arguments.as_slice() else {
        return Err("usage: write_disk IMAGE OFFSET TEXT".into());
    };
    let options = OpenOptions { access: Access::ReadWrite, ..OpenOptions::local() };
    let disk = Disk::open(Path::new(image), &options)?;
    disk.write_at(text.as_bytes(), offset.parse()?)?;
    // Without this the text may be gone after a power cut; the image is correct either way.
    disk.flush()?;
    disk.close()?;
    Ok(())
}
