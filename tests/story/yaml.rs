//! YAML as JSON values: what the files of stories need of it.

use granit_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// The one document of a text.
pub fn read(text: &str) -> Value {
    let mut events = Parser::new_from_str(text).map(|event| event.unwrap_or_else(|error| panic!("{error}")).0);
    let first = events.find(|event| !matches!(event, Event::StreamStart | Event::DocumentStart(..)));
    value(first.expect("a document holds something"), &mut events)
}

/// The value that begins with an event, the rest of it taken from those that follow.
fn value<'a>(first: Event<'a>, rest: &mut dyn Iterator<Item = Event<'a>>) -> Value {
    match first {
        Event::Scalar(text, ScalarStyle::Plain, ..) => plain(&text),
        Event::Scalar(text, ..) => Value::String(text.into_owned()),
        Event::SequenceStart(..) => {
            let mut items = Vec::new();
            while let Some(event) = rest.next().filter(|event| !matches!(event, Event::SequenceEnd)) {
                items.push(value(event, rest));
            }
            Value::Array(items)
        }
        Event::MappingStart(..) => {
            let mut entries = Map::new();
            while let Some(event) = rest.next().filter(|event| !matches!(event, Event::MappingEnd)) {
                let Event::Scalar(key, ..) = event else { panic!("a key is a single text, not {event:?}") };
                let value = value(rest.next().expect("a key has a value"), rest);
                assert!(entries.insert(key.clone().into_owned(), value).is_none(), "`{key}` is written twice");
            }
            Value::Object(entries)
        }
        other => panic!("stories do without {other:?}"),
    }
}

/// A text without quotes may be nothing, true, false or a number, as JSON writes them.
fn plain(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Null | Value::Bool(_) | Value::Number(_))) => value,
        _ if text == "~" || text.is_empty() => Value::Null,
        _ => Value::String(text.to_owned()),
    }
}
