//! The full screen.

use crate::Result;
use crate::printable::printable;
use crate::table::{HISTORY, Order, Row, State, Table};
use crate::terminal::Taken;
use crate::text::{age, or_none, percent, time, word};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::widgets::{Cell, Paragraph, Table as Widget};
use ratatui::{Frame, text::Line};
use signal_hook::consts::SIGTSTP;
use signal_hook::low_level::raise;
use std::io::{self, BufWriter, IsTerminal};
use std::time::{Duration, Instant};

const KEYS: &str =
    " c cpu  d delay  o off  w word  t tid  n name  r reverse  p pause  up/down  q quit";
/// A frame is written at once, however much it is.
const FRAME: usize = 1 << 20;

/// What the user has asked for so far.
#[derive(Debug, Default)]
struct Wishes {
    paused: bool,
    first: usize,
    quit: bool,
}

/// Shows the table until the user quits, or `most` refreshes were shown.
pub(crate) fn run(table: &mut Table<'_>, interval: Duration, most: Option<u64>) -> Result<()> {
    if !io::stdout().is_terminal() {
        return Err("standard output is no terminal; try --once, --json or --prometheus".into());
    }
    let taken = Taken::take()?;
    let out = BufWriter::with_capacity(FRAME, io::stdout());
    let mut terminal = Terminal::new(CrosstermBackend::new(out))?;
    let mut wishes = Wishes::default();
    let mut refreshes = 0;
    while !wishes.quit && most.is_none_or(|most| refreshes < most) {
        if !wishes.paused {
            table.refresh();
        }
        refreshes += 1;
        if taken.is_spoilt() {
            terminal.clear()?;
        }
        terminal.draw(|frame| draw(frame, table, &wishes))?;
        let next = Instant::now() + interval;
        while !wishes.quit && event::poll(next.saturating_duration_since(Instant::now()))? {
            if let Event::Key(key) = event::read()?
                && key.kind == KeyEventKind::Press
            {
                let control = key.modifiers.contains(KeyModifiers::CONTROL);
                match key.code {
                    KeyCode::Char('c') if control => hear(KeyCode::Esc, table, &mut wishes),
                    // Without raw mode it would be the terminal that does it.
                    KeyCode::Char('z') if control => raise(SIGTSTP)?,
                    code => hear(code, table, &mut wishes),
                }
            }
            terminal.draw(|frame| draw(frame, table, &wishes))?;
        }
    }
    drop(taken);
    Ok(())
}

fn hear(key: KeyCode, table: &mut Table<'_>, wishes: &mut Wishes) {
    let last = table.rows().len().saturating_sub(1);
    match key {
        KeyCode::Char('q') | KeyCode::Esc => wishes.quit = true,
        KeyCode::Char('p' | ' ') => wishes.paused = !wishes.paused,
        KeyCode::Char('r') => table.reverse = !table.reverse,
        KeyCode::Char('c') => table.order = Order::Cpu,
        KeyCode::Char('d') => table.order = Order::Delay,
        KeyCode::Char('o') => table.order = Order::Off,
        KeyCode::Char('w') => table.order = Order::Word,
        KeyCode::Char('t') => table.order = Order::Tid,
        KeyCode::Char('n') => table.order = Order::Name,
        KeyCode::Up => wishes.first = wishes.first.saturating_sub(1),
        KeyCode::Down => wishes.first = (wishes.first + 1).min(last),
        KeyCode::PageUp => wishes.first = wishes.first.saturating_sub(20),
        KeyCode::PageDown => wishes.first = (wishes.first + 20).min(last),
        _ => {}
    }
    table.sort();
}

fn draw(frame: &mut Frame<'_>, table: &Table<'_>, wishes: &Wishes) {
    let areas =
        Layout::vertical([Constraint::Length(1), Constraint::Min(1), Constraint::Length(1)]);
    let [head, body, foot] = areas.areas(frame.area());
    frame.render_widget(Paragraph::new(summary(table, wishes)), head);
    let names = table.word_names();
    let mut columns: Vec<Constraint> =
        [8, 15, 6, 3, 5, 6, 5, 9, 5, HISTORY as u16].map(Constraint::Length).into();
    columns.extend(names.iter().map(|name| Constraint::Min(name.len().max(8) as u16)));
    let titles =
        ["TID", "NAME", "STATE", "ON", "CPU%", "DELAY%", "OFF%", "TIME", "AGE", "CPU OVER TIME"];
    let titles = titles
        .into_iter()
        .map(str::to_owned)
        .chain(names.iter().map(|name| printable(name).to_uppercase()));
    let header = Style::new().fg(Color::Black).bg(Color::Cyan);
    let header = ratatui::widgets::Row::new(titles.map(Cell::from)).style(header);
    let visible = usize::from(body.height).saturating_sub(1);
    let rows = table.rows().skip(wishes.first).take(visible).map(|row| line(row, table.now));
    frame.render_widget(Widget::new(rows, columns).header(header), body);
    frame.render_widget(Paragraph::new(KEYS).style(Style::new().add_modifier(Modifier::DIM)), foot);
}

fn summary(table: &Table<'_>, wishes: &Wishes) -> Line<'static> {
    let count = |state| table.rows().filter(|row| row.state == state).count();
    let cpus: f64 =
        table.rows().filter(|row| row.state != State::Dead).map(|row| row.shares.cpu).sum();
    Line::from(format!(
        " process {}   {} threads: {} run, {} wait, {} sleep, {} dead   {cpus:.2} CPUs{}",
        table.pid(),
        table.rows().len(),
        count(State::Runs),
        count(State::Waits),
        count(State::Sleeps),
        count(State::Dead),
        if wishes.paused { "   PAUSED" } else { "" },
    ))
    .style(Style::new().add_modifier(Modifier::BOLD))
}

fn line(row: &Row, now: u64) -> ratatui::widgets::Row<'static> {
    let color = match row.state {
        State::Runs => Color::Green,
        State::Waits => Color::Yellow,
        State::Sleeps => Color::Reset,
        State::Silent | State::New => Color::DarkGray,
        State::Dead => Color::Red,
    };
    let fixed = [
        row.tid.to_string(),
        printable(&row.name),
        row.state.name().to_owned(),
        or_none(row.cpu),
        percent(row.shares.cpu),
        percent(row.shares.delay),
        percent(row.shares.off),
        time(row.stats.sum_exec_runtime),
        age(row.age(now)),
        sparkline(row),
    ];
    let words = row.words.iter().map(word);
    ratatui::widgets::Row::new(fixed.into_iter().chain(words).map(Cell::from))
        .style(Style::new().fg(color))
}

/// The latest shares of a CPU, the latest at the right.
fn sparkline(row: &Row) -> String {
    const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let bar = |share: &f64| BARS[((share * 8.0).round() as usize).min(8)];
    let pad = HISTORY - row.history.len();
    core::iter::repeat_n(' ', pad).chain(row.history.iter().map(bar)).collect()
}
