//! The kernel's own type information (BTF), as far as probes need it: which argument of a function
//! is which, and at which offset a member of a structure lies.
//!
//! BTF is a table of types with numbers from 1 on, and strings. A module's table (`/sys/kernel/btf/
//! MODULE`) goes on where the kernel's ends, in type numbers and string offsets alike. The format
//! is in the kernel's Documentation/bpf/btf.rst.

use std::fmt;
use std::ops::Range;

/// Kinds of types (`BTF_KIND_*` of linux/btf.h).
mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const FWD: u32 = 7;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const FLOAT: u32 = 16;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

/// Why type information could not be read or used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    #[error("the kernel's type information is malformed at byte {0}")]
    Malformed(usize),
    #[error("the kernel's type information has a kind of type that is not known ({0})")]
    UnknownKind(u32),
    #[error("this kernel has no function {0}")]
    NoFunction(String),
    #[error("{0} has no argument or member {1}")]
    NoMember(String, String),
    #[error("'{0}' does not lead through pointers and structures")]
    NotAPath(String),
}

/// A table of types: the kernel's, or a module's on top of it.
#[derive(Clone)]
pub struct Btf {
    bytes: Vec<u8>,
    /// Where each type's entry begins; the first has the number 1.
    types: Vec<u32>,
    /// Where strings are, each piece going on where the one before it ends.
    strings: Vec<Range<usize>>,
}

/// One entry of the table.
#[derive(Clone, Copy)]
struct Type {
    /// Where what follows the entry's head begins.
    tail: usize,
    name: u32,
    info: u32,
    /// The size of a structure or number; the type a pointer, function or typedef leads to.
    size_or_type: u32,
}

impl Type {
    fn kind(self) -> u32 {
        (self.info >> 24) & 0x1f
    }

    fn len(self) -> usize {
        (self.info & 0xffff) as usize
    }

    /// Whether member offsets hold the width of a bit field in their top byte.
    fn has_bitfields(self) -> bool {
        self.info >> 31 != 0
    }
}

/// A member found in a structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Member {
    /// Bytes from the structure's start.
    offset: u32,
    ty: u32,
}

impl Btf {
    /// Reads the kernel's table.
    pub fn parse(bytes: &[u8]) -> Result<Self, BtfError> {
        let mut this = Self::empty();
        this.append(bytes)?;
        Ok(this)
    }

    /// The same with a module's table on top.
    pub fn with_module(&self, bytes: &[u8]) -> Result<Self, BtfError> {
        let mut this = self.clone();
        this.append(bytes)?;
        Ok(this)
    }

