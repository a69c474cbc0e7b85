//! Named roots: where a process that attaches begins to read.
//!
//! # Protocol
//!
//! A root has three words, each of which is 0 until somebody sets it:
//!
//! | word | content | changes |
//! |---|---|---|
//! | `key` | hash of the name, never 0 | once, by compare-exchange |
//! | `kind` | size and alignment of the type, bit 63 set | once, by compare-exchange |
//! | `pointer` | address of the value | any time, by a release store |
//!
//! Roots are taken from the first one on and never given back; so a name is found by
//! walking from the first to the first free one, and two processes that set one name meet
//! at one root: whoever loses the compare-exchange of `key` looks at what won.
//!
//! The pointer is published last. Its release is what makes the value, and the kind, seen
//! by whoever loads it with acquire; the other words need no order of their own. A process
//! that dies between two words leaves a root that the next setter of the name completes.

use crate::sync::{AtomicU64, Ordering};

/// Number of roots in a region.
pub(super) const ROOTS: usize = 16;

/// One root, in the control header.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Root {
    key: AtomicU64,
    kind: AtomicU64,
    pointer: AtomicU64,
    unused: AtomicU64,
}

crate::sync::assert_layout!(size_of::<Root>() == 32);

/// Hash of a name (FNV-1a, 64 bits), never 0. Names are told apart by this alone: a
/// compare-exchange of one word cannot be cut in halves by a kill, one of a name could.
pub(super) fn key(name: &str) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash.max(1)
}

/// Size and alignment of a type, as one word that is never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind(u64);

impl Kind {
    const SET: u64 = 1 << 63;

    /// Of `T`.
    pub(super) const fn of<T>() -> Self {
        Self(Self::SET | (size_of::<T>() as u64) << 8 | align_of::<T>().trailing_zeros() as u64)
    }

    /// Bytes of a value.
    pub(super) const fn size(self) -> u64 {
        (self.0 & !Self::SET) >> 8
    }

    /// Its alignment, as a power of two.
    pub(super) const fn align_log2(self) -> u64 {
        self.0 & 0xff
    }
}

/// Why a root cannot be set or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// All are taken by other names.
    Full,
    /// It was set with a type of this size and alignment.
    Kind(Kind),
}

/// The algorithm, over borrowed roots.
#[derive(Debug, Clone, Copy)]
pub(super) struct Roots<'a>(pub(super) &'a [Root]);

