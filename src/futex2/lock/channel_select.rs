//! The ends of a channel as sources of [`select`](super::select()).

use super::bell::Bell;
use super::channel::Channel;
use super::channel_wait::NAP;
use super::ring::LOOKS;
use super::select::{Announced, Inside, Ready, Source};
use crate::futex2::{Futex, Scope};

impl<T, S: Scope> Channel<T, S> {
    /// This end for [`select`](super::select()): ready when there may be an item, or it is closed.
    pub fn receiving(&self) -> Receiving<'_, T, S> {
        Receiving(self)
    }

    /// This end for [`select`](super::select()): ready when there may be room, or it is closed.
    pub fn sending(&self) -> Sending<'_, T, S> {
        Sending(self)
    }

    /// Whether there is something, as `has` tells; otherwise what to sleep on.
    fn ready<'a>(
        &'a self,
        bell: &'a Bell<Futex<u32, S>>,
        has: impl Fn() -> Option<bool>,
    ) -> Ready<'a> {
        if has() == Some(true) {
            return Ready::Now;
        }
        let (seen, listener) = bell.announce();
        let mut looks = 0;
        let found = loop {
            match has() {
                None if looks < LOOKS => looks += 1,
                // Lies are for who receives to find.
                None if self.clear(true).unwrap_or(true) => return Ready::Now,
                found => break found,
            }
            crate::sync::spin_loop();
        };
        if found == Some(true) || self.is_closed() {
            return Ready::Now;
        }
        let nap = found.is_none().then_some(NAP);
        Ready::Not(bell.sequence().waiter(seen), Announced::new(listener, nap))
    }
}

/// The receiving end of a channel, to be selected.
#[derive(Debug)]
pub struct Receiving<'a, T, S: Scope>(&'a Channel<T, S>);

/// The sending end of a channel, to be selected.
#[derive(Debug)]
pub struct Sending<'a, T, S: Scope>(&'a Channel<T, S>);

impl<T, S: Scope> Source for Receiving<'_, T, S> {
    fn ready(&self, _: Inside) -> Ready<'_> {
        self.0.ready(&self.0.control().bells.items, || self.0.has_item())
    }

    fn pass_on(&self, _: Inside) {
        self.0.pass_on(&self.0.control().bells.items);
    }
}

impl<T, S: Scope> Source for Sending<'_, T, S> {
    fn ready(&self, _: Inside) -> Ready<'_> {
        self.0.ready(&self.0.control().bells.room, || self.0.has_room())
    }

    fn pass_on(&self, _: Inside) {
        self.0.pass_on(&self.0.control().bells.room);
    }
}
