//! The example `kv`, whose servers are killed under load, as a user runs it: no acknowledged change
//! is lost, and nothing is left. `UNMERGED_STRESS_KILLS` says how many of them are killed.

mod common;

use std::net::TcpListener;
use std::process::Command;

fn program() -> Command {
    Command::new(common::example("kv"))
}

/// A port that nobody had a moment ago.
fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_storm_of_kills() {
    let kills = std::env::var("UNMERGED_STRESS_KILLS").unwrap_or_else(|_| "10".to_owned());
    let mut command = program();
    command.args(["--check", "--kills", &kills, "--mib", "256", "--port", &port().to_string()]);
    let output = command.output().unwrap();
    let (said, error) = (output.stdout, output.stderr);
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&error));
    assert!(said.contains("none lost, none doubled"), "{said}");
    assert!(said.contains("no name, socket, mapping or participant is left"), "{said}");
}
