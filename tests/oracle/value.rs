//! The values that conditions, traits and rules see: JSON with numbers already read to millionths.

use super::json::Json;
use super::number;
use std::cmp::Ordering;

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Absent or null.
    Nothing,
    Bool(bool),
    /// In millionths.
    Number(i128),
    Text(String),
    /// Lists, objects and numbers out of range: present, but equal to nothing.
    Other(Json),
}

impl Value {
    pub fn of(json: &Json) -> Value {
        match json {
            Json::Null => Value::Nothing,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(text) => number::millionths(text).map_or(Value::Other(json.clone()), Value::Number),
            Json::Text(text) => Value::Text(text.clone()),
            other => Value::Other(other.clone()),
        }
    }

    pub fn whole(n: usize) -> Value {
        Value::Number(n as i128 * number::MILLION)
    }

    pub fn is_nothing(&self) -> bool {
        *self == Value::Nothing
    }

    pub fn is_true(&self) -> bool {
        *self == Value::Bool(true)
    }

    pub fn number(&self) -> Option<i128> {
        match self {
            Value::Number(value) => Some(*value),
            _ => None,
        }
    }

    /// A boolean, a number in range or a string.
    pub fn is_scalar(&self) -> bool {
        self.rank().is_some()
    }

    /// A number out of range is not a number, and nothing else either.
    pub fn is_beyond(&self) -> bool {
        matches!(self, Value::Other(Json::Number(_)))
    }

    /// Mixed types order bool < number < string.
    fn rank(&self) -> Option<u8> {
        match self {
            Value::Bool(_) => Some(0),
            Value::Number(_) => Some(1),
            Value::Text(_) => Some(2),
            _ => None,
        }
    }

    /// Equality of two scalars of one type; all else is unequal.
    pub fn same(&self, other: &Value) -> bool {
        self.is_scalar() && self == other
    }

    /// The order that `<` knows: numbers, and strings by their UTF-8 bytes.
    pub fn order(&self, other: &Value) -> Option<Ordering> {
        match (self, other) {
            (Value::Number(a), Value::Number(b)) => Some(a.cmp(b)),
            (Value::Text(a), Value::Text(b)) => Some(a.as_bytes().cmp(b.as_bytes())),
            _ => None,
        }
    }

    /// The order over all scalars, for ties.
    pub fn total_order(&self, other: &Value) -> Ordering {
        match (self, other) {
            (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
            _ => self.order(other).unwrap_or(self.rank().cmp(&other.rank())),
        }
    }

    /// As JSON.
    pub fn print(&self) -> String {
        match self {
            Value::Nothing => "null".to_string(),
            Value::Bool(value) => value.to_string(),
            Value::Number(value) => number::decimal(*value, 6),
            Value::Text(text) => super::json::quote(text),
            Value::Other(json) => json.print(),
        }
    }

    /// As the name of a channel or campaign; lists and objects have none.
    pub fn label(&self) -> Option<String> {
        match self {
            Value::Text(text) => Some(text.clone()),
            Value::Bool(_) | Value::Number(_) => Some(self.print()),
            Value::Other(Json::Number(text)) => Some(number::plain(text)),
            _ => None,
        }
    }
}
