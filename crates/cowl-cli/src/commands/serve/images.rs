//! The images that `serve` is asked to hand out: operands, and the lists of `--export`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use cowl_serve::{DetectZeros, FuseFile, VhostUser, VhostUserPlace};

use super::{Options, QUEUES_MAX, SERIAL_MAX, absolute, switch};
use crate::failure::Failure;
use crate::image_name::ImageName;
use crate::number;
use crate::option;
use crate::option_list::OptionList;
use crate::serve::{self, ImageRequest};
use crate::snapshot_name::SnapshotName;

impl Options {
    /// The images of the command line, then those of `--export`.
    pub(super) fn images(&self, operands: &[OsString]) -> Result<Vec<ImageRequest>, Failure> {
        let format = self.common.format.as_deref();
        option::exclude_format_with_image_opts(self.common.image_opts, format)?;
        let is_single = operands.len() + self.exports.len() == 1;
        if (self.place.is_some() || self.mount_point.is_some()) && operands.len() != 1 {
            let message = "--socket-path, --fd and --fuse are for a single image; see --export";
            return Err(Failure::usage(message));
        }
        if self.name.is_some() && operands.len() != 1 {
            return Err(Failure::usage("--export-name is for a single image; see --export"));
        }
        let mut images = Vec::new();
        for operand in operands {
            let image = ImageName::parse(operand, format, self.common.image_opts)?;
            let name = match (&self.name, is_single) {
                (Some(name), _) => name.clone(),
                (None, true) => String::new(),
                (None, false) => file_name(&image.path),
            };
            images.push(self.image(name, image)?);
        }
        for list in &self.exports {
            images.push(self.export(list, is_single)?);
        }
        Ok(images)
    }

    /// An image with what was said for all of them.
    fn image(&self, name: String, image: ImageName) -> Result<ImageRequest, Failure> {
        let detect_zeros = self
            .detect_zeroes
            .as_deref()
            .map_or(Ok(DetectZeros::Off), |value| serve::detect_zeros(value, &self.settings));
        Ok(ImageRequest {
            export: name,
            description: self.description.clone(),
            image,
            settings: self.settings.clone(),
            snapshot: self.snapshot.clone(),
            temporary: self.temporary,
            start: self.start,
            length: self.length,
            detect_zeros: detect_zeros?,
            cache: self.cache,
            bitmaps: self.bitmaps.clone(),
            vhost_user: self.place.clone().map(|place| self.vhost_user(place)),
            fuse: self.mount_point.clone().map(|mount_point| self.fuse(mount_point)),
        })
    }

    fn fuse(&self, mount_point: PathBuf) -> FuseFile {
        FuseFile { mount_point, growable: self.growable, allow_other: self.allow_other }
    }

    fn vhost_user(&self, place: VhostUserPlace) -> VhostUser {
        VhostUser { place, queues_max: self.queues_max, serial: self.serial.clone() }
    }

    /// An image with what a list says besides.
    fn export(&self, list: &str, is_single: bool) -> Result<ImageRequest, Failure> {
        let wrong = |reason: String| Failure::usage(format!("--export '{list}': {reason}"));
        let pairs = OptionList::parse(list, Some("image"));
        let file = pairs.get("image").ok_or_else(|| wrong("it has no image=FILE".to_owned()))?;
        let format = pairs.get("format").or(self.common.format.as_deref());
        let image = ImageName::parse(OsStr::new(file), format, false)?;
        let name = match is_single {
            true => String::new(),
            false => file_name(&image.path),
        };
        let mut request = self.image(name, image)?;
        // One image alone can be there.
        request.fuse = None;
        let (mut detect_zeroes, mut machines) = (None, None::<VhostUser>);
        for (key, value) in pairs.iter() {
            let switch = || switch(value).ok_or_else(|| wrong(format!("{key} is on or off")));
            match key {
                "image" | "format" => {}
                "name" => request.export = export_name(value)?,
                "description" => request.description = export_text(value)?,
                "read-only" => request.settings.read_only = switch()?,
                "snapshot" => request.temporary = switch()?,
                "load-snapshot" => request.snapshot = Some(SnapshotName::parse(value)?),
                "offset" => request.start = number::size("offset", value)?,
                "size" => request.length = Some(number::size("size", value)?),
                "cache" => request.settings.set_cache(value).map_err(wrong)?,
                "discard" => request.settings.set_discard(value).map_err(wrong)?,
                "bitmap" => request.bitmaps.push(value.to_owned()),
                "detect-zeroes" => detect_zeroes = Some(value),
                "vhost-user" => {
                    let place = VhostUserPlace::Path(absolute(Path::new(value))?);
                    machines = Some(self.vhost_user(place));
                }
                "fuse" => {
                    let file = self.fuse(absolute(Path::new(value))?);
                    request.fuse = Some(file);
                }
                // After the socket and the mount point, whatever the order: see below.
                "queues" | "serial" | "growable" | "allow-other" => {}
                _ => return Err(wrong(format!("there is no option '{key}'"))),
            }
        }
        match (&mut machines, pairs.get("queues"), pairs.get("serial")) {
            (None, None, None) => {}
            (None, ..) => return Err(wrong("queues and serial need vhost-user".to_owned())),
            (Some(machines), count, text) => {
                machines.queues_max = count.map_or(Ok(self.queues_max), queues)?;
                machines.serial = text.map_or(Ok(self.serial.clone()), serial)?;
            }
        }
        request.vhost_user = machines;
        for key in ["growable", "allow-other"] {
            let Some(value) = pairs.get(key) else { continue };
            let is_on = switch(value).ok_or_else(|| wrong(format!("{key} is on or off")))?;
            match (&mut request.fuse, key) {
                (None, _) => return Err(wrong(format!("{key} needs fuse"))),
                (Some(file), "growable") => file.growable = is_on,
                (Some(file), _) => file.allow_other = is_on,
            }
        }
        if let Some(value) = detect_zeroes {
            request.detect_zeros = serve::detect_zeros(value, &request.settings)?;
        }
        Ok(request)
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

pub(super) fn queues(text: &str) -> Result<u16, Failure> {
    let count = number::count("number of queues", text, 1..=256)?;
    Ok(u16::try_from(count).unwrap_or(QUEUES_MAX))
}

pub(super) fn serial(text: &str) -> Result<String, Failure> {
    if SERIAL_MAX < text.len() {
        return Err(Failure::usage(format!("the serial number '{text}' has more than 20 bytes")));
    }
    Ok(text.to_owned())
}

pub(super) fn export_name(text: &str) -> Result<String, Failure> {
    serve::within_limit("export name", text)
}

pub(super) fn export_text(text: &str) -> Result<String, Failure> {
    serve::within_limit("export description", text)
}
