//! An object on its way into the layout.
//!
//! # Protocol
//!
//! Whoever holds an object that no layout has drops it, and cuts it if it is memory. One that is
//! about to be mapped must not be dropped meanwhile, by anybody who was offered it:
//!
//! | who maps it | who has it |
//! |---|---|
//! | says in its slot that it brings the object | |
//! | keeps it, and offers it to the server | |
//! | commits a layout that has it | |
//! | says no more that it brings it | looks who brings what, *then* at the layout: it finds the object in one of them, unless it has been unmapped again |
//!
//! Who is killed on the way is reaped, and then the object is in neither.

use super::backing::{Backing, Kind};
use super::held::{Held, Object};
use super::participants::Token;
use crate::sync::Ordering;
use rustix::fd::OwnedFd;
use std::sync::Arc;

/// Who of a process brings an object.
#[derive(Debug, Clone, Copy)]
pub(super) enum Bringer {
    /// A thread, inside of [`Held::bringing`].
    Thread,
    /// The agent, for somebody else.
    Agent,
}

/// An object that is being brought, until this is dropped.
#[derive(Debug)]
pub(super) struct Brought<'a> {
    held: &'a Held,
    token: Token,
    bringer: Bringer,
    pub(super) object: Object,
    is_mapped: bool,
}

impl Held {
    /// Begins to bring a file as an object.
    pub(super) fn bring(
        &self,
        token: Token,
        bringer: Bringer,
        kind: Kind,
        file: OwnedFd,
    ) -> Brought<'_> {
        // Never 0: that is nobody's.
        let id = self.ledger().objects.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        self.ledger().participants().bring(token, bringer as usize, id);
        let object = Object { id, kind, file: Arc::new(file) };
        self.keep(object.clone());
        Brought { held: self, token, bringer, object, is_mapped: false }
    }

    /// Lets go of objects that lie nowhere, and that nobody brings. Their memory is cut by
    /// everybody, so that none is left whoever died on the way.
    pub(super) fn forget_objects(&self) {
        let ids: Vec<_> = self.objects.enter(Vec::new).iter().map(|object| object.id).collect();
        if ids.is_empty() {
            return;
        }
        let on_the_way = self.ledger().participants().on_the_way();
        // Not before: see the protocol.
        let Ok((_, layout)) = self.ledger().layout(super::SYNC, self.shape.size) else { return };
        self.objects.enter(Vec::new).retain(|object| {
            let lies = layout
                .iter()
                .any(|part| matches!(part.backing, Backing::Object { id, .. } if id == object.id));
            // One that was not there when we looked is for the next time.
            let used = lies || on_the_way.contains(&object.id) || !ids.contains(&object.id);
            if !used && object.kind.is_memory() {
                // Without the right to, somebody else does.
                let _ = rustix::fs::ftruncate(&object.file, 0);
            }
            used
        });
    }
}

impl Brought<'_> {
    /// It has been committed.
    pub(super) fn mapped(mut self) {
        self.is_mapped = true;
    }
}

impl Drop for Brought<'_> {
    fn drop(&mut self) {
        if !self.is_mapped {
            self.held.drop_object(self.object.id);
        }
        // After the commit: see the protocol.
        self.held.ledger().participants().brought(self.token, self.bringer as usize);
    }
}
