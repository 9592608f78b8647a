//! Values of the command line that several commands share.

use std::time::Duration;

/// A size in bytes that fits this machine's memory.
pub fn size(text: &str) -> Result<usize, String> {
    let size = holdfast_dax::parse_size(text).map_err(|error| error.to_string())?;
    usize::try_from(size).map_err(|_| format!("'{text}' is more than this machine can address"))
}

/// A time in seconds, fractions allowed.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    match number.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 1e7 => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("'{text}' is not a number of seconds above 0, such as 2 or 0.5")),
    }
}

/// A number a second above 0; K and M stand for thousands and millions.
pub fn rate(text: &str) -> Result<f64, String> {
    let units = [("K", 1e3), ("k", 1e3), ("M", 1e6), ("", 1.0)];
    let rate = units
        .iter()
        .find_map(|(unit, scale)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * scale));
    match rate {
        Some(rate) if (0.01..=1e9).contains(&rate) => Ok(rate),
        _ => Err(format!("'{text}' is not a number a second, such as 5000, 20K or 1.5M")),
    }
}

/// A time with its unit: `100us`, `50ms`, `2s`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let units = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0)];
    let split = units.iter().find_map(|(unit, scale)| {
        let number = text.strip_suffix(unit)?.parse::<f64>().ok()?;
        Some(number * scale)
    });
    match split {
        Some(seconds) if seconds > 0.0 && seconds <= 1e7 => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("'{text}' is not a time above 0 with its unit, such as 50ms or 2s")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_its_unit() {
        assert_eq!(duration("50ms"), Ok(Duration::from_millis(50)));
        assert_eq!(duration("100us"), Ok(Duration::from_micros(100)));
        assert_eq!(duration("0.5s"), Ok(Duration::from_millis(500)));
        for text in ["", "5", "ms", "-1s", "0s", "1e99s", "infs", "nanms"] {
            assert!(duration(text).unwrap_err().contains("with its unit"), "{text}");
        }
    }

    #[test]
    fn a_rate_is_a_number_a_second() {
        for (text, expected) in [("5000", 5e3), ("20K", 2e4), ("20k", 2e4), ("1.5M", 1.5e6)] {
            assert_eq!(rate(text), Ok(expected));
        }
        for text in ["", "0", "-5", "K", "nan", "2G", "1e30", "infM"] {
            assert!(rate(text).unwrap_err().contains("number a second"), "{text}");
        }
    }

    #[test]
    fn seconds_are_positive_numbers() {
        assert_eq!(seconds("2"), Ok(Duration::from_secs(2)));
        assert_eq!(seconds("0.5s"), Ok(Duration::from_millis(500)));
        for text in ["", "0", "-1", "nan", "inf", "1e99", "2m"] {
            assert!(seconds(text).unwrap_err().contains("number of seconds"), "{text}");
        }
    }
}
