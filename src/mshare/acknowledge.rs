//! Waiting until the others follow a change, and what can be done once they do.

use super::backing::Backing;
use super::held::{Held, WAITS, Waits};
use super::layout::Segment;
use super::object::{Acks, Late};
use super::participants::Token;
use crate::sync::Ordering;
use core::time::Duration;
use std::time::Instant;

impl Held {
    /// Waits until every live participant follows up to `generation`.
    pub(super) fn wait(&self, generation: u64, deadline: Instant) -> Acks {
        /// Who is late is looked at every so often: it may be dead.
        const GLANCE: Duration = Duration::from_millis(10);
        let began = Instant::now();
        let participants = self.ledger().participants();
        let trouble = |token: &Token| participants.trouble(*token, generation).map(i32::from);
        let late = loop {
            let seen = self.ledger().acks().load(Ordering::Acquire);
            let mut behind = participants.behind(generation);
            let now = Instant::now();
            if now > began + GLANCE {
                behind.retain(|&token| !self.is_dead(token) || !self.bury(token));
            }
            // Those that said why they cannot are not waited for.
            if behind.iter().all(|token| trouble(token).is_some()) || now >= deadline {
                break behind;
            }
            self.sleep(self.ledger().acks(), seen, deadline.min(now + GLANCE));
        };
        let waited = began.elapsed();
        self.waits.count(waited, late.is_empty());
        if late.is_empty() {
            self.settle(generation);
        }
        let late = late.iter().map(|token| Late { pid: token.pid(), errno: trouble(token) });
        Acks { generation, late: late.collect(), waited }
    }

    /// Of a dead one: it counts no more.
    fn bury(&self, token: Token) -> bool {
        self.reap(token);
        true
    }

    /// Everybody follows up to `generation`: what was touched in holes meanwhile goes, and the
    /// holes are empty from now on.
    fn settle(&self, generation: u64) {
        let emptied = &self.ledger().emptied;
        if !self.is_full() || emptied.load(Ordering::Relaxed) >= generation {
            return;
        }
        let mut local = self.enter();
        let patience = Instant::now() + Duration::from_millis(100);
        // If it cannot be now, the next operation does it.
        let Ok(token) = self.token(super::SYNC, &mut local) else { return };
        let Ok(_taken) = self.take(super::SYNC, token, patience) else { return };
        let Ok((_, layout)) = self.ledger().layout(super::SYNC, self.shape.size) else { return };
        let vouched = emptied.load(Ordering::Relaxed);
        let ours = |part: &&Segment| {
            part.backing == Backing::Hole && (vouched + 1..=generation).contains(&part.since)
        };
        let holes: Vec<_> = layout.iter().filter(ours).copied().collect();
        if vouched < generation && self.empty(&holes).is_ok() {
            emptied.store(generation, Ordering::Relaxed);
        }
    }
}

impl Waits {
    fn count(&self, waited: Duration, complete: bool) {
        let nanoseconds = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        let length = (u64::BITS - (nanoseconds / 1000).leading_zeros()) as usize;
        self.by_time[length.min(WAITS - 1)].fetch_add(1, Ordering::Relaxed);
        if !complete {
            self.incomplete.fetch_add(1, Ordering::Relaxed);
        }
        let mut longest = self.longest.load(Ordering::Relaxed);
        while longest < nanoseconds {
            let (relaxed, words) = (Ordering::Relaxed, &self.longest);
            match words.compare_exchange(longest, nanoseconds, relaxed, relaxed) {
                Ok(_) => break,
                Err(now) => longest = now,
            }
        }
    }
}
