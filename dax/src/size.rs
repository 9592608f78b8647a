//! Sizes as people write them: `4096`, `64K`, `2M`, `1G`, `0x1000`; powers of two throughout.

/// A text that is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a number with an optional suffix.
    #[error("'{0}' is not a size: write bytes, or a number with K, M or G (powers of 1024)")]
    Syntax(String),
    /// Larger than 64 bits.
    #[error("'{0}' does not fit 64 bits")]
    TooLarge(String),
}

/// Parses a size in bytes: decimal or `0x` hexadecimal, with an optional `K`, `M`, `G` or `T`
/// (also `KiB` and so on, in either case).
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let syntax = || SizeError::Syntax(text.to_owned());
    let trimmed = text.trim();
    if let Some(digits) = trimmed.strip_prefix("0x") {
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(syntax());
        }
        return u64::from_str_radix(digits, 16).map_err(|_| SizeError::TooLarge(text.to_owned()));
    }
    let end = trimmed.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(trimmed.len());
    let (digits, suffix) = trimmed.split_at(end);
    if digits.is_empty() {
        return Err(syntax());
    }
    let shift = match suffix.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(syntax()),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| SizeError::TooLarge(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1", 1),
            ("4096", 4096),
            ("0x1000", 4096),
            ("64K", 64 << 10),
            ("64k", 64 << 10),
            ("2M", 2 << 20),
            ("2MiB", 2 << 20),
            ("1g", 1 << 30),
            ("3T", 3 << 40),
            (" 8 ", 8),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "K", "-1", "1.5M", "1Q", "0x", "0xg", "1 K", "+5", "0x+1"] {
            assert_eq!(parse_size(text), Err(SizeError::Syntax(text.to_owned())), "{text}");
        }
        for text in ["18446744073709551616", "16777216T", "0x10000000000000000"] {
            assert_eq!(parse_size(text), Err(SizeError::TooLarge(text.to_owned())), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_without_a_panic(text in ".{0,24}") {
            let _ = parse_size(&text);
        }

        #[test]
        fn every_number_comes_back(n: u64) {
            proptest::prop_assert_eq!(parse_size(&n.to_string()), Ok(n));
            proptest::prop_assert_eq!(parse_size(&format!("{n:#x}")), Ok(n));
        }
    }
}
