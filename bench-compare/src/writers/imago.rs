//! imago: its file driver writes inside `poll`, so depth buys nothing, but is what a VMM asks for.

use std::io;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use imago::file::File;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};

use crate::row::Sample;
use crate::writers::{Flush, Writing};

pub(crate) fn by_futures(writing: &Writing) -> Sample {
    let open = Qcow2::<File>::builder_path(&writing.image)
        .write(true)
        .open(PermissiveImplicitOpenGate::default());
    let image = pollster::block_on(open).map_err(|error| error.to_string())?;
    let image = FormatAccess::new(image);
    let rate = pollster::block_on(write(&image, writing)).map_err(|error| error.to_string())?;
    Ok(vec![rate])
}

async fn write(image: &FormatAccess<File>, writing: &Writing) -> io::Result<f64> {
    let payload = writing.payload();
    let start = Instant::now();
    if writing.depth == 1 {
        for at in writing.offsets() {
            image.write(payload.as_slice(), at).await?;
            if writing.flush == Flush::AfterEach {
                flush(image).await?;
            }
        }
    } else {
        let mut offsets = writing.offsets();
        let one = |at| image.write(payload.as_slice(), at);
        let mut in_flight = FuturesUnordered::new();
        in_flight.extend(offsets.by_ref().take(writing.depth as usize).map(one));
        while let Some(result) = in_flight.next().await {
            result?;
            in_flight.extend(offsets.next().map(one));
        }
    }
    flush(image).await?;
    Ok(writing.rate(start))
}

/// Writes out its tables and makes all of it durable; neither call does both.
async fn flush(image: &FormatAccess<File>) -> io::Result<()> {
    image.flush().await?;
    image.sync().await
}
