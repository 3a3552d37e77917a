//! Decimal numbers without floating point.
//!
//! In goes the text of a JSON number; out comes an integer of millionths (10^-6), rounded half away from zero.
//! Sums of them are `i128` millionths, credit and shares are `i128` billionths (10^-9); both print here.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A number as people sent it: a decimal in millionths (10^-6), within ±[`Number::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Number(pub i64);

impl Number {
    /// The largest number, 9·10^12; its negative is the smallest. Beyond them a number is only text.
    pub const MAX: Number = Number(9_000_000_000_000 * Self::ONE.0);

    /// The number 1: so many millionths make a whole.
    pub const ONE: Number = Number(1_000_000);

    /// Reads the text of a JSON number of any length, rounded to 6 places, half away from zero.
    ///
    /// `None` if the text is no JSON number, or if what it rounds to lies beyond ±[`Number::MAX`].
    pub fn parse(text: &str) -> Option<Number> {
        short(text.as_bytes()).or_else(|| Decimal::scan(text.as_bytes())?.millionths()).map(Number)
    }

    /// Whether the text has the form of a JSON number, however large.
    pub fn is_number(text: &str) -> bool {
        Decimal::scan(text.as_bytes()).is_some()
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&print_millionths(self.0.into()))
    }
}

/// `numerator / denominator`, rounded half away from zero.
///
/// # Panics
/// If the denominator is 0: what a quotient over zero means (null) is the caller's to say.
pub fn divide_rounded(numerator: i128, denominator: i128) -> i128 {
    assert!(denominator != 0, "a quotient over zero is null, and the caller says so");
    let (top, bottom) = (numerator.unsigned_abs(), denominator.unsigned_abs());
    let (whole, rest) = (top / bottom, top % bottom);
    // `rest >= bottom - rest` is `2·rest >= bottom` without the overflow.
    let magnitude = whole + u128::from(rest >= bottom - rest);
    let magnitude = i128::try_from(magnitude).unwrap_or(i128::MAX);
    if (numerator < 0) == (denominator < 0) { magnitude } else { -magnitude }
}

/// Prints millionths as a decimal: no exponent, no trailing zeros (`1500000` is `1.5`).
pub fn print_millionths(value: i128) -> String {
    print_scaled(value, 6)
}

/// Prints billionths as a decimal: no exponent, no trailing zeros (`-500000000` is `-0.5`).
pub fn print_billionths(value: i128) -> String {
    print_scaled(value, 9)
}

fn print_scaled(value: i128, places: usize) -> String {
    let scale = if places == 6 { 1_000_000 } else { 1_000_000_000 };
    let magnitude = value.unsigned_abs();
    let sign = if value < 0 { "-" } else { "" };
    let mut text = format!("{sign}{}.{:0places$}", magnitude / scale, magnitude % scale);
    text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    text
}

/// The millionths of a short number without exponent, as nearly all are; `None` says nothing about any other.
fn short(text: &[u8]) -> Option<i64> {
    let (negative, unsigned) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let (mut kept, mut places, mut point) = (0i64, 0u32, false);
    if unsigned.len() > 12 || !unsigned.first()?.is_ascii_digit() || !unsigned.last()?.is_ascii_digit() {
        return None;
    }
    for &byte in unsigned {
        let digit = byte.wrapping_sub(b'0');
        if digit <= 9 {
            kept = kept * 10 + i64::from(digit);
            places += u32::from(point);
        } else if byte == b'.' && !point {
            point = true;
        } else {
            return None;
        }
    }
    // A zero in front of other digits is for the long way to refuse.
    if unsigned.starts_with(b"0") && unsigned.len() > 1 && !unsigned.starts_with(b"0.") {
        return None;
    }
    let millionths = kept * 10i64.pow(6u32.checked_sub(places)?);
    Some(if negative { -millionths } else { millionths })
}

/// More digits than these never matter: 9·10^18 millionths have 19.
const DIGITS_MAX: i64 = 19;

