//! Striking: who was erased goes out of what others sent, too.
//!
//! Meant is what names them exactly: a text anywhere in `properties`, `traits` or `context` that equals an erased id,
//! and `anonymousId`, `previousId`, `groupId`. It becomes null. Names stay: keys, what happened, message ids; and so do
//! longer texts in which an id occurs. Read again from its struck body, an event is what it was made here.

use std::ops::Range;

use crate::event::{Consent, ConsentSource, Context, Details, Event};
use crate::json::{Fault, Next, Reader};
use crate::value::Value;

/// What is asked of an id: whether it was erased.
pub type Gone<'g> = &'g dyn Fn(&str) -> bool;

/// Members of a call that are no ids, and by which it is known.
const NAMES: [&str; 4] = ["type", "event", "messageId", "userId"];
/// Members that are ids: an integer too.
const IDS: [&str; 3] = ["anonymousId", "previousId", "groupId"];

/// A call's body without what names an erased id; none: nothing in it does.
pub fn call(body: &str, gone: Gone<'_>) -> Result<Option<String>, Fault> {
    let mut found = Vec::new();
    Reader::new(body).object(|reader, key| {
        let next = reader.peek()?;
        let start = reader.place();
        match next {
            _ if NAMES.contains(&&*key) => drop(reader.skip()?),
            Next::Number if IDS.contains(&&*key) => {
                if gone(reader.number()?) {
                    found.push(start..reader.place());
                }
            }
            _ => find(reader, gone, &mut found)?,
        }
        Ok(())
    })?;
    Ok(with_nulls(body, &found))
}

/// A JSON text with null for each text in it that is an erased id; none: no text is.
pub fn json(text: &str, gone: Gone<'_>) -> Result<Option<String>, Fault> {
    let (mut reader, mut found) = (Reader::new(text), Vec::new());
    find(&mut reader, gone, &mut found)?;
    reader.end()?;
    Ok(with_nulls(text, &found))
}

fn find(reader: &mut Reader<'_>, gone: Gone<'_>, found: &mut Vec<Range<usize>>) -> Result<(), Fault> {
    match reader.peek()? {
        Next::Text => {
            let start = reader.place();
            if gone(&reader.text()?) {
                found.push(start..reader.place());
            }
            Ok(())
        }
        Next::List => reader.list(|reader| find(reader, gone, found)),
        Next::Object => reader.object(|reader, _| find(reader, gone, found)),
        _ => reader.skip().map(|_| ()),
    }
}

/// Whether a JSON text has one of the ids anywhere, as a text or where an id stands.
pub fn is_in_json(text: &str, gone: Gone<'_>) -> Result<bool, Fault> {
    fn seek(reader: &mut Reader<'_>, is_id: bool, gone: Gone<'_>) -> Result<bool, Fault> {
        let mut found = false;
        match reader.peek()? {
            Next::Text => found = gone(&reader.text()?),
            Next::Number if is_id => found = gone(reader.number()?),
            Next::List => reader.list(|reader| seek(reader, false, gone).map(|here| found |= here))?,
            Next::Object => reader.object(|reader, key| {
                let is_id = key == "userId" || IDS.contains(&&*key);
                seek(reader, is_id, gone).map(|here| found |= here)
            })?,
            _ => drop(reader.skip()?),
        }
        Ok(found)
    }
    let mut reader = Reader::new(text);
    let found = seek(&mut reader, false, gone)?;
    reader.end().map(|()| found)
}

fn with_nulls(text: &str, found: &[Range<usize>]) -> Option<String> {
    let mut struck = text.to_owned();
    for part in found.iter().rev() {
        struck.replace_range(part.clone(), "null");
    }
    (!found.is_empty()).then_some(struck)
}

/// Whether what is kept of an event names an erased id.
pub fn names(event: &Event, gone: Gone<'_>) -> bool {
    event.details.as_ref().is_some_and(|details| without(details, gone).is_some())
}

