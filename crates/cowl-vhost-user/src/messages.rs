//! The messages of a front-end, one by one.

use std::fs::File;

use cowl_block::BlockDevice;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use crate::config::{self, WRITEBACK_OFFSET};
use crate::inflight::Inflight;
use crate::memory::{Place, REGIONS_MAX, Region};
use crate::notifier;
use crate::session::{Addresses, Kick, Session};

/// What is not offered is not asked for by a front-end that keeps to the protocol.
fn not_offered<T>() -> Result<T> {
    Err(Error::InvalidOperation("not offered"))
}

fn index_of(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

/// An event counter that was given, made ready for use.
fn counter(file: Option<File>) -> Result<Option<File>> {
    if let Some(file) = &file {
        notifier::prepare(file)?;
    }
    Ok(file)
}

impl<E: BlockDevice + 'static> VhostUserBackendReqHandlerMut for Session<E> {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.end_all()
    }

    fn reset_device(&mut self) -> Result<()> {
        self.end_all()?;
        self.choose_writeback(true);
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(config::features(&self.served))
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !config::features(&self.served) != 0 {
            return Err(Error::InvalidParam);
        }
        match features == self.features {
            true => Ok(()),
            false => self.change_all(|session| {
                session.features = features;
                Ok(())
            }),
        }
    }

    fn set_mem_table(
        &mut self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let mapped = table.iter().zip(files).map(|(region, file)| Region::map(place(region), file));
        let regions = mapped.collect::<Result<Vec<_>>>()?;
        self.set_memory(regions)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        if !size.is_power_of_two() || self.served.export.queue_size_max < size {
            return Err(Error::InvalidParam);
        }
        self.change_queue(index_of(index), |queue| {
            queue.size = size;
            Ok(())
        })
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        if !flags.is_empty() {
            return not_offered();
        }
        let addresses = Addresses { descriptors: descriptor, available, used };
        if self.queue(index_of(index))?.addresses == Some(addresses) {
            return Ok(());
        }
        self.change_queue(index_of(index), |queue| {
            queue.addresses = Some(addresses);
            Ok(())
        })
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.change_queue(index_of(index), |queue| {
            queue.base = base;
            Ok(())
        })
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = self.end_queue(index_of(index))?;
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let kick = counter(fd)?.map_or(Kick::Never, Kick::Counter);
        self.change_queue(usize::from(index), |queue| {
            queue.kick = kick;
            Ok(())
        })
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let queue = self.queue(usize::from(index))?;
        queue.call.replace(counter(fd)?);
        // What was used just before rang the old one, where perhaps nobody listens any more.
        if queue.is_running() {
            queue.call.notify();
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.queue(usize::from(index))?.error.replace(counter(fd)?);
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        // The handler above looks at them before it takes a message that depends on one.
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(u64::from(self.served.export.queues_max))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        if self.queue(index_of(index))?.enabled == enable {
            return Ok(());
        }
        self.change_queue(index_of(index), |queue| {
            queue.enabled = enable;
            Ok(())
        })
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        let space = config::space(&self.served, self.writeback_chosen);
        let start = index_of(offset);
        let end = start.checked_add(index_of(size)).ok_or(Error::InvalidParam)?;
        Ok(space.get(start..end).ok_or(Error::InvalidParam)?.to_vec())
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        match (offset, bytes) {
            (WRITEBACK_OFFSET, [writeback @ (0 | 1)]) => {
                self.choose_writeback(*writeback == 1);
                Ok(())
            }
            _ => Err(Error::InvalidParam),
        }
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        not_offered()
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        not_offered()
    }

    fn get_inflight_fd(&mut self, asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let export = &self.served.export;
        let (queues_max, size_max) = (export.queues_max, export.queue_size_max);
        if queues_max < asked.num_queues || size_max < asked.queue_size {
            return Err(Error::InvalidParam);
        }
        Inflight::create(asked)
    }

    fn set_inflight_fd(&mut self, given: &VhostUserInflight, file: File) -> Result<()> {
        self.set_inflight(Inflight::adopt(given, file)?)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(REGIONS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        fd: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        let mut regions = self.regions();
        if REGIONS_MAX <= regions.len() {
            return Err(Error::InvalidParam);
        }
        regions.push(Region::map(place(region), fd)?);
        self.set_memory(regions)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        // The offset in the file is not part of its name: this message brings no file.
        let Place { guest, length, user, .. } = place(region);
        let is_it =
            |known: &Place| (known.guest, known.length, known.user) == (guest, length, user);
        let mut regions = self.regions();
        let found = regions.iter().position(|region| is_it(&region.place()));
        regions.remove(found.ok_or(Error::InvalidParam)?);
        self.set_memory(regions)
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        not_offered()
    }

    fn check_device_state(&mut self) -> Result<()> {
        not_offered()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        not_offered()
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        not_offered()
    }
}

fn place(region: &VhostUserMemoryRegion) -> Place {
    Place {
        guest: region.guest_phys_addr,
        length: region.memory_size,
        user: region.user_addr,
        file_offset: region.mmap_offset,
    }
}
