//! This program again, as the other process of a row.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

/// The environment variable that gives the role.
const ROLE: &str = "UNMERGED_BENCH_ROLE";

/// The one that gives a word more.
const WORD: &str = "UNMERGED_BENCH_WORD";

/// In a peer: the word for it.
pub(crate) fn word() -> String {
    std::env::var(WORD).unwrap_or_default()
}

/// Another process, until it is dropped.
pub(crate) struct Peer(Child);

impl Peer {
    /// Starts this program in `role` and waits until it says that it is ready.
    pub(crate) fn start(role: &str) -> Self {
        Self::start_with(role, "")
    }

    /// The same, with a word for the peer: see [`word`].
    pub(crate) fn start_with(role: &str, word: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program has a path"))
            .env(ROLE, role)
            .env(WORD, word)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program can be executed");
        let mut line = String::new();
        let output = child.stdout.as_mut().expect("it is piped");
        BufReader::new(output).read_line(&mut line).expect("the peer says that it is ready");
        Self(child)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// A role: its name, and what it does; it calls its argument when it is ready, which returns
/// when the bench lets go.
pub(crate) type Role = (&'static str, fn(&dyn Fn()));

/// In a peer: plays the role, and never returns. In the bench itself: nothing.
pub(crate) fn play(roles: &[Role]) {
    let Ok(wanted) = std::env::var(ROLE) else { return };
    for (role, body) in roles {
        if *role == wanted {
            // Ready; then until the bench lets go.
            body(&|| {
                println!("ready");
                let _ = std::io::stdout().flush();
                let _ = std::io::stdin().read(&mut [0]);
            });
        }
    }
    std::process::exit(0);
}