impl Roots<'_> {
    /// Publishes `pointer`, and all that was written before, under `key`.
    pub(super) fn set(&self, key: u64, kind: Kind, pointer: u64) -> Result<(), Refusal> {
        let root = self.claim(key).ok_or(Refusal::Full)?;
        let relaxed = Ordering::Relaxed;
        if let Err(other) = root.kind.compare_exchange(0, kind.0, relaxed, relaxed)
            && other != kind.0
        {
            return Err(Refusal::Kind(Kind(other)));
        }
        root.pointer.store(pointer, Ordering::Release);
        Ok(())
    }

    /// What was published last under `key`, and all that was written before it; 0 if there
    /// is nothing.
    pub(super) fn get(&self, key: u64, kind: Kind) -> Result<u64, Refusal> {
        let Some(root) = self.find(key) else {
            return Ok(0);
        };
        let pointer = root.pointer.load(Ordering::Acquire);
        if pointer == 0 {
            return Ok(0);
        }
        match Kind(root.kind.load(Ordering::Relaxed)) {
            found if found == kind => Ok(pointer),
            found => Err(Refusal::Kind(found)),
        }
    }

    /// The root of `key`, or the first free one, made its own.
    fn claim(&self, key: u64) -> Option<&Root> {
        let relaxed = Ordering::Relaxed;
        self.0.iter().find(|root| match root.key.compare_exchange(0, key, relaxed, relaxed) {
            Ok(_) => true,
            Err(owner) => owner == key,
        })
    }

    /// The root of `key`.
    fn find(&self, key: u64) -> Option<&Root> {
        self.0
            .iter()
            .map(|root| (root, root.key.load(Ordering::Relaxed)))
            .take_while(|&(_, owner)| owner != 0)
            .find_map(|(root, owner)| (owner == key).then_some(root))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn roots() -> [Root; ROOTS] {
        core::array::from_fn(|_| Root {
            key: AtomicU64::new(0),
            kind: AtomicU64::new(0),
            pointer: AtomicU64::new(0),
            unused: AtomicU64::new(0),
        })
    }

    #[test]
    fn set_get_replace_and_full() {
        let words = roots();
        let roots = Roots(&words);
        let kind = Kind::of::<u64>();
        assert_eq!(roots.get(key("a"), kind), Ok(0));
        for n in 1..=ROOTS as u64 {
            roots.set(n, kind, n * 8).unwrap();
        }
        assert_eq!(roots.set(99, kind, 8), Err(Refusal::Full));
        roots.set(3, kind, 800).unwrap();
        assert_eq!(roots.get(3, kind), Ok(800));
        assert_eq!(roots.get(16, kind), Ok(128));
        assert_eq!(roots.get(99, kind), Ok(0));
    }

    #[test]
    fn another_type_is_refused_and_changes_nothing() {
        let words = roots();
        let roots = Roots(&words);
        let (here, there) = (Kind::of::<[u64; 3]>(), Kind::of::<[u32; 6]>());
        roots.set(5, here, 64).unwrap();
        assert_eq!(roots.set(5, there, 128), Err(Refusal::Kind(here)));
        assert_eq!(roots.get(5, there), Err(Refusal::Kind(here)));
        assert_eq!(roots.get(5, here), Ok(64));
        assert_eq!((here.size(), here.align_log2()), (24, 3));
    }

    #[test]
    fn a_setter_that_died_half_way_is_completed() {
        let words = roots();
        words[0].key.store(7, Ordering::Relaxed);
        let (roots, kind) = (Roots(&words), Kind::of::<u8>());
        assert_eq!(roots.get(7, kind), Ok(0));
        roots.set(7, kind, 1).unwrap();
        assert_eq!(roots.get(7, kind), Ok(1));
        assert_eq!(words[1].key.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn keys() {
        assert_ne!(key("index"), key("indey"));
        assert_ne!(key(""), 0);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::model;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    struct Shared {
        roots: [Root; 2],
        /// What the pointer stands for, written without atomics.
        value: UnsafeCell<u64>,
    }

    fn shared() -> Arc<Shared> {
        Arc::new(Shared {
            roots: core::array::from_fn(|_| Root {
                key: AtomicU64::new(0).ready(),
                kind: AtomicU64::new(0).ready(),
                pointer: AtomicU64::new(0).ready(),
                unused: AtomicU64::new(0).ready(),
            }),
            value: UnsafeCell::new(0),
        })
    }

    /// Whoever sees the pointer sees the value and the kind. Fails when the release of
    /// `set` or the acquire of `get` is relaxed.
    #[test]
    fn a_pointer_brings_its_value() {
        model(|| {
            let shared = shared();
            let kind = Kind::of::<u64>();
            let writer = {
                let shared = shared.clone();
                thread::spawn(move || {
                    shared.value.with_mut(|value| unsafe { *value = 42 });
                    Roots(&shared.roots).set(1, kind, 8).unwrap();
                })
            };
            if Roots(&shared.roots).get(1, kind).unwrap() != 0 {
                assert_eq!(shared.value.with(|value| unsafe { *value }), 42);
            }
            writer.join().unwrap();
        });
    }

    /// Two processes set one name, a third another: two roots, neither lost. Fails when the
    /// compare-exchange of `key` is a load and a store.
    #[test]
    fn one_name_is_one_root() {
        model(|| {
            let shared = shared();
            let kind = Kind::of::<u64>();
            let set = |key, pointer| {
                let shared = shared.clone();
                thread::spawn(move || Roots(&shared.roots).set(key, kind, pointer).unwrap())
            };
            let others = [set(1, 8), set(2, 24)];
            Roots(&shared.roots).set(1, kind, 16).unwrap();
            for other in others {
                other.join().unwrap();
            }
            let roots = Roots(&shared.roots);
            assert_eq!(roots.get(2, kind), Ok(24));
            assert!(matches!(roots.get(1, kind), Ok(8 | 16)));
        });
    }

    /// Two processes set one name with two types: one is refused. Fails when the
    /// compare-exchange of `kind` is a load and a store.
    #[test]
    fn one_root_is_of_one_type() {
        model(|| {
            let shared = shared();
            let (here, there) = (Kind::of::<u64>(), Kind::of::<u32>());
            let other = {
                let shared = shared.clone();
                thread::spawn(move || Roots(&shared.roots).set(1, there, 8))
            };
            let mine = Roots(&shared.roots).set(1, here, 16);
            assert_ne!(mine.is_ok(), other.join().unwrap().is_ok());
        });
    }
}
