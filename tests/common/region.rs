//! What the tests of regions share.
#![allow(dead_code, reason = "each user takes its own part")]

use super::common::{self, Player};
use tempfile::TempDir;

/// The test `child` of this binary in another process, which finds regions in `dir`.
pub(crate) fn player(dir: &TempDir, role: &str) -> Player {
    let mut command = common::child("child", role);
    command.env("UNMERGED_RUNTIME_DIR", dir.path());
    Player::start(command)
}

/// The same, once it has said that it is ready.
pub(crate) fn ready(dir: &TempDir, role: &str) -> Player {
    let mut player = player(dir, role);
    player.wait_for("ready");
    player
}

/// Asks a player to do something; its answer.
pub(crate) fn ask(player: &mut Player, what: &str) -> String {
    player.tell(what);
    player.line()
}
