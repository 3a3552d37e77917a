//! Decimal numbers: reading to millionths, exact quotients, printing without exponent or trailing zeros.

/// A number beyond this many millionths is not a number.
const LIMIT: i128 = 9_000_000_000_000 * MILLION;
pub const MILLION: i128 = 1_000_000;

/// The sign, the significant digits (no zeros at either end) and the power of ten they are scaled by.
fn split(text: &str) -> (bool, String, i64) {
    let negative = text.starts_with('-');
    let text = text.trim_start_matches('-');
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{whole}{fraction}");
    let mut power = exponent_of(exponent) - fraction.len() as i64;
    let digits = all.trim_start_matches('0');
    let kept = digits.trim_end_matches('0');
    power += (digits.len() - kept.len()) as i64;
    (negative && !kept.is_empty(), kept.to_string(), power)
}

/// Exponents too long for an integer are as good as a very large one.
fn exponent_of(text: &str) -> i64 {
    let far = if text.starts_with('-') { -1_000_000_000 } else { 1_000_000_000 };
    text.trim_start_matches('+').parse::<i64>().map_or(far, |e| e.clamp(-1_000_000_000, 1_000_000_000))
}

/// A JSON number in millionths, rounded half away from zero; none beyond the limit.
pub fn millionths(text: &str) -> Option<i128> {
    let (negative, digits, power) = split(text);
    let shift = power + 6;
    let value = if digits.is_empty() {
        0
    } else if shift >= 0 {
        if digits.len() as i64 + shift > 25 {
            return None;
        }
        digits.parse::<i128>().ok()? * 10i128.pow(shift as u32)
    } else {
        rounded(&digits, -shift)?
    };
    (value <= LIMIT).then_some(if negative { -value } else { value })
}

/// The digits without the last `cut`, rounded by the first one cut.
fn rounded(digits: &str, cut: i64) -> Option<i128> {
    let keep = digits.len() as i64 - cut;
    if keep < 0 {
        return Some(0);
    }
    if keep > 25 {
        return None;
    }
    let keep = keep as usize;
    let whole = if keep == 0 { 0 } else { digits[..keep].parse::<i128>().ok()? };
    Some(whole + i128::from(digits.as_bytes()[keep] >= b'5'))
}

/// The exact value of a JSON number in plain decimal digits.
pub fn plain(text: &str) -> String {
    let (negative, digits, power) = split(text);
    if digits.is_empty() {
        return "0".to_string();
    }
    let sign = if negative { "-" } else { "" };
    if power.abs() > 1000 {
        return format!("{sign}{digits}e{power}");
    }
    if power >= 0 {
        return format!("{sign}{digits}{}", "0".repeat(power as usize));
    }
    let places = -power as usize;
    let padded = format!("{}{digits}", "0".repeat((places + 1).saturating_sub(digits.len())));
    let (whole, fraction) = padded.split_at(padded.len() - places);
    format!("{sign}{whole}.{fraction}")
}

/// A scaled integer as a decimal: `decimal(1500000, 6)` is `1.5`.
pub fn decimal(value: i128, places: usize) -> String {
    plain(&format!("{value}e-{places}"))
}

/// A quotient of integers, rounded half away from zero.
pub fn quotient(above: i128, below: i128) -> i128 {
    let (a, b) = (above.abs(), below.abs());
    let magnitude = (2 * a + b) / (2 * b);
    if (above < 0) == (below < 0) { magnitude } else { -magnitude }
}
