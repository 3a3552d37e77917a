//! The values that events carry, as far as conditions, computed traits and ids look at them.
//!
//! In goes one JSON value of an event; out comes a small ordered value that can be kept, compared and sent on.

use ecow::EcoString;
use serde::{Deserialize, Serialize};

use crate::number::Number;

/// One JSON value. The order among scalars is bool < number < string, as `unique` and `most_frequent` need it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub enum Value {
    /// JSON null: a condition takes it for absent.
    #[default]
    Null,
    /// A boolean.
    Bool(bool),
    /// A number within range, as a decimal of 6 places.
    Number(Number),
    /// A string, ordered by its UTF-8 bytes.
    Text(EcoString),
    /// A JSON number beyond the range of [`Number`], by its text: not a number to any comparison, yet it can be an id.
    Huge(EcoString),
    /// An array.
    List(Box<[Value]>),
    /// An object: present, and opaque. What lies inside is reached by its own path.
    Object,
}

impl Value {
    /// The value of a JSON number's text: [`Value::Huge`] beyond the range of [`Number`].
    pub fn number(text: &str) -> Value {
        Number::parse(text).map_or_else(|| Value::Huge(text.into()), Value::Number)
    }

    /// The value of a string.
    pub fn text(text: &str) -> Value {
        Value::Text(text.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_are_ordered_by_kind_first() {
        let ordered = [
            Value::Null,
            Value::Bool(false),
            Value::Bool(true),
            Value::number("-2"),
            Value::number("10"),
            Value::text("1"),
            Value::text("Z"),
            Value::text("a"),
            Value::text("é"),
        ];
        assert!(ordered.is_sorted());
        assert_eq!(Value::number("1e13"), Value::Huge("1e13".into()));
        assert_eq!(Value::number("1.0"), Value::number("1"));
    }

    #[test]
    fn stays_small() {
        // A profile keeps many of them: a wider value is paid for in every one.
        assert!(size_of::<Value>() <= 32, "{}", size_of::<Value>());
    }
}
