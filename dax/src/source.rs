//! What a region is made of, as it is written on a command line.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::{SizeError, parse_size};

/// What a region is made of: `anon`, `memfd`, `hugetlb`, `FILE[:OFFSET+LEN]`, or
/// `fsdax:FILE[:OFFSET+LEN]` for a file that must be DAX.
///
/// A file called `anon`, `memfd` or `hugetlb` is written with its folder (`./anon`), as is one
/// whose name begins with `fsdax:`; a file whose name holds a colon needs nothing special
/// otherwise, unless the part after its last colon starts with a digit.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// Anonymous memory of this process. Nobody else can map it, so it serves kernel devices
    /// only; a vfio-user device needs a descriptor ([`Source::Memfd`]).
    Anon,
    /// An unnamed file in memory, in pages of the system's usual size.
    Memfd,
    /// An unnamed file in memory, in huge pages of the system's default size.
    Hugetlb,
    /// A file: on persistent memory, on disk (through the page cache), on tmpfs or on hugetlbfs;
    /// or a devdax device (/dev/daxX.Y).
    File {
        /// Its path.
        path: PathBuf,
        /// First byte and number of bytes; `None` is the whole file.
        range: Option<(u64, u64)>,
    },
    /// A file that must be DAX: anything else is refused, with the reason.
    FsDax {
        /// Its path.
        path: PathBuf,
        /// First byte and number of bytes; `None` is the whole file.
        range: Option<(u64, u64)>,
    },
}

/// A text that names no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Nothing was given.
    #[error("no region source: write anon, memfd, hugetlb, or FILE[:OFFSET+LEN]")]
    Empty,
    /// Something like a range, but not `OFFSET+LEN`.
    #[error(
        "'{range}' is not a range of a file: write FILE:OFFSET+LEN, such as {path}:0+2M \
         (sizes in bytes, or with K, M or G)"
    )]
    Range {
        /// The file before the colon.
        path: String,
        /// What stood after it.
        range: String,
    },
    /// A number of the range is no size.
    #[error("in the range of the file: {0}")]
    Size(#[from] SizeError),
}

impl Source {
    /// A whole file.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::File { path: path.into(), range: None }
    }

    /// A whole file that must be DAX.
    pub fn fs_dax(path: impl Into<PathBuf>) -> Self {
        Self::FsDax { path: path.into(), range: None }
    }

    /// The file's path, if it is one with a name.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::File { path, .. } | Self::FsDax { path, .. } => Some(path),
            _ => None,
        }
    }
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        match text {
            "" => return Err(SourceError::Empty),
            "anon" => return Ok(Self::Anon),
            "memfd" => return Ok(Self::Memfd),
            "hugetlb" => return Ok(Self::Hugetlb),
            _ => {}
        }
        let (text, must_be_dax) = match text.strip_prefix("fsdax:") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let named = |path: PathBuf, range| match must_be_dax {
            true => Self::FsDax { path, range },
            false => Self::File { path, range },
        };
        let Some((path, range)) = text
            .rsplit_once(':')
            .filter(|(_, range)| range.starts_with(|c: char| c.is_ascii_digit()))
        else {
            return if text.is_empty() {
                Err(SourceError::Empty)
            } else {
                Ok(named(text.into(), None))
            };
        };
        let malformed = || SourceError::Range { path: path.to_owned(), range: range.to_owned() };
        let (offset, len) = range.split_once('+').ok_or_else(malformed)?;
        if path.is_empty() {
            return Err(malformed());
        }
        let range = Some((parse_size(offset)?, parse_size(len)?));
        Ok(named(path.into(), range))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anon => f.write_str("anon"),
            Self::Memfd => f.write_str("memfd"),
            Self::Hugetlb => f.write_str("hugetlb"),
            Self::File { path, range } => write_file(f, "", path, *range),
            Self::FsDax { path, range } => write_file(f, "fsdax:", path, *range),
        }
    }
}

fn write_file(
    f: &mut fmt::Formatter<'_>,
    prefix: &str,
    path: &Path,
    range: Option<(u64, u64)>,
) -> fmt::Result {
    write!(f, "{prefix}{}", path.display())?;
    match range {
        Some((offset, len)) => write!(f, ":{offset}+{len}"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, range: Option<(u64, u64)>) -> Source {
        Source::File { path: path.into(), range }
    }

    #[test]
    fn sources_are_read_as_they_are_written() {
        for (text, source) in [
            ("anon", Source::Anon),
            ("memfd", Source::Memfd),
            ("hugetlb", Source::Hugetlb),
            ("./anon", file("./anon", None)),
            ("/data/x", file("/data/x", None)),
            ("/data/x:0+4096", file("/data/x", Some((0, 4096)))),
            ("/data/x:2M+64K", file("/data/x", Some((2 << 20, 64 << 10)))),
            ("/data/x:0x1000+1G", file("/data/x", Some((4096, 1 << 30)))),
            ("/odd:name", file("/odd:name", None)),
            ("/odd:name:4K+8K", file("/odd:name", Some((4096, 8192)))),
            ("fsdax:/data/x", Source::fs_dax("/data/x")),
            ("./fsdax:x", file("./fsdax:x", None)),
            (
                "fsdax:/data/x:2M+4K",
                Source::FsDax { path: "/data/x".into(), range: Some((2 << 20, 4096)) },
            ),
        ] {
            assert_eq!(text.parse::<Source>(), Ok(source), "{text}");
        }
    }

    #[test]
    fn a_malformed_range_is_refused_with_an_example() {
        for text in ["x:4096", "x:12abc", ":0+4096", "x:0-4096"] {
            let error = text.parse::<Source>().unwrap_err();
            assert!(matches!(error, SourceError::Range { .. }), "{text}: {error}");
            assert!(error.to_string().contains(":0+2M"), "{error}");
        }
        assert!(matches!("x:0+4Q".parse::<Source>(), Err(SourceError::Size(_))));
        assert!(matches!("x:0+".parse::<Source>(), Err(SourceError::Size(_))));
        assert_eq!("".parse::<Source>(), Err(SourceError::Empty));
        assert_eq!("fsdax:".parse::<Source>(), Err(SourceError::Empty));
    }

    proptest::proptest! {
        #[test]
        fn a_range_survives_being_printed_and_read(offset: u64, len: u64) {
            let source = file("/some/file", Some((offset, len)));
            proptest::prop_assert_eq!(source.to_string().parse::<Source>(), Ok(source));
        }

        #[test]
        fn any_text_is_parsed_or_refused_without_a_panic(text in "[a-z:+0-9x/.]{0,24}") {
            let _ = text.parse::<Source>();
        }
    }
}
