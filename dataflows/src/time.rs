//! Times, spans and their texts.
//!
//! In go RFC 3339 instants, UTC dates, clock times and spans like `30m`; out come integer milliseconds, and back.
//! No clock is read here: the present is always an argument somewhere.

/// A time in milliseconds since the Unix epoch, UTC; or a span of milliseconds.
pub type Millis = i64;

/// One second.
pub const SECOND: Millis = 1_000;
/// One minute.
pub const MINUTE: Millis = 60 * SECOND;
/// One hour.
pub const HOUR: Millis = 60 * MINUTE;
/// One day of 24 hours.
pub const DAY: Millis = 24 * HOUR;

/// 2000-01-01T00:00:00Z, the first instant that an event may bear.
const TIME_MIN: Millis = 946_684_800_000;
/// 2100-01-01T00:00:00Z, the first instant that it may not.
const TIME_END: Millis = 4_102_444_800_000;

/// The longest span, a hundred years: as long as all time here, so that a time and a span always add up.
pub const SPAN_MAX: Millis = TIME_END - TIME_MIN;

/// Whether an event may bear this time: [2000-01-01, 2100-01-01).
pub fn in_range(time: Millis) -> bool {
    (TIME_MIN..TIME_END).contains(&time)
}

/// Reads an RFC 3339 instant with offset; what is finer than a millisecond is cut.
///
/// `None` for any other form. Second 60 is refused: integer milliseconds have no place for it.
pub fn parse_instant(text: &str) -> Option<Millis> {
    let (fixed, rest) = text.as_bytes().split_first_chunk::<19>()?;
    let &[y1, y2, y3, y4, b'-', o1, o2, b'-', d1, d2, b'T' | b't', h1, h2, b':', m1, m2, b':', s1, s2] = fixed else {
        return None;
    };
    let day = day_number(digits([y1, y2, y3, y4])?, digits([o1, o2])?, digits([d1, d2])?)?;
    let (hour, minute, second) = (digits([h1, h2])?, digits([m1, m2])?, digits([s1, s2])?);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (fraction, zone) = match rest {
        &[b'.', a, b, c, ref zone @ (b'Z' | b'z')] => (digits([a, b, c])?, std::slice::from_ref(zone)),
        [b'.', tail @ ..] => parse_fraction(tail)?,
        _ => (0, rest),
    };
    Some(day * DAY + hour * HOUR + minute * MINUTE + second * SECOND + fraction - parse_offset(zone)?)
}

/// Prints an instant as `2026-01-05T09:00:00.000Z`.
pub fn format_instant(time: Millis) -> String {
    let (year, month, day) = civil(time.div_euclid(DAY));
    let within = time.rem_euclid(DAY);
    let (hour, minute) = (within / HOUR, within / MINUTE % 60);
    let (second, millis) = (within / SECOND % 60, within % SECOND);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Reads a UTC date `2026-01-05` as its first instant.
pub fn parse_date(text: &str) -> Option<Millis> {
    let &[y1, y2, y3, y4, b'-', o1, o2, b'-', d1, d2] = text.as_bytes() else { return None };
    Some(day_number(digits([y1, y2, y3, y4])?, digits([o1, o2])?, digits([d1, d2])?)? * DAY)
}

/// Reads a clock time `22:00` as minutes since midnight, 0 to 1439.
pub fn parse_clock_time(text: &str) -> Option<u16> {
    let &[h1, h2, b':', m1, m2] = text.as_bytes() else { return None };
    let (hour, minute) = (digits([h1, h2])?, digits([m1, m2])?);
    if hour > 23 || minute > 59 {
        return None;
    }
    u16::try_from(hour * 60 + minute).ok()
}

/// The units of spans, longest first.
const UNITS: [(&str, Millis); 5] = [("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", SECOND), ("ms", 1)];

/// Reads a span: a whole number and one of `ms s m h d`, up to [`SPAN_MAX`].
pub fn parse_duration(text: &str) -> Option<Millis> {
    let count = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(count)?;
    let (_, millis) = UNITS.iter().find(|(name, _)| *name == unit)?;
    number.parse::<Millis>().ok()?.checked_mul(*millis).filter(|span| *span <= SPAN_MAX)
}

/// Prints a span in the longest unit that holds it exactly: `90m`, `1d`, `0ms`.
pub fn print_duration(span: Millis) -> String {
    let exact = UNITS.iter().find(|(_, millis)| span != 0 && span % millis == 0);
    let (name, millis) = exact.unwrap_or(&("ms", 1));
    format!("{}{name}", span / millis)
}

fn parse_fraction(text: &[u8]) -> Option<(Millis, &[u8])> {
    let count = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (fraction, rest) = text.split_at_checked(count)?;
    let at = |place: usize| fraction.get(place).copied().unwrap_or(b'0');
    let millis = digits([at(0), at(1), at(2)])?;
    (count > 0).then_some((millis, rest))
}

fn parse_offset(text: &[u8]) -> Option<Millis> {
    match *text {
        [b'Z' | b'z'] => Some(0),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hour, minute) = (digits([h1, h2])?, digits([m1, m2])?);
            let offset = hour * HOUR + minute * MINUTE;
            (hour <= 23 && minute <= 59).then_some(if sign == b'-' { -offset } else { offset })
        }
        _ => None,
    }
}

