//! Times and durations in integer milliseconds: RFC 3339, spans like `30m`, and quiet hours in fixed zones.

use super::json::Json;

pub const DAY: i64 = 86_400_000;
const HOUR: i64 = 3_600_000;
const MINUTE: i64 = 60_000;
/// 2000-01-01 and 2100-01-01: times outside are invalid.
const FIRST: i64 = 946_684_800_000;
const END: i64 = 4_102_444_800_000;
/// An integer below this is taken for seconds by mistake.
const SECONDS_BY_MISTAKE: i64 = 100_000_000_000;

/// A time as it may stand in an event or in the definitions.
pub fn read(value: &Json) -> Option<i64> {
    let time = match value {
        Json::Text(text) => rfc3339(text)?,
        _ => value.integer().filter(|ms| *ms >= SECONDS_BY_MISTAKE)?,
    };
    (FIRST..END).contains(&time).then_some(time)
}

/// `2026-01-05T09:00:00.123+02:00`; finer than milliseconds is cut.
pub fn rfc3339(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    if !text.is_ascii() || bytes.len() < 20 {
        return None;
    }
    if bytes[4] != b'-' || bytes[7] != b'-' || !matches!(bytes[10], b'T' | b't' | b' ') {
        return None;
    }
    if bytes[13] != b':' || bytes[16] != b':' {
        return None;
    }
    let date = date_ms(digits(&text[0..4])?, digits(&text[5..7])?, digits(&text[8..10])?)?;
    let clock = clock_ms(digits(&text[11..13])?, digits(&text[14..16])?, digits(&text[17..19])?)?;
    let (fraction, rest) = fraction_ms(&text[19..])?;
    Some(date + clock + fraction - offset(rest)?)
}

fn digits(text: &str) -> Option<i64> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

fn date_ms(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(1..=12).contains(&month) || day < 1 || day > month_days(year, month) {
        return None;
    }
    let years: i64 = (1970..year).map(year_days).sum::<i64>() - (year..1970).map(year_days).sum::<i64>();
    let months: i64 = (1..month).map(|m| month_days(year, m)).sum();
    Some((years + months + day - 1) * DAY)
}

fn year_days(year: i64) -> i64 {
    365 + i64::from(month_days(year, 2) == 29)
}

fn month_days(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn clock_ms(hour: i64, minute: i64, second: i64) -> Option<i64> {
    (hour < 24 && minute < 60 && second < 60).then_some(hour * HOUR + minute * MINUTE + second * 1000)
}

fn fraction_ms(text: &str) -> Option<(i64, &str)> {
    let Some(rest) = text.strip_prefix('.') else {
        return Some((0, text));
    };
    let length = rest.bytes().take_while(u8::is_ascii_digit).count();
    if length == 0 {
        return None;
    }
    let three: String = rest[..length].chars().chain("000".chars()).take(3).collect();
    Some((three.parse().ok()?, &rest[length..]))
}

/// `Z` or `+02:00`, in milliseconds east of UTC.
fn offset(text: &str) -> Option<i64> {
    if text == "Z" || text == "z" {
        return Some(0);
    }
    let bytes = text.as_bytes();
    if bytes.len() != 6 || bytes[3] != b':' {
        return None;
    }
    let span = clock_ms(digits(&text[1..3])?, digits(&text[4..6])?, 0)?;
    match bytes[0] {
        b'+' => Some(span),
        b'-' => Some(-span),
        _ => None,
    }
}

/// An integer and one of `ms s m h d`.
pub fn duration(text: &str) -> Option<i64> {
    let length = text.bytes().take_while(u8::is_ascii_digit).count();
    let unit = match &text[length..] {
        "ms" => 1,
        "s" => 1000,
        "m" => MINUTE,
        "h" => HOUR,
        "d" => DAY,
        _ => return None,
    };
    text[..length].parse::<i64>().ok()?.checked_mul(unit)
}

/// `22:00` in milliseconds of the day.
pub fn time_of_day(text: &str) -> Option<i64> {
    if text == "24:00" {
        return Some(DAY);
    }
    let (hour, minute) = text.split_once(':')?;
    clock_ms(digits(hour)?, digits(minute)?, 0)
}

/// The offset of the zones that need no table: UTC and fixed ones. None: no zone at all.
pub fn zone(name: &str) -> Option<i64> {
    const TABLED: [&str; 10] = [
        "Africa/",
        "America/",
        "Antarctica/",
        "Arctic/",
        "Asia/",
        "Atlantic/",
        "Australia/",
        "Europe/",
        "Indian/",
        "Pacific/",
    ];
    assert!(!TABLED.iter().any(|area| name.starts_with(area)), "the zone {name:?} needs a table");
    if matches!(name, "UTC" | "Etc/UTC" | "GMT" | "Etc/GMT") {
        return Some(0);
    }
    if let Some(hours) = name.strip_prefix("Etc/GMT") {
        // These names count hours west of Greenwich.
        let span: i64 = digits(hours.get(1..)?)? * HOUR;
        return match hours.as_bytes()[0] {
            b'+' => Some(-span),
            b'-' => Some(span),
            _ => None,
        };
    }
    offset(name)
}

/// The first instant from `t` on that is outside the quiet hours `[from, to)` of a zone.
pub fn after_quiet(t: i64, from: i64, to: i64, offset: i64) -> i64 {
    let local = t + offset;
    let (day, time) = (local.div_euclid(DAY) * DAY, local.rem_euclid(DAY));
    let end = if from < to {
        (time >= from && time < to).then_some(day + to)
    } else if from > to && time >= from {
        Some(day + DAY + to)
    } else {
        (from > to && time < to).then_some(day + to)
    };
    end.map_or(t, |end| end - offset)
}
