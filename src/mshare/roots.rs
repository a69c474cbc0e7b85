//! Named roots: where a process that attaches begins to read.
//!
//! # Protocol
//!
//! A root has words that are 0 until somebody sets them:
//!
//! | word | content | changes |
//! |---|---|---|
//! | `key` | hash of the name, never 0 | once, by compare-exchange |
//! | `kind` | size and alignment of the type, bit 63 set | once, by compare-exchange |
//! | `tag` | of the type, [`Resident::TAG`](crate::shm::Resident::TAG) | once, by compare-exchange |
//! | `name` | the first 32 bytes of it; another of the same hash is refused by them | by each setter, to the same |
//! | `pointer` | address of the value, 0 for none | any time, by an exchange or a release store |
//!
//! Roots are taken from the first one on and never given back; so a name is found by
//! walking from the first to the first free one, and two processes that set one name meet
//! at one root: whoever loses the compare-exchange of `key` looks at what won.
//!
//! The pointer is published last. Its release is what makes the value, and the kind, seen
//! by whoever loads it with acquire; the other words need no order of their own. A process
//! that dies between two words leaves a root that the next setter of the name completes. Of
//! several who create a root, or remove it, the exchange of `pointer` lets one; a removed root
//! keeps its place, for the same name and type.

use super::root_key::{Key, Kind, NAME};
use crate::sync::{AtomicU64, Ordering};

/// Number of roots in a region.
pub(super) const ROOTS: usize = 60;

/// One root, in the control header.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Root {
    key: AtomicU64,
    kind: AtomicU64,
    pointer: AtomicU64,
    tag: AtomicU64,
    name: [AtomicU64; NAME],
}

crate::sync::assert_layout!(size_of::<Root>() == 64);

/// Why a root cannot be set or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// All are taken by other names.
    Full,
    /// It was set with a type of this size and alignment.
    Kind(Kind),
    /// Its place is that of another name of the same hash.
    Name,
}

impl Root {
    /// Whether it is of this name and no other of the same hash; after its pointer.
    fn is_named(&self, key: &Key) -> bool {
        let mut words = self.name.iter().zip(key.name);
        words.all(|(word, bytes)| word.load(Ordering::Relaxed) == bytes)
    }

    fn kind(&self) -> Kind {
        Kind::of_words(self.kind.load(Ordering::Relaxed), self.tag.load(Ordering::Relaxed))
    }
}

/// The algorithm, over borrowed roots.
#[derive(Debug, Clone, Copy)]
pub(super) struct Roots<'a>(pub(super) &'a [Root]);

/// A root that is set.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) pointer: u64,
}

