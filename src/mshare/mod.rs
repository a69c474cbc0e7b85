//! One range of memory at the same address in many processes.
//!
//! A process makes a [`Region`] under a name; others of the same user open it by that name,
//! and find it at the same address. So absolute pointers in it are valid everywhere: a structure
//! that one process builds, another walks.
//!
//! ```
//! # fn main() -> unmerged::Result<()> {
//! use unmerged::mshare::{Arena, Region, Resident};
//!
//! #[repr(C)]
//! struct Node {
//!     next: *const Node,
//!     value: u64,
//! }
//! // SAFETY: `next` is null or a Node of the same region; repr(C); nothing to drop; not
//! // written after it is published.
//! unsafe impl Resident for Node {}
//!
//! # let name = &format!("doc-{}", std::process::id());
//! let region = Region::builder(name).size(1 << 30).mode(0o600).create()?;
//! let arena = Arena::new(&region, 4096)?;
//! let mut list = core::ptr::null();
//! for value in 1..=3 {
//!     list = arena.alloc_value(Node { next: list, value })?.as_ptr();
//! }
//! region.set_root("list", core::ptr::NonNull::new(list.cast_mut()).unwrap())?;
//!
//! // Here or in another process:
//! let region = Region::open(name)?;
//! let mut sum = 0;
//! let mut next = region.root::<Node>("list")?.map_or(core::ptr::null(), |n| n.as_ptr());
//! while !next.is_null() {
//!     // SAFETY: a Node, published by set_root and not written since.
//!     let node = unsafe { region.get(next) }?;
//!     sum += node.value;
//!     next = node.next;
//! }
//! assert_eq!(sum, 6);
//! # Ok(())
//! # }
//! ```
//!
//! # How it behaves
//!
//! | | |
//! |---|---|
//! | name | 1 to 64 of `A-Z a-z 0-9 . _ -`, no dot first; one live region a name in a runtime directory |
//! | runtime directory | `$UNMERGED_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/unmerged`, else `/run/user/UID/unmerged`, else `/tmp/unmerged-UID`; ours, no symbolic link, writable by nobody else |
//! | address | chosen once from 0x2000_0000_0000 to 0x5000_0000_0000, 1 GiB-aligned, the same everywhere; if it is not free in an opener, EEXIST, and nothing is replaced |
//! | memory | a sealed memory file: nobody can cut or grow it; pages are taken when touched, and never executable in a mapping of ours |
//! | mode | bits of owner, group and other, judged by the server from `SO_PEERCRED`; a class needs read and write; root may always |
//! | lifetime of the name | until the creator's handle is dropped, or [`unlink`]; if the creator is killed, the name is unknown, and the next creator may have it |
//! | lifetime of the memory | until the last process that holds it lets go, whatever became of the creator |
//! | second opening | in one process: another handle on the same mapping |
//! | fork | the child has the mapping at the same address, and may use its handles; it does not serve, and dropping them does not touch the parent's name; it must not use the parent's arenas; like all but the simplest functions, none may be called in the child of a process with several threads, one of which was in here |
//! | exec | nothing is left of the region; open it again |
//!
//! Who may attach may write, and so may destroy what is in the region for all. Whatever is
//! written to the control page or sent over a socket, no other process follows an address
//! out of the region or allocates outside it; but two may be given the same bytes.
//! When the machine has no memory for a page, touching it is SIGBUS or an out-of-memory
//! kill, as with any memory file.
//!
//! # Not yet
//!
//! Memory is not given back before the region is. Mappings cannot be added, removed or
//! protected. Only the creator serves, with one thread for each region. There is no
//! attachment for reading only.
//!
//! Needs Linux 5.3 (`pidfd_open`). The proposal is mm/mshare (Aziz and Wilcox 2022, Yznaga
//! 2025: <https://lore.kernel.org/r/20250820010415.699353-1-anthony.yznaga@oracle.com>).

mod access;
mod agent;
mod arena;
mod attach;
mod attachment;
mod builder;
mod bump;
mod change;
mod claim;
mod directory;
mod follow;
mod gate;
mod header;
mod held;
mod layout;
mod ledger;
mod list;
mod lock;
mod log;
mod name;
mod object;
mod opener;
mod operations;
mod participants;
mod proposal;
mod region;
mod rights;
mod roots;
mod serve;
mod stats;
mod succession;
mod window;
mod wire;
mod words;

pub use crate::shm::Resident;
pub use arena::Arena;
pub use builder::{Builder, Lifetime};
pub use directory::runtime_directory;
pub use list::{Listed, list, list_in};
pub use object::{Acks, Advice, HugePages, Late, Object, Prot};
pub use opener::Opener;
pub use proposal::{mshare, mshare_unlink};
pub use region::{Region, unlink, unlink_in};
pub use rights::Rights;
pub use stats::{Participant, Stats};

// Operations, as errors name them.
const CREATE: &str = "mshare::Builder::create";
const OPEN: &str = "mshare::Region::open";
const UNLINK: &str = "mshare::unlink";
const LIST: &str = "mshare::list";
const MAP: &str = "mshare::Region::map";
const UNMAP: &str = "mshare::Region::unmap";
const PROTECT: &str = "mshare::Region::protect";
const ADVISE: &str = "mshare::Region::advise";
const SYNC: &str = "mshare::Region::sync";
