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
//! | memory | a sealed memory file: nobody can cut or grow it; pages are taken when touched, and never executable in a mapping of ours; by choice [in huge pages](Builder::huge_pages) or [a file that stays](Builder::file) |
//! | mappings | [objects](Object) are [mapped](Region::map), [unmapped](Region::unmap) and [protected](Region::protect) by one process for all, while they run |
//! | mode | bits of owner, group and other, judged by the server from `SO_PEERCRED`; a class with the bit to read alone gets descriptors for reading alone; root may always |
//! | rights | [`Rights`] of each participant, chosen by the [opener](Region::opener), limited by the mode and by [`Builder::others`] |
//! | who serves | the creator; when it ends or is killed, another participant of the owner or root that has [all rights](Rights::ALL) and [a thread](Opener::agent) takes over |
//! | lifetime | until the last process that holds it lets go, or [with its creator](Lifetime::Creator) |
//! | lifetime of the name | the same, or until [`unlink`]; when all are killed, the name is unknown, and the next creator may have it |
//! | second opening | in one process: another handle on the same mapping |
//! | fork | the child has the mapping at the same address, as it was at the fork, and may use its handles; it becomes a participant with the first change that it makes, or with [`Region::sync`], and is waited for from then on; dropping its handles does not touch its parent's; it must not use the parent's arenas, and is a participant of its own in the heap |
//! | exec | nothing is left of the region; open it again. If it served, another takes over at once, or with the next change if a child that it forked lives on without an exec; the others notice it at the next change. One without [a thread](Opener::agent) counts as there until it ends |
//! | pid and network namespaces | all participants are of one: else EXDEV |
//! | limits | [32 TiB](Region::MAX_SIZE), [1024 processes](Region::MAX_PARTICIPANTS), of which users other than the owner and root are 512 at most: else EUSERS; [1024 parts](Region::MAX_PARTS), [60 roots](Region::MAX_ROOTS): else ENOSPC |
//!
//! Who may attach for writing may destroy what is in the region for all. Whatever is
//! written to the control memory or sent over a socket, no other process follows an address
//! out of the region or allocates outside it; but two may be given the same bytes.
//! When the machine has no memory for a page, touching it is SIGBUS or an out-of-memory
//! kill, as with any memory file.
//!
//! A participant of the same user that attached for reading alone has descriptors for
//! reading alone; it can still change the mode of the files, which are its user's, and open them
//! again. One of another user cannot.
//!
//! # Memory
//!
//! | | given back | who may use it | for |
//! |---|---|---|---|
//! | [`Region::heap`] | block by block, by any process | any thread of any process | `Vec`, `Box`, hash maps, what comes and goes |
//! | [`Region::alloc`] | no | any | a few large parts |
//! | [`Arena`] | no | one thread | many small values that stay |
//! | [`Region::map`] | by [`Region::unmap`] | any | files, huge pages, what is to be revoked |
//!
//! The first three share the region's own memory, from its start on. The heap takes what is left of
//! it, up to the first object or the [room](Builder::room) for objects; nothing can be mapped,
//! unmapped or protected in a heap. So a region with a heap and objects has room for these
//! behind it.
//!
//! # The thread
//!
//! Each process has one thread for each region, `unmerged-mshare`. It sleeps until somebody
//! changes something, ends, or calls. Without it ([`Opener::agent`]) a process follows in its own
//! calls of [`Region::sync`] alone, and others wait for it.
//!
//! # What the proposal does, and this
//!
//! The model are the patches of 2025; [`mshare()`] and [`mshare_unlink`] are the calls of 2022.
//!
//! | the proposal | here |
//! |---|---|
//! | a mapping that one makes is there in all at once, by their common page tables | when the call returns: each process's thread has mapped it; memory of the region needs no mapping at all unless something was unmapped there |
//! | unmapped memory is SIGSEGV, SEGV_MAPERR | SIGSEGV, SEGV_ACCERR: the address stays reserved. In a stopped process it is zeros or SIGBUS until it goes on |
//! | protections are to hold for all at once | when the call returns; a process that is stopped is reported. Against one that refuses there is nothing but to give it [no right to write](Rights) |
//! | alignment of 512 GiB | 1 GiB for the address, 4096 for the size |
//! | a part cannot be unmapped or protected by munmap(2) or mprotect(2) | it can, by a process for itself: do not; use [`Region::unmap`] and [`Region::protect`] |
//! | page tables exist once | with huge pages, nearly: [`Advice::Collapse`] makes them for all processes; hugetlb pages in whole gigabytes share theirs; 4 KiB pages never do |
//! | one fault serves all processes | no: each has its own; use [`Advice::Collapse`], one fault for 2 MiB |
//! | `MAP_PRIVATE` inside | no: map the file, or copy it into memory of the region |
//! | the creator's memory becomes the region's | no: the range has to be free; copy |
//! | an attacher that is killed leaks the region (2022) | the kernel gives everything back |
//! | any opener may map and unmap, and write through a read-only mapping | rights, and descriptors for reading |
//!
//! # Page tables
//!
//! [`Region::stats`] says what each participant's cost. A gigabyte that is touched in 4 KiB
//! pages costs each process 2 MiB; in pages of 2 MiB, 4 KiB, and the first process to call
//! [`Region::advise`] with [`Advice::Collapse`] changes it for all that map it then.
//!
//! Needs Linux 5.3 (`pidfd_open`), and `/proc` to attach for reading alone; collapsing, 6.1. The
//! proposal is mm/mshare (Aziz and Wilcox 2022, Yznaga
//! 2025: <https://lore.kernel.org/r/20250820010415.699353-1-anthony.yznaga@oracle.com>).

