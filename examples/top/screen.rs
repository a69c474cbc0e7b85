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
    let columns = columns(table, usize::from(body.width));
    let titles = columns.iter().map(|(title, ..)| title.clone());
    let header = Style::new().fg(Color::Black).bg(Color::Cyan);
    let header = ratatui::widgets::Row::new(titles.map(Cell::from)).style(header);
    let visible = usize::from(body.height).saturating_sub(1);
    let rows = table.rows().skip(wishes.first).take(visible).map(|row| {
        let cells = cells(row, table.now);
        let shown = columns.iter().map(|&(.., n)| cells.get(n).cloned().unwrap_or_default());
        ratatui::widgets::Row::new(shown.map(Cell::from)).style(Style::new().fg(color(row.state)))
    });
    let widths = columns.iter().map(|&(_, width, _)| Constraint::Length(width as u16));
    frame.render_widget(Widget::new(rows, widths).header(header), body);
    let hidden = FIXED.len() + table.word_names().len() - columns.len();
    frame.render_widget(Paragraph::new(summary(table, wishes, hidden)), head);
    frame.render_widget(Paragraph::new(KEYS).style(Style::new().add_modifier(Modifier::DIM)), foot);
}

/// The columns that are always the same, and their widths.
const FIXED: [(&str, usize); 10] = [
    ("TID", 8),
    ("NAME", 15),
    ("STATE", 6),
    ("ON", 3),
    ("CPU%", 5),
    ("DELAY%", 6),
    ("OFF%", 5),
    ("TIME", 9),
    ("AGE", 5),
    ("CPU OVER TIME", HISTORY),
];

/// Title, width and number of each column that there is room for. The first ones come before the
/// words, these before the history, and none is squeezed.
fn columns(table: &Table<'_>, room: usize) -> Vec<(String, usize, usize)> {
    let fixed = FIXED.iter().map(|&(title, width)| (title.to_owned(), width));
    let words = table.word_names().into_iter().map(|name| {
        let title = printable(&name).to_uppercase();
        let width = title.chars().count().max(8);
        (title, width)
    });
    let all: Vec<_> = fixed.chain(words).enumerate().collect();
    let history = FIXED.len() - 1;
    let by_rank = all[..history].iter().chain(&all[history + 1..]).chain(&all[history..=history]);
    let mut used = 0;
    let fits = by_rank.take_while(|(_, (_, width))| {
        used += width + 1;
        used <= room + 1
    });
    let mut shown: Vec<_> = fits.map(|(n, (title, width))| (title.clone(), *width, *n)).collect();
    shown.sort_unstable_by_key(|&(.., n)| n);
    shown
}

fn summary(table: &Table<'_>, wishes: &Wishes, hidden: usize) -> Line<'static> {
    let count = |state| table.rows().filter(|row| row.state == state).count();
    // The sum of none is -0.
    let cpus = 0.0
        + table
            .rows()
            .filter(|row| row.state != State::Dead)
            .map(|row| row.shares.cpu)
            .sum::<f64>();
    Line::from(format!(
        " process {}   {} threads: {} run, {} wait, {} sleep, {} dead   {cpus:.2} CPUs{}{}{}",
        table.pid(),
        table.rows().len(),
        count(State::Runs),
        count(State::Waits),
        count(State::Sleeps),
        count(State::Dead),
        if wishes.paused { "   PAUSED" } else { "" },
        if table.has_ended() { "   ENDED" } else { "" },
        if hidden > 0 { format!("   {hidden} columns hidden") } else { String::new() },
    ))
    .style(Style::new().add_modifier(Modifier::BOLD))
}

fn color(state: State) -> Color {
    match state {
        State::Runs => Color::Green,
        State::Waits => Color::Yellow,
        State::Sleeps => Color::Reset,
        State::Silent | State::New => Color::DarkGray,
        State::Dead => Color::Red,
    }
}

/// What a thread has in all columns.
fn cells(row: &Row, now: u64) -> Vec<String> {
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
    fixed.into_iter().chain(row.words.iter().map(word)).collect()
}

/// The latest shares of a CPU, the latest at the right.
fn sparkline(row: &Row) -> String {
    const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let bar = |share: &f64| BARS[((share * 8.0).round() as usize).min(8)];
    let pad = HISTORY - row.history.len();
    core::iter::repeat_n(' ', pad).chain(row.history.iter().map(bar)).collect()
}
