//! How a disk is opened: what the letters of the program and of `open` say about it.

use std::collections::BTreeMap;

use cowl::Writeback;

use crate::cache_mode;

/// How to open a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Refuse every change.
    pub(crate) read_only: bool,
    /// Others may write to the image.
    pub(crate) force_share: bool,
    /// Open no file that the image names.
    pub(crate) untrusted: bool,
    /// Go around the page cache of the host.
    direct: bool,
    /// Every write is durable when it is acknowledged.
    writethrough: bool,
    /// `flush` does nothing.
    no_flush: bool,
    /// Discards give space back; otherwise they do nothing.
    discard: bool,
    /// The driver asked for needs a file opened around the page cache.
    native_aio: bool,
}

impl Settings {
    /// What qemu-io does when nothing is said: writes are durable at once, discards are passed on.
    pub(crate) fn new() -> Self {
        Self {
            read_only: false,
            force_share: false,
            untrusted: false,
            direct: false,
            writethrough: true,
            no_flush: false,
            discard: true,
            native_aio: false,
        }
    }

    /// What servers do: changes are durable when the client flushes.
    pub(crate) fn for_serving() -> Self {
        Self { writethrough: false, ..Self::new() }
    }

    /// `-n`, which is `-t none`.
    pub(crate) fn set_no_cache(&mut self) {
        self.direct = true;
        self.writethrough = false;
    }

    /// `-t MODE`.
    pub(crate) fn set_cache(&mut self, mode: &str) -> Result<(), String> {
        let mode = cache_mode::parse(mode).map_err(|_| format!("Invalid cache option: {mode}"))?;
        self.direct = mode.direct;
        self.writethrough = mode.writethrough;
        self.no_flush = mode.unsafe_flush;
        Ok(())
    }

    /// `-d MODE`.
    pub(crate) fn set_discard(&mut self, mode: &str) -> Result<(), String> {
        self.discard = match mode {
            "ignore" | "off" => false,
            "unmap" | "on" => true,
            _ => return Err(format!("Invalid discard option: {mode}")),
        };
        Ok(())
    }

    /// `-i MODE`. Requests go through the same driver whatever it is.
    pub(crate) fn set_aio(&mut self, mode: &str) -> Result<(), String> {
        self.native_aio = match mode {
            "threads" | "io_uring" => false,
            "native" => true,
            _ => return Err(format!("Invalid aio option: {mode}")),
        };
        Ok(())
    }

    /// What the name of an image says besides, as `read-only=on` in a list of options.
    pub(crate) fn tune(&mut self, tuning: &BTreeMap<String, String>) -> Result<(), String> {
        for (key, value) in tuning {
            match key.as_str() {
                "read-only" => self.read_only = switch(key, value)?,
                "force-share" => self.force_share = switch(key, value)?,
                "cache.direct" => self.direct = switch(key, value)?,
                "cache.writeback" => self.writethrough = !switch(key, value)?,
                "cache.no-flush" => self.no_flush = switch(key, value)?,
                "discard" => self.set_discard(value)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Why these settings contradict each other, if they do.
    pub(crate) fn contradiction(&self) -> Option<&'static str> {
        if self.force_share && !self.read_only {
            return Some("force-share=on can only be used with read-only images");
        }
        if self.native_aio && !self.direct {
            return Some(
                "aio=native was specified, but it requires cache.direct=on, which was not \
                 specified.",
            );
        }
        None
    }

    pub(crate) fn is_direct(&self) -> bool {
        self.direct
    }

    pub(crate) fn is_writethrough(&self) -> bool {
        self.writethrough
    }

    pub(crate) fn flushes(&self) -> bool {
        !self.no_flush
    }

    /// Who never waits for the disk has no reason to hurry it.
    pub(crate) fn writeback(&self) -> Writeback {
        if self.no_flush { Writeback::ByHost } else { Writeback::Early }
    }

    pub(crate) fn discards(&self) -> bool {
        self.discard
    }
}

fn switch(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(format!("Parameter '{key}' expects 'on' or 'off'")),
    }
}

#[cfg(test)]
mod tests {
    use super::Settings;

    #[test]
    fn an_option_of_the_image_counts_as_much_as_a_letter() {
        let mut settings = Settings::new();
        let tuning = [("read-only", "on"), ("discard", "ignore"), ("node-name", "n")];
        let tuning = tuning.map(|(key, value)| (key.to_owned(), value.to_owned()));
        settings.tune(&tuning.into()).unwrap();
        assert!(settings.read_only);
        assert!(!settings.discards());
        let wrong = [("read-only".to_owned(), "maybe".to_owned())].into();
        assert!(settings.tune(&wrong).is_err());
    }

    #[test]
    fn what_cannot_go_together_is_named() {
        let mut settings = Settings::new();
        assert_eq!(settings.contradiction(), None);
        settings.set_aio("native").unwrap();
        assert!(settings.contradiction().is_some_and(|text| text.starts_with("aio=native")));
        settings.set_cache("directsync").unwrap();
        assert_eq!(settings.contradiction(), None);
        settings.force_share = true;
        assert!(settings.contradiction().is_some_and(|text| text.starts_with("force-share=on")));
    }
}
