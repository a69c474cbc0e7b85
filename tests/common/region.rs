//! What the tests of regions share.
#![allow(dead_code, reason = "each user takes its own part")]

use super::common::{self, Player};
use tempfile::TempDir;
use unmerged::mshare::Region;

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

/// Can this process read the page at this offset?
pub(crate) fn lies(region: &Region, offset: usize) -> bool {
    let start = region.base().addr().get() + offset;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().any(|line| {
        let (range, rest) = line.split_once(' ').unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let number = |text| usize::from_str_radix(text, 16).unwrap();
        (number(from)..number(to)).contains(&start) && rest.starts_with('r')
    })
}
