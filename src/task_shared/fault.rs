//! Death, or a signal, at a chosen step of taking, publishing and giving back, for tests. It
//! costs nothing elsewhere: a step is then an empty function.

#[cfg(not(all(test, not(loom))))]
#[inline(always)]
pub(super) const fn step() {}

#[cfg(all(test, not(loom)))]
pub(super) use armed::step;

#[cfg(all(test, not(loom)))]
mod armed {
    use super::super::current::{MINE, current};
    use super::super::held::Held;
    use super::super::held::tests::table;
    use super::super::layout::CHUNK;
    use super::super::liveness::is_held;
    use super::super::owner::Label;
    use super::super::record::{Record, Values};
    use crate::sys::thread;
    use core::cell::Cell;
    use std::sync::mpsc;

    type Blow = fn();

    thread_local! {
        /// Steps that this thread still takes, and what hits it then.
        static LEFT: Cell<Option<(u32, Blow)>> = const { Cell::new(None) };
    }

    /// A place where a test hits a thread.
    pub(in super::super) fn step() {
        if let Some((n, blow)) = LEFT.get() {
            LEFT.set(n.checked_sub(1).map(|n| (n, blow)));
            if n == 0 {
                blow();
            }
        }
    }

    fn killed() {
        // SAFETY: ends this process, which is a child that was made for it.
        unsafe { libc::raise(libc::SIGKILL) };
    }

    fn exited() {
        // SAFETY: ends this thread with no destructor, which is the point.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }

    fn signalled() {
        // SAFETY: a signal to this thread, which has a handler.
        unsafe { libc::raise(libc::SIGUSR2) };
    }

    /// A life: all words say who it is.
    fn begin(held: &Held, me: u32) {
        let values = Values { tid: thread::id(), cpu: me, updated: me.into(), ..Values::default() };
        held.begin(values, Label { name: [me as u8; 16], since: me.into() }).unwrap();
    }

    fn publish(record: &Record, me: u32) {
        let last = record.read().unwrap().values;
        assert!(record.publish(record.quiet().unwrap(), Values { node: me, ..last }));
        let user = record.user_life(record.inline());
        assert!(user.write_alone(0, &[me.into(), me.into()]));
    }

    /// What a reader finds in the slot is of one life.
    fn check(record: &Record) {
        let Some(found) = record.read() else { return };
        let me = found.values.cpu;
        assert_eq!(found.values.updated, u64::from(me));
        assert!(!found.user_quiet || found.user[0] == found.user[1], "{found:?}");
        assert!(found.user[..2].iter().all(|&word| word == 0 || word == u64::from(me)));
    }

    /// In a child, which is killed at the `n`th step of a whole life in a full table; the
    /// slots of the parent are shared memory, so it sees what the child has left. Whether
    /// there were so many steps.
    fn killed_at(n: u32) -> bool {
        let table = table();
        table.share_with_children();
        let (others, first): (Vec<_>, _) = (
            (1..CHUNK as u32)
                .map(|me| {
                    let held = table.take().unwrap();
                    begin(&held, me);
                    held
                })
                .collect(),
            table.take().unwrap(),
        );
        first.release();
        // SAFETY: the child runs on with its own thread and memory, and ends by a signal or _exit.
        let child = unsafe { libc::fork() };
        if child == 0 {
            LEFT.set(Some((n, killed)));
            let held = table.take().unwrap();
            begin(&held, 99);
            publish(held.record(), 99);
            held.release();
            // One more makes it grow.
            let held = [table.take().unwrap(), table.take().unwrap()];
            held.into_iter().for_each(Held::release);
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: our own child, and a word on this stack.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        let killed = libc::WIFSIGNALED(status);
        assert!(killed || status == 0, "step {n}: status {status:#x}");
        let record = first.record();
        check(record);
        if let Some(found) = record.read() {
            let (owner, generation) = first.owner_and_generation();
            let alive = is_held(owner, generation, found.values.tid, found.generation);
            // The kernel has marked it, or its life had not begun, or had ended.
            assert!(!alive, "step {n}: {found:?}");
        }
        others.iter().for_each(|held| check(held.record()));
        killed
    }

    #[test]
    fn sigkill_at_each_step() {
        let steps = (0..200).take_while(|&n| killed_at(n)).count();
        assert!(steps > 15, "{steps} steps");
    }

    /// A thread of this process that ends without a destructor, at a step of publishing or
    /// giving back: the slot is reclaimed, and all of them are there again.
    #[test]
    fn raw_exit_at_each_step_of_publishing_and_giving_back() {
        for n in 0..40 {
            let table = table();
            let (tell, told) = mpsc::channel();
            let victim = std::thread::spawn(move || {
                let held = table.take().unwrap();
                begin(&held, 7);
                tell.send(()).unwrap();
                drop(tell);
                LEFT.set(Some((n, exited)));
                publish(held.record(), 7);
                held.release();
                LEFT.set(None);
            });
            told.recv().unwrap();
            // std's packet for the result is not there if it died.
            let id = std::os::unix::thread::JoinHandleExt::into_pthread_t(victim);
            // SAFETY: a thread that nobody else joins.
            assert_eq!(unsafe { libc::pthread_join(id, core::ptr::null_mut()) }, 0);
            let held: Vec<_> = (0..CHUNK).map(|_| table.take().unwrap()).collect();
            let used = table.usage().unwrap();
            assert_eq!((used.slots, used.held), (CHUNK, CHUNK), "step {n}: {used:?}");
            for (me, held) in (1..).zip(&held) {
                begin(held, me);
                publish(held.record(), me);
                check(held.record());
            }
            held.into_iter().for_each(Held::release);
            table.abandon();
        }
    }

    thread_local! {
        /// What a handler found: has the thread a slot?
        static FOUND: Cell<Option<bool>> = const { Cell::new(None) };
    }

    /// A handler that comes at any step of a thread's first call finds the thread with its slot
    /// or without, and nothing half done: it is put off to the end.
    #[test]
    fn a_signal_at_each_step_of_taking() {
        extern "C" fn handler(_: libc::c_int) {
            FOUND.set(Some(MINE.with(|mine| mine.shown.get()) != 0));
        }
        let handler = handler as extern "C" fn(libc::c_int);
        // SAFETY: nobody else uses this signal; the handler writes a thread-local.
        let before = unsafe { libc::signal(libc::SIGUSR2, handler as libc::sighandler_t) };
        assert_ne!(before, libc::SIG_ERR);
        let hit_at = |n| {
            let body = move || {
                LEFT.set(Some((n, signalled)));
                current().unwrap();
                (FOUND.get(), LEFT.take().is_none())
            };
            std::thread::spawn(body).join().unwrap()
        };
        let found: Vec<_> = (0..50).map(hit_at).take_while(|&(_, hit)| hit).collect();
        assert!(found.len() > 3, "{found:?}");
        assert!(found.iter().all(|&(found, _)| found == Some(true)), "{found:?}");
    }
}