/// Beyond any length of text: where an exponent stops growing.
const EXPONENT_MAX: i64 = 1_000_000_000_000_000;

/// A number text taken apart: `0.d1d2d3… · 10^point`, where d1 is the first digit that is not 0.
#[derive(Debug, Default)]
struct Decimal {
    negative: bool,
    /// The first digits, at most [`DIGITS_MAX`] of them.
    kept: u64,
    /// The digit after those, which decides the rounding when all of them are needed.
    next: u64,
    /// How many digits there are from d1 on.
    seen: i64,
    point: i64,
}

impl Decimal {
    fn scan(text: &[u8]) -> Option<Decimal> {
        let mut decimal = Decimal::default();
        let unsigned = text.strip_prefix(b"-");
        decimal.negative = unsigned.is_some();
        let (whole, mut rest) = digits(unsigned.unwrap_or(text));
        if whole.is_empty() || (whole.len() > 1 && whole.starts_with(b"0")) {
            return None;
        }
        for &digit in whole {
            decimal.push(digit);
        }
        decimal.point = decimal.seen;
        if let Some(tail) = rest.strip_prefix(b".") {
            let (fraction, tail) = digits(tail);
            if fraction.is_empty() {
                return None;
            }
            for &digit in fraction {
                decimal.push(digit);
                decimal.point -= i64::from(decimal.seen == 0);
            }
            rest = tail;
        }
        if let [b'e' | b'E', tail @ ..] = rest {
            let (exponent, tail) = exponent(tail)?;
            decimal.point += exponent;
            rest = tail;
        }
        rest.is_empty().then_some(decimal)
    }

    fn push(&mut self, digit: u8) {
        let digit = u64::from(digit - b'0');
        if self.seen < DIGITS_MAX {
            self.kept = self.kept * 10 + digit;
        } else if self.seen == DIGITS_MAX {
            self.next = digit;
        }
        self.seen += i64::from(self.kept != 0);
    }

    fn millionths(&self) -> Option<i64> {
        // So many digits stand before the point once the unit is the millionth.
        let wanted = self.point + 6;
        let kept_digits = self.seen.min(DIGITS_MAX);
        let magnitude = if self.kept == 0 || wanted < 0 {
            0
        } else if wanted > DIGITS_MAX {
            return None;
        } else if wanted < kept_digits {
            // Half away from zero looks at the first dropped digit alone, so digits not kept do not matter.
            let divisor = 10u64.pow(u32::try_from(kept_digits - wanted).ok()?);
            (self.kept + divisor / 2) / divisor
        } else {
            self.kept * 10u64.pow(u32::try_from(wanted - kept_digits).ok()?) + u64::from(self.next >= 5)
        };
        let magnitude = i64::try_from(magnitude).ok().filter(|m| *m <= Number::MAX.0)?;
        Some(if self.negative { -magnitude } else { magnitude })
    }
}

fn digits(text: &[u8]) -> (&[u8], &[u8]) {
    let count = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    text.split_at(count)
}