impl Roots<'_> {
    /// Publishes `pointer`, and all that was written before, under `key`.
    pub(super) fn set(&self, key: Key, kind: Kind, pointer: u64) -> Result<(), Refusal> {
        self.prepare(key, kind)?.pointer.store(pointer, Ordering::Release);
        Ok(())
    }

    /// The same if `was` is what is there, 0 for nothing; else what is, with all that was written
    /// before it.
    pub(super) fn replace(
        &self,
        key: Key,
        kind: Kind,
        was: u64,
        pointer: u64,
    ) -> Result<Result<u64, u64>, Refusal> {
        let root = self.prepare(key, kind)?;
        Ok(root.pointer.compare_exchange(was, pointer, Ordering::AcqRel, Ordering::Acquire))
    }

    /// Makes the root of `key` name nothing; what it named, 0 for nothing.
    pub(super) fn remove(&self, key: Key, kind: Kind) -> Result<u64, Refusal> {
        self.get(key, kind)?;
        let root = self.find(key.hash).filter(|root| root.is_named(&key));
        Ok(root.map_or(0, |root| root.pointer.swap(0, Ordering::AcqRel)))
    }

    /// What was published last under `key`, and all that was written before it; 0 if there
    /// is nothing.
    pub(super) fn get(&self, key: Key, kind: Kind) -> Result<u64, Refusal> {
        let Some(root) = self.find(key.hash) else {
            return Ok(0);
        };
        let pointer = root.pointer.load(Ordering::Acquire);
        if pointer == 0 || !root.is_named(&key) {
            return Ok(0);
        }
        match root.kind() {
            found if found == kind => Ok(pointer),
            found => Err(Refusal::Kind(found)),
        }
    }

    /// All that name something now. Names are cut after 32 bytes.
    pub(super) fn list(&self) -> Vec<Listed> {
        let listed = |root: &Root| {
            let pointer = root.pointer.load(Ordering::Acquire);
            let name = root.name.each_ref().map(|word| word.load(Ordering::Relaxed).to_le_bytes());
            let name = name.concat();
            let len = name.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            let name = String::from_utf8_lossy(&name[..len]).into_owned();
            (pointer != 0).then(|| Listed { name, kind: root.kind(), pointer })
        };
        self.0.iter().filter_map(listed).collect()
    }

    /// The root of `key`, for values of this kind.
    fn prepare(&self, key: Key, kind: Kind) -> Result<&Root, Refusal> {
        let root = self.claim(key.hash).ok_or(Refusal::Full)?;
        let relaxed = Ordering::Relaxed;
        for (word, value) in [(&root.kind, kind.word()), (&root.tag, kind.tag())] {
            if let Err(other) = word.compare_exchange(0, value, relaxed, relaxed)
                && other != value
            {
                return Err(Refusal::Kind(root.kind()));
            }
        }
        // Two setters of one name write the same; a name that is not whole is of one that died.
        for (word, bytes) in root.name.iter().zip(key.name).filter(|&(_, bytes)| bytes != 0) {
            if ![0, bytes].contains(&word.load(relaxed)) {
                return Err(Refusal::Name);
            }
            word.store(bytes, relaxed);
        }
        Ok(root)
    }

    /// The root of `key`, or the first free one, made its own.
    fn claim(&self, key: u64) -> Option<&Root> {
        let relaxed = Ordering::Relaxed;
        self.0.iter().find(|root| match root.key.compare_exchange(0, key, relaxed, relaxed) {
            Ok(_) => true,
            Err(owner) => owner == key,
        })
    }

    /// The root of `key`, if there is one.
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
            tag: AtomicU64::new(0),
            name: [const { AtomicU64::new(0) }; NAME],
        })
    }

    #[test]
    fn set_get_replace_and_full() {
        let words = roots();
        let roots = Roots(&words);
        let kind = Kind::of::<u64>();
        assert_eq!(roots.get(Key::of("a"), kind), Ok(0));
        for n in 1..=ROOTS as u64 {
            roots.set(n.into(), kind, n * 8).unwrap();
        }
        assert_eq!(roots.set(99.into(), kind, 8), Err(Refusal::Full));
        roots.set(3.into(), kind, 800).unwrap();
        assert_eq!(roots.get(3.into(), kind), Ok(800));
        assert_eq!(roots.get((ROOTS as u64).into(), kind), Ok(ROOTS as u64 * 8));
        assert_eq!(roots.get(99.into(), kind), Ok(0));
    }

    #[test]
    fn another_type_is_refused_and_changes_nothing() {
        let words = roots();
        let roots = Roots(&words);
        let (here, there) = (Kind::of::<[u64; 3]>(), Kind::of::<[u32; 6]>());
        roots.set(5.into(), here, 64).unwrap();
        assert_eq!(roots.set(5.into(), there, 128), Err(Refusal::Kind(here)));
        assert_eq!(roots.get(5.into(), there), Err(Refusal::Kind(here)));
        assert_eq!(roots.get(5.into(), here), Ok(64));
        assert_eq!((here.size(), here.align_log2()), (24, 3));
    }

    #[test]
    fn a_setter_that_died_half_way_is_completed() {
        let words = roots();
        words[0].key.store(7, Ordering::Relaxed);
        let (roots, kind) = (Roots(&words), Kind::of::<u8>());
        assert_eq!(roots.get(7.into(), kind), Ok(0));
        roots.set(7.into(), kind, 1).unwrap();
        assert_eq!(roots.get(7.into(), kind), Ok(1));
        assert_eq!(words[1].key.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn one_creates_one_removes_and_all_are_listed() {
        let words = roots();
        let roots = Roots(&words);
        let kind = Kind::of::<u64>();
        let (long, short) = (Key::of(&"x".repeat(40)), Key::of("short"));
        assert_eq!(roots.replace(short, kind, 0, 8), Ok(Ok(0)));
        assert_eq!(roots.replace(short, kind, 0, 16), Ok(Err(8)));
        assert_eq!(roots.replace(short, kind, 8, 24), Ok(Ok(8)));
        roots.set(long, kind, 32).unwrap();
        let names: Vec<_> =
            roots.list().into_iter().map(|root| (root.name, root.pointer)).collect();
        assert_eq!(names, [("short".to_owned(), 24), ("x".repeat(32), 32)]);
        assert_eq!(roots.remove(short, Kind::of::<u8>()), Err(Refusal::Kind(kind)));
        assert_eq!((roots.remove(short, kind), roots.remove(short, kind)), (Ok(24), Ok(0)));
        assert_eq!(roots.list().len(), 1);
        assert_eq!(roots.replace(short, kind, 0, 40), Ok(Ok(0)));
    }

    #[test]
    fn another_name_of_the_same_hash_is_another() {
        let words = roots();
        let (roots, kind) = (Roots(&words), Kind::of::<u64>());
        let one = Key::of("one");
        let two = Key { hash: one.hash, ..Key::of("two") };
        roots.set(one, kind, 8).unwrap();
        assert_eq!(roots.set(two, kind, 16), Err(Refusal::Name));
        assert_eq!((roots.get(two, kind), roots.remove(two, kind)), (Ok(0), Ok(0)));
        assert_eq!(roots.get(one, kind), Ok(8));
    }

    #[test]
    fn a_tag_is_part_of_the_kind() {
        use crate::shm::Resident;

        struct Tagged;
        // SAFETY: nothing in it.
        unsafe impl Resident for Tagged {
            const TAG: u64 = 77;
        }
        let words = roots();
        let roots = Roots(&words);
        roots.set(1.into(), Kind::of::<Tagged>(), 8).unwrap();
        assert_eq!(Kind::of::<Tagged>().tag(), 77);
        let refused = Err(Refusal::Kind(Kind::of::<Tagged>()));
        assert_eq!(roots.set(1.into(), Kind::of::<()>(), 16), refused);
        assert_eq!(roots.get(1.into(), Kind::of::<Tagged>()), Ok(8));
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
                tag: AtomicU64::new(0).ready(),
                name: core::array::from_fn(|_| AtomicU64::new(0).ready()),
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
                    Roots(&shared.roots).set(1.into(), kind, 8).unwrap();
                })
            };
            if Roots(&shared.roots).get(1.into(), kind).unwrap() != 0 {
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
            let set = |key: u64, pointer| {
                let shared = shared.clone();
                thread::spawn(move || Roots(&shared.roots).set(key.into(), kind, pointer).unwrap())
            };
            let others = [set(1, 8), set(2, 24)];
            Roots(&shared.roots).set(1.into(), kind, 16).unwrap();
            for other in others {
                other.join().unwrap();
            }
            let roots = Roots(&shared.roots);
            assert_eq!(roots.get(2.into(), kind), Ok(24));
            assert!(matches!(roots.get(1.into(), kind), Ok(8 | 16)));
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
                thread::spawn(move || Roots(&shared.roots).set(1.into(), there, 8))
            };
            let mine = Roots(&shared.roots).set(1.into(), here, 16);
            assert_ne!(mine.is_ok(), other.join().unwrap().is_ok());
        });
    }

    /// Two create one root: one wins, and the other sees the winner's value. Fails when the
    /// exchange is a load and a store, or one of its orders is relaxed.
    #[test]
    fn one_of_two_creators() {
        model(|| {
            let shared = shared();
            let kind = Kind::of::<u64>();
            let create = move |shared: &Shared, pointer| {
                Roots(&shared.roots).replace(1.into(), kind, 0, pointer).unwrap()
            };
            let other = thread::spawn({
                let shared = shared.clone();
                move || {
                    shared.value.with_mut(|value| unsafe { *value = 42 });
                    create(&shared, 8).is_ok()
                }
            });
            let mine = create(&shared, 16);
            if mine == Err(8) {
                assert_eq!(shared.value.with(|value| unsafe { *value }), 42);
            }
            assert_ne!(mine.is_ok(), other.join().unwrap());
        });
    }

    /// Two remove one root: one gets it. Fails when the exchange is a load and a store.
    #[test]
    fn one_remover() {
        model(|| {
            let shared = shared();
            let kind = Kind::of::<u64>();
            Roots(&shared.roots).set(1.into(), kind, 8).unwrap();
            let other = thread::spawn({
                let shared = shared.clone();
                move || Roots(&shared.roots).remove(1.into(), kind).unwrap()
            });
            let mine = Roots(&shared.roots).remove(1.into(), kind).unwrap();
            assert_eq!(mine + other.join().unwrap(), 8);
        });
    }
}