fn digits<const N: usize>(bytes: [u8; N]) -> Option<Millis> {
    // Judged once at the end: no branch per digit, for this is done for every event.
    let (mut number, mut valid) = (0, true);
    for byte in bytes {
        let digit = byte.wrapping_sub(b'0');
        valid &= digit <= 9;
        number = number * 10 + u32::from(digit);
    }
    valid.then_some(number.into())
}

/// The days of a year that is no leap year before each month, and all of them.
const DAYS_BEFORE: [i64; 13] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365];

/// Days from 1970-01-01 to a date of the proleptic Gregorian calendar, year 0 to 9999; `None` if there is none.
fn day_number(year: i64, month: i64, day: i64) -> Option<i64> {
    let index = usize::try_from(month).ok()?;
    let (before, after) = (*DAYS_BEFORE.get(index.checked_sub(1)?)?, *DAYS_BEFORE.get(index)?);
    let leap = i64::from(year % 4 == 0 && (year % 100 != 0 || year % 400 == 0));
    if day < 1 || after - before + if month == 2 { leap } else { 0 } < day {
        return None;
    }
    let leap_days = (year + 3) / 4 - (year + 99) / 100 + (year + 399) / 400 + if month > 2 { leap } else { 0 };
    Some(year * 365 + leap_days + before + day - 1 - 719_528)
}

