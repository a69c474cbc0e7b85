//! Taking everything out of a pool.

use super::Pool;
use super::depot::Batch;
use super::limits::MOST_PER_CPU;
use super::pool::{count_of, from_word, parking_of, word};
use crate::error::Result;
use crate::sync::Ordering;

impl<T, F> Pool<T, F> {
    /// Takes every object, from every CPU, the offline ones too, and from the global list, and hands
    /// it to `each`; how many there were. Each CPU is stopped for as long as its array is copied;
    /// threads on it go on meanwhile, by the slow way. `each` runs afterwards. Objects that threads
    /// are just moving, and those that are put back meanwhile, may stay. If `each` panics, what it
    /// was not given yet goes back.
    ///
    /// One CPU costs a fence of 10 to 20 microseconds if it runs this process: it is for now and
    /// then, and not for signal handlers.
    ///
    /// # Errors
    ///
    /// EPERM where a CPU cannot be fenced: the kernel has no membarrier (before Linux 5.10, or a
    /// filter) and this thread may not run on it. EDEADLK in a handler that interrupted an
    /// operation of its thread. Such a CPU is left alone; everything else has been handed out.
    pub fn drain(&self, mut each: impl FnMut(Box<T>)) -> Result<usize> {
        let mut outcome = Ok(());
        let mut taken = Taken { pool: self, words: [0; MOST_PER_CPU], len: 0, count: 0 };
        for (site, cpu) in self.stripes() {
            if count_of(site, cpu) == 0 {
                continue;
            }
            let own = |array| taken.take_array(array);
            if let Err(error) = site.exclusive("percpu::Pool::drain", cpu, own) {
                outcome = outcome.and(Err(error));
            }
            taken.hand_out(&mut each);
        }
        let parked = self.stripes().map(|(site, cpu)| parking_of(site, cpu));
        for word in parked.chain([&self.spare]) {
            if let Some(batch) = self.depot.unpark(word) {
                taken.take_batch(batch);
                taken.hand_out(&mut each);
            }
        }
        // No more than there can be, or those who flush meanwhile could keep this going.
        for _ in 0..self.depot.batches() {
            let Some(batch) = self.depot.take_full() else { break };
            taken.take_batch(batch);
            taken.hand_out(&mut each);
        }
        outcome.map(|()| taken.count)
    }

    /// Drops every object that the pool keeps, as [`drain`](Self::drain) takes them; how many there
    /// were.
    ///
    /// # Errors
    ///
    /// As [`drain`](Self::drain).
    pub fn trim(&self) -> Result<usize> {
        self.drain(drop)
    }
}

/// Objects on their way out of a pool. What is not handed out goes back.
struct Taken<'a, T, F> {
    pool: &'a Pool<T, F>,
    words: [usize; MOST_PER_CPU],
    len: usize,
    /// Objects handed out so far.
    count: usize,
}

impl<T, F> Taken<'_, T, F> {
    fn add(&mut self, object: usize) {
        self.words[self.len] = object;
        self.len += 1;
    }

    /// Takes what the array of a CPU has that is stopped, or whose pool is gone.
    fn take_array(&mut self, array: usize) {
        // SAFETY: the words of an array of the pool's, up to its count.
        let word = |n: usize| unsafe { word(array + 8 * n) };
        for n in 1..=word(0).load(Ordering::Relaxed) as usize {
            self.add(word(n).load(Ordering::Relaxed) as usize);
        }
        word(0).store(0, Ordering::Relaxed);
    }

    fn take_batch(&mut self, mut batch: Batch<'_>) {
        while let Some(object) = batch.pop() {
            self.add(object);
        }
        self.pool.depot.release(batch);
    }

    fn hand_out(&mut self, each: &mut impl FnMut(Box<T>)) {
        while let Some(last) = self.len.checked_sub(1) {
            self.len = last;
            self.count += 1;
            // SAFETY: taken from the pool, by this thread alone.
            each(unsafe { from_word(self.words[last]) });
        }
    }
}

impl<T, F> Drop for Taken<'_, T, F> {
    fn drop(&mut self) {
        let pool = self.pool;
        self.hand_out(&mut |object| pool.put(object));
    }
}

impl<T, F> Drop for Pool<T, F> {
    fn drop(&mut self) {
        // Nobody else uses it: no CPU has to be stopped. One that a drain left stopped when this
        // process was forked would be.
        for (site, cpu) in self.stripes() {
            let mut taken = Taken { pool: self, words: [0; MOST_PER_CPU], len: 0, count: 0 };
            taken.take_array(site.on_stripe(cpu));
            taken.hand_out(&mut drop);
        }
        // The arrays are empty, so this stops nothing either.
        let _ = self.trim();
        let bytes = self.bytes();
        // SAFETY: nobody uses the cell any more.
        unsafe { self.cell.release(bytes) };
    }
}