    /// A table that knows nothing.
    pub fn empty() -> Self {
        Self { bytes: Vec::new(), types: Vec::new(), strings: Vec::new() }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), BtfError> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        if self.u32_at(start)? & 0xffff != 0xeb9f {
            return Err(BtfError::Malformed(start));
        }
        let header = start + self.u32_at(start + 4)? as usize;
        let section = |at: usize| {
            let from = header + self.u32_at(start + at)? as usize;
            let to = from + self.u32_at(start + at + 4)? as usize;
            if to > self.bytes.len() {
                return Err(BtfError::Malformed(start + at));
            }
            Ok(from..to)
        };
        let (entries, strings) = (section(8)?, section(16)?);
        let mut at = entries.start;
        while at < entries.end {
            self.types.push(at as u32);
            let entry = self.entry(at)?;
            at = entry.tail
                + match entry.kind() {
                    kind::INT | kind::VAR | kind::DECL_TAG => 4,
                    kind::ARRAY => 12,
                    kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => entry.len() * 12,
                    kind::ENUM | kind::FUNC_PROTO => entry.len() * 8,
                    kind::PTR | kind::FWD | kind::TYPEDEF | kind::VOLATILE | kind::CONST => 0,
                    kind::RESTRICT | kind::FUNC | kind::FLOAT | kind::TYPE_TAG => 0,
                    other => return Err(BtfError::UnknownKind(other)),
                };
        }
        self.strings.push(strings);
        Ok(())
    }

    /// Turns `argument->member->member.member` into what kprobe events take on every kernel,
    /// `+OFFSET(+OFFSET($argN)):xBITS`.
    pub fn fetch(&self, function: &str, path: &str) -> Result<String, BtfError> {
        let not_a_path = || BtfError::NotAPath(path.to_owned());
        let mut steps = path.split_inclusive(['>', '.']);
        let word = |step: &str| step.trim_end_matches(['-', '>', '.']).to_owned();
        let mut step = steps.next().ok_or_else(not_a_path)?;
        let (number, mut ty) = self.argument(function, &word(step))?;
        let mut base = format!("$arg{}", number + 1);
        // The value at this offset from `base`; without one, `base` itself.
        let mut offset: Option<u32> = None;
        for next in steps {
            let mut structure = self.bare(ty)?;
            if step.ends_with("->") {
                if let Some(offset) = offset {
                    base = format!("+{offset}({base})");
                }
                if structure.kind() != kind::PTR {
                    return Err(not_a_path());
                }
                structure = self.bare(structure.size_or_type)?;
                offset = Some(0);
            }
            let from = offset.ok_or_else(not_a_path)?;
            let name = word(next);
            let of = || self.text(structure.name).unwrap_or("?").to_owned();
            let member = self
                .member(structure, &name)?
                .ok_or_else(|| BtfError::NoMember(of(), name.clone()))?;
            offset = Some(from + member.offset);
            ty = member.ty;
            step = next;
        }
        let value = self.bare(ty)?;
        let bits = match value.kind() {
            kind::PTR => 64,
            kind::INT | kind::ENUM | kind::ENUM64 => value.size_or_type * 8,
            _ => return Err(not_a_path()),
        };
        Ok(match offset {
            Some(offset) => format!("+{offset}({base}):x{bits}"),
            None => format!("{base}:x{bits}"),
        })
    }

    /// Number (from 0) and type of a function's argument. The last table that has the function
    /// counts, as a module may have one of its own under a name that the kernel uses too.
    fn argument(&self, function: &str, argument: &str) -> Result<(usize, u32), BtfError> {
        for &at in self.types.iter().rev() {
            let func = self.entry(at as usize)?;
            if func.kind() != kind::FUNC || self.text(func.name) != Some(function) {
                continue;
            }
            let proto = self.get(func.size_or_type)?;
            for number in 0..proto.len() {
                let at = proto.tail + number * 8;
                if self.text(self.u32_at(at)?) == Some(argument) {
                    return Ok((number, self.u32_at(at + 4)?));
                }
            }
            return Err(BtfError::NoMember(function.to_owned(), argument.to_owned()));
        }
        Err(BtfError::NoFunction(function.to_owned()))
    }

    /// A member of a structure, looked for in its unnamed parts too; bit fields are not found.
    fn member(&self, structure: Type, name: &str) -> Result<Option<Member>, BtfError> {
        if !matches!(structure.kind(), kind::STRUCT | kind::UNION) {
            return Ok(None);
        }
        for index in 0..structure.len() {
            let at = structure.tail + index * 12;
            let (text, ty, bits) = (self.u32_at(at)?, self.u32_at(at + 4)?, self.u32_at(at + 8)?);
            let (bits, width) = match structure.has_bitfields() {
                true => (bits & 0xff_ffff, bits >> 24),
                false => (bits, 0),
            };
            let offset = bits / 8;
            if text == 0 {
                if let Some(inner) = self.member(self.bare(ty)?, name)? {
                    return Ok(Some(Member { offset: offset + inner.offset, ty: inner.ty }));
                }
            } else if self.text(text) == Some(name) {
                return Ok((width == 0).then_some(Member { offset, ty }));
            }
        }
        Ok(None)
    }

    /// A type without typedefs and qualifiers.
    fn bare(&self, mut ty: u32) -> Result<Type, BtfError> {
        // A chain is a few links long; one that is longer goes in a circle.
        for _ in 0..64 {
            let entry = self.get(ty)?;
            match entry.kind() {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    ty = entry.size_or_type;
                }
                _ => return Ok(entry),
            }
        }
        Err(BtfError::Malformed(ty as usize))
    }

    fn get(&self, ty: u32) -> Result<Type, BtfError> {
        let at = (ty as usize).checked_sub(1).and_then(|index| self.types.get(index));
        self.entry(*at.ok_or(BtfError::Malformed(ty as usize))? as usize)
    }

    fn entry(&self, at: usize) -> Result<Type, BtfError> {
        let (name, info) = (self.u32_at(at)?, self.u32_at(at + 4)?);
        Ok(Type { tail: at + 12, name, info, size_or_type: self.u32_at(at + 8)? })
    }

    fn text(&self, offset: u32) -> Option<&str> {
        let mut offset = offset as usize;
        for piece in &self.strings {
            if offset < piece.len() {
                let rest = &self.bytes[piece.start + offset..piece.end];
                let end = rest.iter().position(|&byte| byte == 0)?;
                return std::str::from_utf8(&rest[..end]).ok();
            }
            offset -= piece.len();
        }
        None
    }

    fn u32_at(&self, at: usize) -> Result<u32, BtfError> {
        let bytes = self.bytes.get(at..).and_then(|rest| rest.first_chunk());
        Ok(u32::from_le_bytes(*bytes.ok_or(BtfError::Malformed(at))?))
    }
}

