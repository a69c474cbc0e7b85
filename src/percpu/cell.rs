//! A cell of an area: so many bytes on every stripe.

use super::counter::Counter;
use super::site::Site;
use crate::error::{Error, Result};
use core::marker::PhantomData;
use core::ptr::{self, NonNull};
use rustix::io::Errno;

/// So many bytes on every stripe of an [`Area`](super::Area). It is a name, not an owner: copies
/// of it, in this process or another, are the same cell.
#[derive(Debug, Clone, Copy)]
pub struct Cell<'a> {
    site: Site,
    bytes: usize,
    area: PhantomData<&'a ()>,
}

impl<'a> Cell<'a> {
    pub(super) const fn new(site: Site, bytes: usize) -> Self {
        Self { site, bytes, area: PhantomData }
    }

    pub(super) const fn parts(&self) -> (Site, usize) {
        (self.site, self.bytes)
    }

    /// Bytes from the start of a stripe to the cell: its name in every process.
    pub fn offset(&self) -> usize {
        self.site.offset
    }

    /// Bytes of it on each stripe.
    pub fn size(&self) -> usize {
        self.bytes
    }

    /// Its first word as a counter.
    ///
    /// # Errors
    ///
    /// EINVAL if the cell has less than 8 bytes.
    pub fn counter(&self) -> Result<Counter<'a>> {
        Ok(Counter::at(self.part("percpu::Cell::counter", 0, 8)?))
    }

    /// `bytes` of it from `offset` on.
    pub(super) fn part(
        &self,
        operation: &'static str,
        offset: usize,
        bytes: usize,
    ) -> Result<Site> {
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            let numbers = format_args!("{bytes} bytes at {offset} of a cell of {}", self.bytes);
            return Err(Error::with(operation, Errno::INVAL, numbers));
        }
        let Site { start, offset: at, .. } = self.site;
        Ok(Site { start: start + offset, offset: at + offset, ..self.site })
    }

    /// Where the cell is on the stripe of `cpu`: for windows of the caller's own
    /// ([`raw`](super::raw)), and to look at it.
    ///
    /// # Errors
    ///
    /// EINVAL for a CPU id that the area has no stripe for.
    pub fn on_cpu(&self, cpu: u32) -> Result<NonNull<u8>> {
        self.on_stripe("percpu::Cell::on_cpu", cpu, cpu)
    }

    /// Where the cell is on the overflow stripe of `cpu`, which only atomics update.
    ///
    /// # Errors
    ///
    /// EINVAL for a CPU id that the area has no stripe for.
    pub fn on_overflow(&self, cpu: u32) -> Result<NonNull<u8>> {
        let stripe = self.site.geometry.cpus.saturating_add(cpu);
        self.on_stripe("percpu::Cell::on_overflow", cpu, stripe)
    }

    fn on_stripe(&self, operation: &'static str, cpu: u32, stripe: u32) -> Result<NonNull<u8>> {
        let cpus = self.site.geometry.cpus;
        let address = self.site.start + stripe as usize * self.site.geometry.stride;
        NonNull::new(ptr::with_exposed_provenance_mut(address)).filter(|_| cpu < cpus).ok_or_else(
            || {
                let numbers = format_args!("CPU {cpu}; there are stripes for 0 to {}", cpus - 1);
                Error::with(operation, Errno::INVAL, numbers)
            },
        )
    }
}
