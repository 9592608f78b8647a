//! What a person sees while something takes long: a bar on a terminal, plain lines elsewhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// One piece of work that takes a while.
pub struct Progress {
    bar: ProgressBar,
    what: String,
    start: Instant,
    plain: bool,
}

impl Progress {
    /// Work of unknown size.
    pub fn spinner(what: &str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(style("{spinner} {prefix} [{elapsed}] {wide_msg}"));
        bar.enable_steady_tick(Duration::from_millis(120));
        Self::started(bar, what)
    }

    /// A download of `bytes` bytes.
    pub fn download(what: &str, bytes: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
        bar.set_style(style(
            "{spinner} {prefix} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        ));
        Self::started(bar, what)
    }

    /// A known number of steps.
    pub fn steps(what: &str, steps: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
        bar.set_style(style("{spinner} {prefix} [{bar:24}] {pos}/{len} [{elapsed}] {wide_msg}"));
        bar.enable_steady_tick(Duration::from_millis(120));
        Self::started(bar, what)
    }

    fn started(bar: ProgressBar, what: &str) -> Self {
        bar.set_prefix(what.to_owned());
        let plain = bar.is_hidden();
        if plain {
            eprintln!("lab: {what} ...");
        }
        Self { bar, what: what.to_owned(), start: Instant::now(), plain }
    }

    /// What it is doing now.
    pub fn say(&self, message: &str) {
        self.bar.set_message(message.to_owned());
    }

    /// How far it has come.
    pub fn at(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// It is done.
    pub fn done(self) {
        self.bar.finish_and_clear();
        let seconds = self.start.elapsed().as_secs_f64();
        if self.plain || seconds > 1.0 {
            eprintln!("lab: {}: done in {seconds:.1} s", self.what);
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
