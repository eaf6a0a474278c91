//! The terminal: alternate screen, keys, drawing, and that it is left as it was found.

use std::io::{self, IsTerminal as _, Write as _};
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use crossterm::style::{Attribute, Color, Print, ResetColor, SetAttribute, SetForegroundColor};
use crossterm::terminal::{
    BeginSynchronizedUpdate, Clear, ClearType, DisableLineWrap, EnableLineWrap,
    EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode,
    enable_raw_mode, size,
};
use crossterm::{execute, queue};

use crate::stop::Stop;
use crate::view::{Line, Style};

/// How long the reader of keys may take to notice that nobody wants them any more.
const KEYS_EVERY: Duration = Duration::from_millis(50);

/// How long its end is waited for.
const KEYS_END_WITHIN: Duration = Duration::from_millis(500);

/// Whether the terminal is ours at the moment; panics leave it.
static TAKEN: AtomicBool = AtomicBool::new(false);
/// Whether anything has panicked.
static PANICKED: AtomicBool = AtomicBool::new(false);

/// Makes panics leave the screen before they print, and be remembered.
pub(crate) fn restore_on_panic() {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        PANICKED.store(true, Ordering::Relaxed);
        restore();
        print(info);
    }));
}

/// Whether a task of this process has panicked.
pub(crate) fn has_panicked() -> bool {
    PANICKED.load(Ordering::Relaxed)
}

/// Whether there is a terminal to show a view on.
pub(crate) fn is_there() -> bool {
    io::stdout().is_terminal() && size().is_ok_and(|(width, height)| width > 0 && height > 0)
}

fn restore() {
    if TAKEN.swap(false, Ordering::Relaxed) {
        // A terminal that is gone needs no restoring.
        drop(disable_raw_mode());
        drop(execute!(
            io::stdout(),
            EnableLineWrap,
            Show,
            LeaveAlternateScreen
        ));
    }
}

/// The terminal while it is ours. Dropping it gives it back.
pub(crate) struct Screen {
    colours: bool,
    over: Arc<AtomicBool>,
    keys: Option<JoinHandle<()>>,
}

impl Screen {
    /// Takes the terminal.
    pub(crate) fn take(stop: &Stop) -> io::Result<Self> {
        TAKEN.store(true, Ordering::Relaxed);
        let over = Arc::new(AtomicBool::new(false));
        let mut screen = Self {
            colours: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
            over: Arc::clone(&over),
            keys: None,
        };
        execute!(io::stdout(), EnterAlternateScreen, Hide, DisableLineWrap)?;
        // Without keys (standard input is no terminal, and there is none) signals remain.
        if enable_raw_mode().is_ok() {
            let stop = stop.clone();
            let reader = thread::Builder::new().name("keys".into());
            screen.keys = Some(reader.spawn(move || read_keys(&stop, &over))?);
        }
        Ok(screen)
    }

    /// Shows the lines for the size that `render` is asked for.
    pub(crate) fn draw(&self, render: impl FnOnce(usize, usize) -> Vec<Line>) -> io::Result<()> {
        let (width, height) = size()?;
        let lines = render(width.into(), height.into());
        // One write: no half pictures.
        let mut out = Vec::with_capacity(16 * 1024);
        queue!(out, BeginSynchronizedUpdate)?;
        for (row, line) in (0..height).zip(lines.iter().map(Some).chain(std::iter::repeat(None))) {
            queue!(out, MoveTo(0, row))?;
            for (style, text) in line.into_iter().flat_map(Line::spans) {
                self.queue(&mut out, style, text)?;
            }
            // Behind a full row the cursor stands on its last character.
            if line.is_none_or(|line| line.width() < width.into()) {
                queue!(out, Clear(ClearType::UntilNewLine))?;
            }
        }
        queue!(out, EndSynchronizedUpdate)?;
        let mut stdout = io::stdout().lock();
        stdout.write_all(&out)?;
        stdout.flush()
    }

    fn queue(&self, out: &mut Vec<u8>, style: Style, text: &str) -> io::Result<()> {
        let colour = |out: &mut Vec<u8>, colour| {
            if self.colours {
                queue!(out, SetForegroundColor(colour))
            } else {
                Ok(())
            }
        };
        match style {
            Style::Plain => {}
            Style::Bold => queue!(out, SetAttribute(Attribute::Bold))?,
            Style::Dim => queue!(out, SetAttribute(Attribute::Dim))?,
            Style::Good => colour(out, Color::Green)?,
            Style::Warn => colour(out, Color::Yellow)?,
            Style::Bad => {
                queue!(out, SetAttribute(Attribute::Bold))?;
                colour(out, Color::Red)?;
            }
        }
        queue!(out, Print(text), SetAttribute(Attribute::Reset))?;
        if self.colours {
            queue!(out, ResetColor)?;
        }
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // After its end nothing else reads the terminal. Of a terminal that is gone the event
        // source never stops reading; the end of the process ends it.
        let deadline = Instant::now() + KEYS_END_WITHIN;
        while self.keys.as_ref().is_some_and(|keys| !keys.is_finished()) {
            if Instant::now() > deadline {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        restore();
    }
}

fn read_keys(stop: &Stop, over: &AtomicBool) {
    loop {
        // What was pressed before the end still counts: Ctrl-C twice may come in one piece.
        let last = over.load(Ordering::Relaxed);
        let wait = if last { Duration::ZERO } else { KEYS_EVERY };
        match event::poll(wait) {
            Ok(false) if last => return,
            Ok(false) => continue,
            // A terminal that is gone says so with SIGHUP.
            Err(_) => return,
            Ok(true) => {}
        }
        let key = match event::read() {
            Ok(Event::Key(key)) if key.kind == KeyEventKind::Press => key,
            Ok(_) => continue,
            Err(_) if last => return,
            Err(_) => continue,
        };
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => stop.ask(),
            KeyCode::Char('q' | 'Q') => stop.ask_once(),
            _ => {}
        }
    }
}
