//! Prints what every notifier of this machine says of a file: `notify FILE [KIND,KIND...]`.
//!
//! In another shell, do something to the file. Ends when its standard input ends.

use std::error::Error;
use std::fs::OpenOptions;
use std::io::stdin;
use std::os::fd::AsFd;
use std::path::PathBuf;

use holdfast_dax::notify::{NotifierKind, Notifiers, Options, WatchedFile};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let path = PathBuf::from(arguments.next().ok_or("usage: notify FILE [KIND,KIND...]")?);
    let mut options = Options::default();
    if let Some(kinds) = arguments.next() {
        let kinds = kinds.to_string_lossy();
        let named = |kind: &NotifierKind| kinds.split(',').any(|name| name == kind.name());
        options.kinds.retain(named);
    }
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    let mut notifiers = Notifiers::available(&options);
    let watched = WatchedFile::of(&file)?.path(&path).into();
    let (by, refusals) = notifiers.watch(&watched);
    println!("{}", notifiers.statement());
    for refusal in refusals {
        println!("{refusal}");
    }
    println!("watched by {by:?}");
    loop {
        let input = stdin();
        let fds = notifiers.in_force().map(|n| PollFd::new(n.fd(), PollFlags::POLLIN));
        let mut fds: Vec<_> = fds.chain([PollFd::new(input.as_fd(), PollFlags::POLLIN)]).collect();
        poll(&mut fds, PollTimeout::NONE)?;
        let ended = fds.last().is_some_and(|fd| fd.any().unwrap_or(true));
        let mut subjects = Vec::new();
        notifiers.collect(&mut |notice| {
            println!("{notice}, {:?} ago", notice.at.elapsed());
            subjects.push(notice.subject);
        })?;
        subjects.into_iter().for_each(|subject| notifiers.allow(subject));
        if ended {
            return Ok(());
        }
    }
}