fn exponent(text: &[u8]) -> Option<(i64, &[u8])> {
    let (negative, unsigned) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    let (digits, rest) = digits(unsigned);
    if digits.is_empty() {
        return None;
    }
    let magnitude = digits.iter().fold(0, |sum: i64, digit| (sum * 10 + i64::from(digit - b'0')).min(EXPONENT_MAX));
    Some((if negative { -magnitude } else { magnitude }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_prints() {
        let zeros = "0".repeat(1000);
        let cases = [
            ("0", Some("0")),
            ("-0", Some("0")),
            ("-0.0000001", Some("0")),
            ("7", Some("7")),
            ("-12.5", Some("-12.5")),
            ("39.90", Some("39.9")),
            ("0.1", Some("0.1")),
            ("0.000001", Some("0.000001")),
            ("0.0000005", Some("0.000001")),
            ("0.00000049999999999999999999999", Some("0")),
            ("-0.0000005", Some("-0.000001")),
            ("1.2345675", Some("1.234568")),
            ("1.23456749999999999999999999", Some("1.234567")),
            ("-2.5000005", Some("-2.500001")),
            ("1e3", Some("1000")),
            ("1.5E-3", Some("0.0015")),
            ("12345678e-6", Some("12.345678")),
            ("4e+2", Some("400")),
            ("5e-7", Some("0.000001")),
            ("4e-7", Some("0")),
            ("5e-8", Some("0")),
            ("0e99999999999999999999999", Some("0")),
            ("1e-99999999999999999999999", Some("0")),
            ("1e400", None),
            ("9000000000000", Some("9000000000000")),
            ("-9e12", Some("-9000000000000")),
            ("9000000000000.0000004", Some("9000000000000")),
            ("9000000000000.0000005", None),
            ("9000000000000.000001", None),
            ("9000000000001", None),
            ("-9000000000001", None),
            ("8999999999999.9999994", Some("8999999999999.999999")),
            ("8999999999999.99999950", Some("9000000000000")),
            ("1234567890123.4567894", Some("1234567890123.456789")),
            ("1234567890123.4567895", Some("1234567890123.45679")),
            ("99999999999999999999", None),
            ("", None),
            ("-", None),
            ("+1", None),
            ("01", None),
            ("-00", None),
            (".5", None),
            ("1.", None),
            ("1e", None),
            ("1e+", None),
            ("1 ", None),
            ("0x10", None),
            ("NaN", None),
            ("1.5.5", None),
        ];
        for (text, expected) in cases {
            assert_eq!(Number::parse(text).map(|n| n.to_string()).as_deref(), expected, "{text}");
        }
        assert_eq!(Number::parse(&format!("1{zeros}e-1000")), Some(Number::ONE));
        assert_eq!(Number::parse(&format!("0.{zeros}25e1000")), Number::parse("0.25"));
        assert_eq!(Number::parse(&format!("-3.{zeros}")), Number::parse("-3"));
        assert_eq!(Number::parse(&format!("1{zeros}")), None);
    }

    #[test]
    fn tells_huge_numbers_from_no_numbers() {
        assert!(Number::is_number("1e400") && Number::is_number("99999999999999999999"));
        assert!(!Number::is_number("1e") && !Number::is_number("0x10") && !Number::is_number(""));
    }

    /// Against long division by hand, on every length around the border of the kept digits.
    #[test]
    fn agrees_with_exact_rounding() {
        let mut state = 7u64;
        for round in 0..20_000u32 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mantissa = i128::from(state) * i128::from(state >> 7) % 10i128.pow(2 + round % 26);
            let places = (state >> 33) as u32 % 24;
            let text = format!("{}{mantissa}e-{places}", if state & 1 == 1 { "-" } else { "" });
            let signed = if state & 1 == 1 { -mantissa } else { mantissa };
            let exact = divide_rounded(signed * 1_000_000, 10i128.pow(places));
            let expected = i64::try_from(exact).ok().filter(|n| n.abs() <= Number::MAX.0).map(Number);
            assert_eq!(Number::parse(&text), expected, "{text}");
        }
    }

    #[test]
    fn divides_half_away_from_zero() {
        let cases = [(7, 2, 4), (-7, 2, -4), (7, -2, -4), (-7, -2, 4), (1, 3, 0), (2, 3, 1), (0, 5, 0), (-1, 3, 0)];
        for (numerator, denominator, expected) in cases {
            assert_eq!(divide_rounded(numerator, denominator), expected, "{numerator}/{denominator}");
        }
        assert_eq!(divide_rounded(i128::MIN, -1), i128::MAX);
        assert_eq!(divide_rounded(i128::MAX, i128::MAX), 1);
    }

    #[test]
    fn prints_without_trailing_zeros() {
        assert_eq!(print_billionths(-500_000_000), "-0.5");
        assert_eq!(print_billionths(0), "0");
        assert_eq!(print_billionths(333_333_333), "0.333333333");
        assert_eq!(print_millionths(100_000_000), "100");
        assert_eq!(print_millionths(i128::MIN), "-170141183460469231731687303715884.105728");
    }
}