mod access;
mod acknowledge;
mod advise;
mod agent;
mod arena;
mod attach;
mod attachment;
mod backing;
mod bring;
mod builder;
mod bump;
mod change;
mod charge;
mod claim;
mod collapse;
mod desk;
mod directory;
mod directory_lock;
mod follow;
mod gate;
mod header;
mod heap;
mod held;
mod holes;
mod kept;
mod layout;
mod ledger;
mod lines;
mod list;
mod lock;
mod log;
mod maps;
mod name;
mod named;
mod object;
mod occupant;
mod open_or_create;
mod opener;
mod operations;
mod participants;
mod parts;
mod places;
mod proposal;
mod pulse;
mod question;
mod region;
mod rights;
mod root_key;
mod roots;
mod runtime;
mod same_program;
mod serve;
mod span;
mod stats;
mod succession;
mod window;
mod wire;
mod words;

pub use crate::shm::Resident;
pub use arena::Arena;
pub use builder::{Builder, Lifetime};
pub use heap::{Heap, HeapStats, Problem, Report};
pub use list::{Listed, list, list_in};
pub use named::RootInfo;
pub use object::{Acks, Advice, HugePages, Late, Object, Prot};
pub use opener::Opener;
pub use parts::{Content, Part};
pub use proposal::{mshare, mshare_unlink};
pub use region::{Region, unlink, unlink_in};
pub use rights::Rights;
pub use runtime::runtime_directory;
pub use same_program::SameProgram;
pub use stats::{Participant, Stats};

// Operations, as errors name them.
const CREATE: &str = "mshare::Builder::create";
const OPEN_OR_CREATE: &str = "mshare::Builder::open_or_create";
const OPEN: &str = "mshare::Region::open";
const UNLINK: &str = "mshare::unlink";
const LIST: &str = "mshare::list";
const MAP: &str = "mshare::Region::map";
const UNMAP: &str = "mshare::Region::unmap";
const PROTECT: &str = "mshare::Region::protect";
const ADVISE: &str = "mshare::Region::advise";
const SYNC: &str = "mshare::Region::sync";
