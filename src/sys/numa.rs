//! NUMA nodes, and memory that is to be placed on one of them.

use super::cpus::Ids;
use super::errno;
use rustix::io::{Errno, Result};

/// Where the kernel lists the nodes.
const NODES: &str = "/sys/devices/system/node";

/// `MPOL_PREFERRED` (`uapi/linux/mempolicy.h`): that node, or another one when it is full.
const PREFERRED: i32 = 1;

/// Each node with its CPU ids, ascending. Empty where the kernel has no NUMA or sysfs is not
/// mounted.
pub fn nodes() -> Vec<(u32, Ids)> {
    let list = |path: String| Ids::parse(&std::fs::read_to_string(path).ok()?);
    let Some(online) = list(format!("{NODES}/online")) else { return Vec::new() };
    let node = |node| Some((node, list(format!("{NODES}/node{node}/cpulist"))?));
    online.iter().filter_map(node).collect()
}

/// The ids that nodes of this machine can have, as the kernel lists them. Without NUMA or sysfs: 0.
pub fn possible() -> Vec<u32> {
    let list = std::fs::read_to_string(format!("{NODES}/possible")).ok();
    list.and_then(|list| Ids::parse(&list)).map_or(vec![0], |ids| ids.iter().collect())
}

/// `mbind(address, len, MPOL_PREFERRED, node)` — pages of the range that are committed from now
/// on come from `node` if it has any. For a shared mapping of a memory file this holds for the
/// file's pages, whoever touches them.
///
/// # Errors
///
/// ENOSYS without NUMA, EINVAL for a node that is not there or a range that is no page's, EFAULT
/// if it is not mapped, EPERM under a filter.
///
/// # Safety
///
/// The range must be the caller's: its placement changes.
pub unsafe fn prefer(address: usize, len: usize, node: u32) -> Result<()> {
    const BITS: u32 = u64::BITS;
    let mut mask = [0_u64; 16];
    let word = mask.get_mut((node / BITS) as usize).ok_or(Errno::INVAL)?;
    *word = 1 << (node % BITS);
    // The kernel reads one bit less than it is told of.
    let bits = mask.len() as u64 * u64::from(BITS) + 1;
    // SAFETY: the mask outlives the call; the caller vouches for the range.
    errno::zero(unsafe {
        libc::syscall(libc::SYS_mbind, address, len, PREFERRED, mask.as_ptr(), bits, 0)
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sys::cpus;
    use crate::sys::map::{Access, Mapping, PAGE};

    #[test]
    fn this_machine() {
        let nodes = nodes();
        let memory = Mapping::anonymous(2 * PAGE, Access::Write).unwrap();
        // SAFETY: our own mapping.
        let prefer = |node| unsafe { prefer(memory.address(), memory.len(), node) };
        if let Some((node, _)) = nodes.first() {
            assert!(nodes.iter().any(|(_, ids)| ids.iter().any(|id| id == cpus::current())));
            assert!(matches!(prefer(*node), Ok(()) | Err(Errno::PERM | Errno::NOSYS)));
        }
        assert!(prefer(5000).is_err());
        // SAFETY: nothing is mapped at 4096, so nothing changes.
        assert!(unsafe { super::prefer(PAGE, PAGE, 0) }.is_err());
    }
}
