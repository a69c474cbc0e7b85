//! A domain that somebody else writes into: the body of a fuzz target, and of a property.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;
use unmerged::futex2::{Deadline, Domain, waitv};

/// The bytes of a domain as its enemy sees them.
struct Enemy {
    at: *mut u8,
    len: usize,
}

impl Enemy {
    fn map(file: &impl AsRawFd, len: usize) -> Self {
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let at = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        Self { at: at.cast(), len }
    }

    /// Writes 8 bytes somewhere into the first `within`.
    fn write(&self, offset: usize, within: usize, value: u64) {
        let offset = offset % (within / 8) * 8;
        assert!(offset + 8 <= self.len);
        // SAFETY: inside our own mapping; nobody holds a reference to plain data there.
        unsafe { self.at.add(offset).cast::<u64>().write_volatile(value) };
    }
}

impl Drop for Enemy {
    fn drop(&mut self) {
        // SAFETY: our own mapping.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

/// Plays what `bytes` say: each 11 of them are a step, a place and a value. Whatever they are,
/// errors are errors, nothing hangs, and no wake misses a waiter of this process.
pub(crate) fn run(bytes: &[u8]) {
    let domain = Domain::create(4096).unwrap();
    let len = Domain::TABLE_BYTES + 4096;
    let file: OwnedFd = domain.file().unwrap().try_clone_to_owned().unwrap();
    let enemy = Enemy::map(&file, len);
    let (word, byte) = (domain.word::<u32>(0).unwrap(), domain.word::<u8>(100).unwrap());
    let (other, long) = (domain.word::<u32>(512).unwrap(), domain.word::<u64>(1024).unwrap());
    let past = Some(Deadline::monotonic(Duration::ZERO));
    let limit = || Some(Deadline::after(Duration::from_secs(20)));
    std::thread::scope(|scope| {
        let waiters = [
            scope.spawn(|| word.wait_while_in(&domain, 0, limit()).map(u64::from)),
            scope.spawn(|| long.wait_while_in(&domain, 0, limit())),
            // A byte in a vector sleeps on a word of the table.
            scope.spawn(|| {
                loop {
                    match waitv(&[byte.waiter_in(&domain, 0).unwrap()], limit()) {
                        Err(error) if error.is_would_block() => return Ok(1),
                        Err(error) => return Err(error),
                        Ok(_) => {}
                    }
                }
            }),
        ];
        for step in bytes.chunks_exact(11) {
            let place = usize::from(u16::from_le_bytes([step[1], step[2]]));
            let value = u64::from_le_bytes(step[3..].try_into().unwrap());
            match step[0] % 12 {
                0..4 => enemy.write(place, Domain::TABLE_BYTES, value),
                // The table of counts, and the owners of rows.
                4 => enemy.write(16 * (place % 256) + 16, Domain::TABLE_BYTES, value),
                5 => enemy.write(16 + 16 * 256 + 272 * (place % 64), Domain::TABLE_BYTES, value),
                6 => drop(other.wait_in(&domain, value as u32, past)),
                7 => drop(other.wake_in(&domain, value as u32)),
                8 => drop(other.requeue_in(&domain, None, word, 1, value as u32 % 4)),
                9 => drop(domain.reap()),
                10 => drop(Domain::open(&file)),
                _ => drop(waitv(&[byte.waiter_in(&domain, value as u8).unwrap()], past)),
            }
        }
        word.store(1, Ordering::Release);
        word.wake_in(&domain, u32::MAX).unwrap();
        long.store(1, Ordering::Release);
        long.wake_in(&domain, u32::MAX).unwrap();
        byte.store(1, Ordering::Release);
        byte.wake_in(&domain, u32::MAX).unwrap();
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap().unwrap(), 1, "a wake was lost");
        }
    });
}
