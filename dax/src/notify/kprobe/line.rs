//! One event as the kernel prints it:
//! `COMM-TID [CPU] FLAGS SECONDS.MICROS: EVENT: (FUNCTION+0x0/0xN) NAME=0xVALUE NAME=0xVALUE`.
//!
//! COMM is a name that any process may give itself, blanks and newlines included, so a line is read
//! from EVENT on, and backwards from it. A name has at most 15 characters, and those of our events
//! are longer, so that none can be made up.

/// Most values an event has.
pub const MAX_VALUES: usize = 8;

/// What a line tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line<'a> {
    /// An event.
    Event(Event<'a>),
    /// The kernel dropped events, because they were not collected in time.
    Lost,
    /// Nothing of ours.
    Other,
}

/// An event of one of our probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// Its name.
    pub name: &'a str,
    /// The thread that came by.
    pub tid: i32,
    /// When, in microseconds of CLOCK_MONOTONIC.
    pub micros: u64,
    /// The values fetched, in the order in which the probe has them; one that could not be
    /// fetched is `None`.
    pub values: [Option<u64>; MAX_VALUES],
}

/// Reads a line (without its newline). `prefix` begins the names of all our events.
pub fn parse<'a>(line: &'a [u8], prefix: &str) -> Line<'a> {
    let Ok(line) = std::str::from_utf8(strip_comm(line)) else { return Line::Other };
    if line.starts_with("CPU:") && line.contains("[LOST ") {
        return Line::Lost;
    }
    event(line, prefix).map_or(Line::Other, Line::Event)
}

/// A line without what is no text in front: names of processes may be any bytes.
fn strip_comm(line: &[u8]) -> &[u8] {
    match line.iter().rposition(|&byte| !byte.is_ascii()) {
        Some(at) => &line[at + 1..],
        None => line,
    }
}

fn event<'a>(line: &'a str, prefix: &str) -> Option<Event<'a>> {
    let mut from = line.len();
    // The last place where an event's name stands between colons.
    let (head, name, rest) = loop {
        let at = line[..from].rfind(prefix)?;
        let (name, rest) = line[at..].split_once(':')?;
        match line[..at].strip_suffix(": ") {
            Some(head) if !name.contains(' ') => break (head, name, rest),
            _ => from = at,
        }
    };
    let (head, stamp) = head.rsplit_once(' ')?;
    let (seconds, fraction) = stamp.split_once('.')?;
    let micros = seconds.parse::<u64>().ok()? * 1_000_000 + fraction.parse::<u64>().ok()?;
    let (task, _) = head.rsplit_once('[')?;
    // With the option record-tgid there is "(TGID)" between.
    let task = match task.trim_end() {
        tgid if tgid.ends_with(')') => tgid.rsplit_once('(')?.0.trim_end(),
        task => task,
    };
    let tid = task.rsplit_once('-')?.1.parse().ok()?;
    let mut values = [None; MAX_VALUES];
    let fields = rest.split(' ').filter_map(|word| word.split_once('='));
    for (value, (_, text)) in values.iter_mut().zip(fields) {
        *value = text.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
    }
    Some(Event { name, tid, micros, values })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &str = "holdfast_at_";

    #[test]
    fn an_event_is_read_from_its_name_on_and_backwards() {
        let values = |some: &[Option<u64>]| {
            let mut values = [None; MAX_VALUES];
            values[..some.len()].copy_from_slice(some);
            values
        };
        let rest = ": holdfast_at_wait: (dax_layout_busy_page_range+0x0/0x390)";
        for (head, tid) in [
            ("           <...>-123     [001] ..... ", 123),
            ("      truncate-77      [000] d..1.", 77),
            ("   a-b [9] c-8 (    5) [002] .....", 8),
            ("holdfast_at_wai-9   [002] .....", 9),
            ("x: y: (z)-10   [002] .....", 10),
        ] {
            let line =
                format!("{head}   123.456789{rest} ino=0x83 dev=(fault) n=0xffffffffffffffff");
            let Line::Event(event) = parse(line.as_bytes(), PREFIX) else { panic!("{line}") };
            assert_eq!((event.name, event.tid), ("holdfast_at_wait", tid), "{line}");
            assert_eq!(event.micros, 123_456_789);
            assert_eq!(event.values, values(&[Some(0x83), None, Some(u64::MAX)]));
        }
    }

    #[test]
    fn a_process_whose_name_is_no_text_does_not_hide_its_event() {
        let mut line =
            b"  \xff\xfe\x80-5 [000] .....  1.000002: holdfast_at_x: (f+0x0/0x1)".to_vec();
        line.extend(b" ino=0x1");
        assert!(matches!(
            parse(&line, PREFIX),
            Line::Event(Event { tid: 5, micros: 1_000_002, .. })
        ));
    }

    #[test]
    fn lost_events_are_noticed() {
        assert_eq!(parse(b"CPU:1 [LOST 17 EVENTS]", PREFIX), Line::Lost);
        assert_eq!(parse(b"CPU:1 [LOST EVENTS]", PREFIX), Line::Lost);
        assert_eq!(parse(b"CPU:0 [LOST 5-7 [000] ..... 1.000000: other: x", PREFIX), Line::Lost);
        assert_eq!(parse(b"   x-1 [000] ..... 1.000000: other: (f)", PREFIX), Line::Other);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_passed_over(line: Vec<u8>, cut in 0usize..80) {
            parse(&line, PREFIX);
            let text = b" <...>-1 [001] ..... 1.000000: holdfast_at_x: (f) ino=0x1 dev=0x2";
            parse(&text[cut.min(text.len())..], PREFIX);
        }
    }
}
