//! Which threads the types of futex2 may cross to, and whether panics may: `Send`, `Sync`, `UnwindSafe`
//! and `RefUnwindSafe` of each public type, beside those of std's.

use std::cell::Cell;
use std::marker::PhantomData;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::rc::Rc;
use std::sync::mpsc;
use unmerged::futex2::lock::{
    AutoEvent, Channel, Condvar, Event, Items, Locked, Mutex, MutexGuard, Once, Orphan, RawMutex,
    RawRwLock, Receiver, Receiving, RobustGuard, RobustMutex, RwLock, RwLockReadGuard,
    RwLockWriteGuard, Semaphore, SendError, Sender, Sending,
};
use unmerged::futex2::{
    Counted, Deadline, Domain, Fences, Futex, Implementation, Key, NumaFutex, Options, Private,
    Shared, Waiter, raw,
};

/// Whether a type has a trait: a constant of the type itself goes before that of a trait.
macro_rules! has {
    ($type:ty: $bound:path) => {{
        #[allow(dead_code, reason = "unused if the type has it")]
        trait Not {
            const HAS: bool = false;
        }
        impl<T: ?Sized> Not for T {}
        struct Is<T: ?Sized>(#[allow(dead_code, reason = "a type alone")] PhantomData<T>);
        #[allow(dead_code, reason = "unused if the trait is missing")]
        impl<T: ?Sized + $bound> Is<T> {
            const HAS: bool = true;
        }
        <Is<$type>>::HAS
    }};
}

/// The four, as letters.
macro_rules! of {
    ($type:ty) => {{
        let all = [
            (has!($type: Send), 's'),
            (has!($type: Sync), 'y'),
            (has!($type: UnwindSafe), 'u'),
            (has!($type: RefUnwindSafe), 'r'),
        ];
        all.into_iter().filter(|(has, _)| *has).map(|(_, letter)| letter).collect::<String>()
    }};
}

macro_rules! table {
    ($($type:ty = $traits:expr,)+) => { $(
        assert_eq!(of!($type), $traits, "{}", stringify!($type));
    )+ };
}

/// As `String` and `Vec`: all four.
const ALL: &str = "syur";

#[test]
fn words() {
    table! {
        Futex<u8> = of!(std::sync::atomic::AtomicU8),
        Futex<u64, Shared> = of!(std::sync::atomic::AtomicU64),
        Futex<u32, Counted> = ALL,
        NumaFutex = ALL,
        NumaFutex<Shared> = ALL,
        Waiter<'static> = ALL,
        Domain = ALL,
        Key = ALL,
        Deadline = of!(std::time::Instant),
        Options = ALL,
        Fences = ALL,
        Implementation = ALL,
        raw::Timespec = ALL,
        raw::FutexWaitv = ALL,
        unmerged::Error = ALL,
    }
}

#[test]
fn locks_without_data() {
    table! {
        RawMutex = ALL,
        RawMutex<Shared> = ALL,
        RawRwLock = ALL,
        RawRwLock<Shared> = ALL,
        Condvar = of!(std::sync::Condvar),
        Condvar<Shared> = ALL,
        Once = of!(std::sync::Once),
        Semaphore = ALL,
        Semaphore<Shared> = ALL,
        Event = ALL,
        AutoEvent = ALL,
    }
}

/// As std's but for panics: there is no poison, so what a panic left half done is seen by the next one,
/// and `&Mutex` does not cross a `catch_unwind` without an `AssertUnwindSafe`. parking_lot has it so.
#[test]
fn locks_with_data() {
    assert_eq!(of!(std::sync::Mutex<u8>), ALL);
    assert_eq!(of!(std::sync::RwLock<u8>), ALL);
    table! {
        Mutex<u8> = "syu",
        Mutex<u8> = of!(parking_lot::Mutex<u8>),
        Mutex<u8, Shared> = "syu",
        Mutex<Cell<u8>> = "syu",
        Mutex<Cell<u8>> = of!(parking_lot::Mutex<Cell<u8>>),
        Mutex<Rc<u8>> = of!(parking_lot::Mutex<Rc<u8>>),
        Mutex<&'static mut u8> = of!(parking_lot::Mutex<&'static mut u8>),
        &'static Mutex<u8> = of!(&'static parking_lot::Mutex<u8>),
        RwLock<u8> = of!(parking_lot::RwLock<u8>),
        RwLock<Cell<u8>> = of!(parking_lot::RwLock<Cell<u8>>),
        RwLock<Rc<u8>> = of!(parking_lot::RwLock<Rc<u8>>),
        RwLock<u8, Shared> = "syu",
        RobustMutex<u8> = "syu",
        RobustMutex<Cell<u8>> = "syu",
        RobustMutex<Rc<u8>> = "u",
    }
}

/// They stay with their threads, as std's.
#[test]
fn guards() {
    assert_eq!(of!(std::sync::MutexGuard<'static, u8>), "yur");
    table! {
        MutexGuard<'static, u8> = of!(parking_lot::MutexGuard<'static, u8>),
        MutexGuard<'static, Cell<u8>> = of!(parking_lot::MutexGuard<'static, Cell<u8>>),
        RwLockReadGuard<'static, u8> = of!(parking_lot::RwLockReadGuard<'static, u8>),
        RwLockReadGuard<'static, Cell<u8>> = of!(parking_lot::RwLockReadGuard<'static, Cell<u8>>),
        RwLockWriteGuard<'static, u8> = of!(parking_lot::RwLockWriteGuard<'static, u8>),
        RwLockWriteGuard<'static, Cell<u8>> = "",
        RobustGuard<'static, u8> = "y",
        RobustGuard<'static, Cell<u8>> = "",
        Orphan<'static, u8> = "y",
        Locked<'static, u8> = "y",
    }
}

/// As crossbeam's, whose ends are both: those of std's, of which a receiver stays with one thread
/// at a time.
#[test]
fn channels() {
    assert_eq!(of!(mpsc::SyncSender<u8>), ALL);
    assert_eq!(of!(mpsc::Receiver<u8>), "sur");
    table! {
        Channel<u8> = ALL,
        Channel<u8, Shared> = ALL,
        Channel<Cell<u8>> = ALL,
        Channel<Rc<u8>> = "ur",
        Sender<u8> = of!(crossbeam_channel::Sender<u8>),
        Sender<Cell<u8>> = of!(crossbeam_channel::Sender<Cell<u8>>),
        Sender<Rc<u8>> = of!(crossbeam_channel::Sender<Rc<u8>>),
        Receiver<u8> = of!(crossbeam_channel::Receiver<u8>),
        Receiver<Cell<u8>> = of!(crossbeam_channel::Receiver<Cell<u8>>),
        Receiver<Rc<u8>> = of!(crossbeam_channel::Receiver<Rc<u8>>),
        Items<'static, u8, Private> = of!(crossbeam_channel::Iter<'static, u8>),
        Items<'static, Rc<u8>, Private> = "ur",
        Receiving<'static, u8, Private> = ALL,
        Sending<'static, u8, Private> = ALL,
        SendError<u8> = ALL,
        SendError<u8> = of!(mpsc::SendError<u8>),
        SendError<Cell<u8>> = of!(mpsc::SendError<Cell<u8>>),
        SendError<Rc<u8>> = of!(mpsc::SendError<Rc<u8>>),
    }
}