/// The inverse of [`day_number`]: year, month, day.
fn civil(day_number: i64) -> (i64, i64, i64) {
    let days = day_number + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_instants() {
        let cases = [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2026-01-01T04:00:00.000Z", Some(1_767_240_000_000)),
            ("2026-01-01T04:00:00Z", Some(1_767_240_000_000)),
            ("2026-01-01t04:00:00z", Some(1_767_240_000_000)),
            ("2026-01-01T05:30:00+01:30", Some(1_767_240_000_000)),
            ("2025-12-31T20:00:00.000-08:00", Some(1_767_240_000_000)),
            ("2026-01-01T04:00:00-00:00", Some(1_767_240_000_000)),
            ("2026-01-01T04:00:00.5Z", Some(1_767_240_000_500)),
            ("2026-01-01T04:00:00.1239999999Z", Some(1_767_240_000_123)),
            ("2026-01-01T04:00:00.123456+00:00", Some(1_767_240_000_123)),
            ("1969-12-31T23:59:59.9999Z", Some(-1)),
            ("2000-02-29T00:00:00Z", Some(951_782_400_000)),
            ("2024-02-29T23:59:59.999Z", Some(1_709_251_199_999)),
            ("0000-01-01T00:00:00Z", Some(-62_167_219_200_000)),
            ("9999-12-31T23:59:59.999Z", Some(253_402_300_799_999)),
            ("2026-02-29T00:00:00Z", None),
            ("1900-02-29T00:00:00Z", None),
            ("2026-13-01T00:00:00Z", None),
            ("2026-00-01T00:00:00Z", None),
            ("2026-04-31T00:00:00Z", None),
            ("2026-01-00T00:00:00Z", None),
            ("2026-01-01T24:00:00Z", None),
            ("2026-01-01T00:60:00Z", None),
            ("2016-12-31T23:59:60Z", None),
            ("2026-01-01T00:00:00", None),
            ("2026-01-01T00:00:00.Z", None),
            ("2026-01-01T00:00:00.12a4Z", None),
            ("2026-01-01 00:00:00Z", None),
            ("2026-01-01T00:00:00+0100", None),
            ("2026-01-01T00:00:00+24:00", None),
            ("2026-01-01T00:00:00+01:60", None),
            ("2026-01-01T00:00Z", None),
            ("2026-01-01", None),
            ("20260101T000000Z", None),
            ("2026-01-01T00:00:00Z ", None),
            ("２026-01-01T00:00:00Z", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_instant(text), expected, "{text}");
        }
    }

    #[test]
    fn every_day_prints_and_reads_back() {
        for day in -719_528..2_932_897i64 {
            let (year, month, date) = civil(day);
            assert_eq!(day_number(year, month, date), Some(day), "{year}-{month}-{date}");
        }
        for time in [0, -1, 951_782_399_999, 1_767_240_000_123, 4_102_444_799_999] {
            assert_eq!(parse_instant(&format_instant(time)), Some(time));
        }
        assert_eq!(format_instant(1_767_240_000_007), "2026-01-01T04:00:00.007Z");
        assert!(!format_instant(Millis::MIN).is_empty() && !format_instant(Millis::MAX).is_empty());
    }

    #[test]
    fn range_is_half_open() {
        let edges = ["2000-01-01T00:00:00Z", "2099-12-31T23:59:59.999Z"].map(|text| parse_instant(text).unwrap());
        assert!(edges.map(in_range) == [true, true]);
        assert!(!in_range(edges[0] - 1) && !in_range(edges[1] + 1));
    }

    #[test]
    fn reads_spans() {
        let cases = [
            ("0s", Some(0), "0ms"),
            ("250ms", Some(250), "250ms"),
            ("5s", Some(5_000), "5s"),
            ("30m", Some(1_800_000), "30m"),
            ("4h", Some(14_400_000), "4h"),
            ("24h", Some(86_400_000), "1d"),
            ("30d", Some(2_592_000_000), "30d"),
            ("007d", Some(604_800_000), "7d"),
            ("36525d", Some(SPAN_MAX), "36525d"),
        ];
        for (text, expected, printed) in cases {
            assert_eq!(parse_duration(text), expected, "{text}");
            assert_eq!(expected.map(print_duration).as_deref(), Some(printed), "{text}");
        }
        let none = ["", "5", "d", "-5m", "+5m", "1.5h", "5 m", "5w", "5M", "5min", "36526d", "99999999999999999999ms"];
        for text in none {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn reads_dates_and_clock_times() {
        assert_eq!(parse_date("2026-01-05"), Some(1_767_571_200_000));
        assert_eq!([parse_date("2026-1-5"), parse_date("2026-02-30"), parse_date("")], [None; 3]);
        assert_eq!(parse_clock_time("00:00"), Some(0));
        assert_eq!(parse_clock_time("22:00"), Some(1_320));
        assert_eq!(parse_clock_time("23:59"), Some(1_439));
        for text in ["24:00", "8:00", "08:60", "0800", "08:00:00", ""] {
            assert_eq!(parse_clock_time(text), None, "{text}");
        }
    }
}