impl fmt::Debug for Btf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Btf({} types)", self.types.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a table: entries as words, strings as they stand.
    fn table(entries: &[u32], strings: &[u8]) -> Vec<u8> {
        let types = entries.len() as u32 * 4;
        let head = [0x0001_eb9f, 24, 0, types, types, strings.len() as u32];
        let words = head.iter().chain(entries).flat_map(|word| word.to_le_bytes());
        words.chain(strings.iter().copied()).collect()
    }

    const STRINGS: &[u8] = b"\0u64\0inode\0ino\0file\0host\0f\0func\0n\0bits\0";

    fn at(name: &str) -> u32 {
        let text = format!("\0{name}\0");
        STRINGS.windows(text.len()).position(|w| w == text.as_bytes()).unwrap() as u32 + 1
    }

    /// `struct inode { int bits: 4; struct { u64 ino; }; }`,
    /// `struct file { u64 n; struct inode *host; struct inode inode; }`, and
    /// `func(u64 n, const struct file *f)`.
    fn kernel() -> Btf {
        let (structure, func) = (|n: u32| 4 << 24 | n, 12 << 24);
        let entries = [
            vec![at("u64"), 1 << 24, 8, 64],               // 1: u64
            vec![0, structure(1), 8, at("ino"), 1, 0],     // 2: unnamed
            vec![at("inode"), 1 << 31 | structure(2), 16], // 3: inode
            vec![at("bits"), 1, 4 << 24, 0, 2, 64],
            vec![0, 2 << 24, 3],                // 4: inode *
            vec![at("file"), structure(3), 32], // 5: file
            vec![at("n"), 1, 0, at("host"), 4, 64, at("inode"), 3, 128],
            vec![0, 10 << 24, 5],                             // 6: const file
            vec![0, 2 << 24, 6],                              // 7: const file *
            vec![0, 13 << 24 | 2, 0, at("n"), 1, at("f"), 7], // 8: prototype
            vec![at("func"), func, 8],                        // 9: func
        ];
        Btf::parse(&table(&entries.concat(), STRINGS)).unwrap()
    }

    #[test]
    fn paths_become_offsets_from_arguments() {
        let btf = kernel();
        for (path, fetch) in [
            ("n", "$arg1:x64"),
            ("f->n", "+0($arg2):x64"),
            ("f->host->ino", "+8(+8($arg2)):x64"),
            ("f->inode.ino", "+24($arg2):x64"),
        ] {
            assert_eq!(btf.fetch("func", path).unwrap(), fetch, "{path}");
        }
    }

    #[test]
    fn a_path_that_leads_nowhere_says_where_it_ends() {
        let btf = kernel();
        let no = |of: &str, name: &str| BtfError::NoMember(of.into(), name.into());
        for (path, error) in [
            ("x", no("func", "x")),
            ("f->x", no("file", "x")),
            ("f->host->x", no("inode", "x")),
            ("f->host->bits", no("inode", "bits")),
            ("n->ino", BtfError::NotAPath("n->ino".into())),
            ("f.n", BtfError::NotAPath("f.n".into())),
            ("f->inode", BtfError::NotAPath("f->inode".into())),
        ] {
            assert_eq!(btf.fetch("func", path), Err(error.clone()), "{path}");
        }
        assert_eq!(btf.fetch("other", "n"), Err(BtfError::NoFunction("other".into())));
    }

    #[test]
    fn a_modules_table_goes_on_where_the_kernels_ends() {
        let name = STRINGS.len() as u32;
        // A typedef of the kernel's file *, a prototype with it, and a function.
        let entries = [name, 8 << 24, 7, 0, 13 << 24 | 1, 0, at("f"), 10, name + 2, 12 << 24, 11];
        let module = kernel().with_module(&table(&entries, b"t\0mine\0")).unwrap();
        assert_eq!(module.fetch("mine", "f->host->ino").unwrap(), "+8(+8($arg1)):x64");
        assert_eq!(module.fetch("func", "f->n").unwrap(), "+0($arg2):x64");
    }

    /// The kernel that runs this test describes itself too; every Linux that can run the lab does.
    #[test]
    fn the_running_kernels_table_is_understood() {
        let bytes = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        let btf = Btf::parse(&bytes).unwrap();
        let fetch = btf.fetch("vfs_fallocate", "file->f_inode->i_sb->s_dev").unwrap();
        let mut parts = fetch.split(['+', '(']).filter(|part| !part.is_empty());
        assert!(parts.by_ref().take(3).all(|part| part.parse::<u32>().is_ok()), "{fetch}");
        assert_eq!(parts.next(), Some("$arg1))):x32"), "{fetch}");
    }

    proptest::proptest! {
        #[test]
        fn damaged_tables_are_refused_without_a_panic(
            at in 0usize..400, byte: u8, cut in 0usize..400,
        ) {
            let mut bytes = kernel().bytes;
            let len = bytes.len();
            bytes[at % len] = byte;
            bytes.truncate(len - cut % len);
            if let Ok(btf) = Btf::parse(&bytes) {
                for path in ["n", "f->host->ino", "f->inode.ino"] {
                    let _ = btf.fetch("func", path);
                }
            }
        }
    }
}
