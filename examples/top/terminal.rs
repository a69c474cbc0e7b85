//! The terminal: taken for a full screen, and given back whatever ends the program.

use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::crossterm::{cursor, execute};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::flag;
use signal_hook::iterator::{Handle, Signals};
use signal_hook::low_level::emulate_default_handler;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const ENDS: [i32; 4] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM];

/// The terminal is ours until this is dropped, or a signal comes that ends us.
#[derive(Debug)]
pub(crate) struct Taken {
    signals: Handle,
    /// Has somebody else written on the screen?
    spoilt: Arc<AtomicBool>,
}

impl Taken {
    pub(crate) fn take() -> io::Result<Self> {
        let mut signals = Signals::new(ENDS)?;
        signals.add_signal(SIGTSTP)?;
        let handle = signals.handle();
        let spoilt = Arc::new(AtomicBool::new(false));
        let (taken, theirs) = (Self { signals: handle, spoilt: spoilt.clone() }, spoilt);
        // A terminal that takes no more output keeps whoever gives it back waiting: the second
        // signal ends us at once.
        let ended = Arc::new(AtomicBool::new(false));
        for signal in ENDS {
            flag::register_conditional_default(signal, ended.clone())?;
            flag::register(signal, ended.clone())?;
        }
        std::thread::Builder::new().spawn(move || {
            for signal in signals.forever() {
                // No frame comes after this, or in the middle of it.
                let out = io::stdout().lock();
                give_back();
                // Does not return, unless it has stopped us and we go on.
                let _ = emulate_default_handler(signal);
                let _ = set_up();
                theirs.store(true, Ordering::Relaxed);
                drop(out);
            }
        })?;
        set_up()?;
        Ok(taken)
    }

    /// Must everything be drawn again?
    pub(crate) fn is_spoilt(&self) -> bool {
        self.spoilt.swap(false, Ordering::Relaxed)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        give_back();
        self.signals.close();
    }
}

fn set_up() -> io::Result<()> {
    enable_raw_mode()?;
    execute!(io::stdout(), EnterAlternateScreen, cursor::Hide)
}

fn give_back() {
    let _ = execute!(io::stdout(), LeaveAlternateScreen, cursor::Show);
    let _ = disable_raw_mode();
}