/// What an event carries, without what names an erased id; none: nothing does.
pub fn without(details: &Details, gone: Gone<'_>) -> Option<Details> {
    let Details { values, context, .. } = details;
    let text = |text: &Option<ecow::EcoString>| text.as_ref().is_some_and(|text| gone(text));
    let told = |json: &str| self::json(json, gone).ok().flatten();
    let Context { page, device, os, timezone, utm, told: traits, .. } = context;
    // RudderStack's purposes are texts, where others' are keys.
    let is_listed = |of: &Consent| of.source == ConsentSource::RudderStack && gone(&of.purpose);
    let is_named = values.iter().any(|(_, value)| is_in(value, gone))
        || [page, device, os, timezone].into_iter().any(text)
        || utm.as_ref().is_some_and(|(channel, campaign)| text(channel) || text(campaign))
        || context.consent.iter().any(is_listed)
        || traits.iter().any(|(_, json)| told(json).is_some());
    if !is_named {
        return None;
    }
    let mut context = context.clone();
    context.consent.retain(|consent| !is_listed(consent));
    for part in [&mut context.page, &mut context.device, &mut context.os, &mut context.timezone] {
        *part = part.take().filter(|text| !gone(text));
    }
    let utm = context.utm.take().map(|(channel, campaign)| {
        (channel.filter(|channel| !gone(channel)), campaign.filter(|campaign| !gone(campaign)))
    });
    context.utm = utm.filter(|(channel, campaign)| channel.is_some() || campaign.is_some());
    for (_, json) in &mut context.told {
        if let Some(struck) = told(json) {
            *json = struck.into();
        }
    }
    let mut values = values.clone();
    values.iter_mut().for_each(|(_, value)| strike(value, gone));
    let tells = context.timezone.is_some() || !context.consent.is_empty() || !context.told.is_empty();
    Some(Details { values, context, tells })
}

fn is_in(value: &Value, gone: Gone<'_>) -> bool {
    match value {
        Value::Text(text) => gone(text),
        Value::List(items) => items.iter().any(|item| is_in(item, gone)),
        _ => false,
    }
}

fn strike(value: &mut Value, gone: Gone<'_>) {
    match value {
        Value::Text(text) if gone(text) => *value = Value::Null,
        Value::List(items) => items.iter_mut().for_each(|item| strike(item, gone)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::definitions::Definitions;
    use crate::event::{Call, Decoder};
    use crate::plan::Plan;

    const YAML: &str = "
version: 1
touchpoints: [ { event: shared, channel: properties.by, campaign: properties.of } ]
traits: { with: { last: properties.with, of: shared }, deep: { unique: context.app.user, of: shared } }
";

    fn gone(id: &str) -> bool {
        ["ada", "7", "ph\"one"].contains(&id)
    }

    #[test]
    fn a_struck_event_is_what_its_struck_body_says() {
        let plan = Plan::new(Arc::new(Definitions::parse(YAML).expect("it is right").0));
        let mut decoder = Decoder::new(Arc::clone(&plan.vocabulary));
        let mut read = |body: &str| {
            let mut call = Call::parse(body, None).expect("a call");
            decoder.event(&mut call, 5, "m".into()).expect("an event")
        };
        for (body, struck) in [
            (
                r#"{"type":"track","event":"shared","userId":"bob","anonymousId":7,"messageId":"ada",
                    "properties":{"by":"ada","of":"ada's","with":["x","ada",7,["\u0061da"]],"ada":"ph\"one"}}"#,
                r#"{"type":"track","event":"shared","userId":"bob","anonymousId":null,"messageId":"ada",
                    "properties":{"by":null,"of":"ada's","with":["x",null,7,[null]],"ada":null}}"#,
            ),
            (
                r#"{"type":"track","event":"shared","userId":"bob","properties":{"page":"ada"},"context":{"app":
                    {"user":"ada"},"timezone":"ada","os":{"name":"ada"},"campaign":{"name":"spring","medium":"ada"}}}"#,
                r#"{"type":"track","event":"shared","userId":"bob","properties":{"page":null},"context":{"app":
                    {"user":null},"timezone":null,"os":{"name":null},"campaign":{"name":"spring","medium":null}}}"#,
            ),
            (
                r#"{"type":"page","userId":"bob","context":{"consent":{"categoryPreferences":{"ada":true}},
                    "consentManagement":{"allowedConsentIds":["ada","7"],"deniedConsentIds":["x"]}}}"#,
                r#"{"type":"page","userId":"bob","context":{"consent":{"categoryPreferences":{"ada":true}},
                    "consentManagement":{"allowedConsentIds":[null,null],"deniedConsentIds":["x"]}}}"#,
            ),
            (
                r#"{"type":"identify","userId":"bob","traits":{"friend":"ada","all":{"of":["ada",1]},"age":7}}"#,
                r#"{"type":"identify","userId":"bob","traits":{"friend":null,"all":{"of":[null,1]},"age":7}}"#,
            ),
        ] {
            assert_eq!(call(body, &gone).expect("JSON").as_deref(), Some(struck));
            assert_eq!(call(struck, &gone), Ok(None));
            let (before, after) = (read(body), read(struck));
            let details = before.details.as_ref().expect("it carries something");
            assert_eq!(without(details, &gone).as_ref(), after.details.as_deref(), "{body}");
            assert!(names(&before, &gone) && !names(&after, &gone));
        }
    }
}
