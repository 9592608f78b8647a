//! fanotify's events as they are read: a head for each, then records about it.

use std::ops::Range;

/// `struct fanotify_event_metadata` of linux/fanotify.h.
const HEAD: usize = 24;
/// `FANOTIFY_METADATA_VERSION`.
const VERSION: u8 = 3;
/// `FAN_EVENT_INFO_TYPE_RANGE`, and the size of its record.
const RANGE: u8 = 6;
const RANGE_LEN: usize = 24;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub mask: u64,
    /// A descriptor of the file, which is now the reader's; negative when there is none.
    pub fd: i32,
    /// The thread (`FAN_REPORT_TID`).
    pub tid: i32,
    /// The bytes that it is about to access.
    pub range: Option<Range<u64>>,
}

/// Takes the next event off what was read; `None` at its end, or when it is malformed.
pub fn next(bytes: &mut &[u8]) -> Option<Event> {
    let head: &[u8; HEAD] = bytes.first_chunk()?;
    let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let len = word(0) as usize;
    let records_at = usize::from(u16::from_ne_bytes([head[6], head[7]]));
    if head[4] != VERSION || len < HEAD {
        return None;
    }
    let mask = u64::from(word(8)) | u64::from(word(12)) << 32;
    let mut event = Event { mask, fd: word(16) as i32, tid: word(20) as i32, range: None };
    let mut records = bytes.get(records_at..len)?;
    *bytes = bytes.get(len..)?;
    while let Some(&[kind, _, low, high]) = records.first_chunk() {
        let len = usize::from(u16::from_ne_bytes([low, high]));
        let Some(record) = records.get(..len).filter(|record| record.len() >= 4) else { break };
        if kind == RANGE
            && let Some(record) = record.first_chunk::<RANGE_LEN>()
        {
            let value = |at: usize| record[at..].first_chunk().map(|b| u64::from_ne_bytes(*b));
            let (offset, count) = (value(8).unwrap_or(0), value(16).unwrap_or(u64::MAX));
            event.range = Some(offset..offset.saturating_add(count));
        }
        records = &records[len..];
    }
    Some(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(records: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(((HEAD + records.len()) as u32).to_ne_bytes());
        bytes.extend([VERSION, 0]);
        bytes.extend((HEAD as u16).to_ne_bytes());
        bytes.extend(0x0010_0000u64.to_ne_bytes());
        bytes.extend(9i32.to_ne_bytes());
        bytes.extend(77i32.to_ne_bytes());
        bytes.extend(records);
        bytes
    }

    fn range_record() -> Vec<u8> {
        let mut record = vec![RANGE, 0, RANGE_LEN as u8, 0, 0, 0, 0, 0];
        record.extend(4096u64.to_ne_bytes());
        record.extend(8192u64.to_ne_bytes());
        record
    }

    #[test]
    fn an_event_has_a_thread_and_a_range() {
        let other = [1, 0, 8, 0, 0, 0, 0, 0];
        let read = [bytes(&[&other[..], &range_record()].concat()), bytes(&[])].concat();
        let mut rest = &read[..];
        let event = Event { mask: 0x0010_0000, fd: 9, tid: 77, range: Some(4096..12288) };
        assert_eq!(next(&mut rest), Some(event.clone()));
        assert_eq!(next(&mut rest), Some(Event { range: None, ..event }));
        assert_eq!(next(&mut rest), None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(noise: Vec<u8>, cut in 0usize..48, at in 0usize..48) {
            let mut read = bytes(&range_record());
            read[at] ^= noise.first().copied().unwrap_or(0);
            read.truncate(48 - cut);
            read.extend(&noise);
            let mut rest = &read[..];
            for _ in 0..read.len() {
                if next(&mut rest).is_none() {
                    break;
                }
            }
        }
    }
}
