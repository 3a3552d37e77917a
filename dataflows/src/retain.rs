//! Retaining: what is left of a call's body when it is older than bodies are kept.
//!
//! Left is what those see who are to see it still: the ids, the event's name, what definitions name of it, and what is
//! kept of every call, whatever they name. Read again from what is left, an event is what it was. By what admission
//! knows it, its time and its message id stand beside the body.

use std::collections::BTreeSet;

use ecow::EcoString;

use crate::event::{Call, Kind};
use crate::json::{Fault, Next, Reader};
use crate::vocabulary::{NameId, Vocabulary};

/// What is kept of bodies.
#[derive(Clone, Debug, Default)]
pub struct Keep {
    /// What definitions name.
    pub vocabulary: Vocabulary,
    /// Paths from the top of a call that are kept of every call besides, with all that is below them.
    pub beside: BTreeSet<Vec<String>>,
}

/// Kept of every call.
const ALWAYS: [&[&str]; 8] = [
    &["userId"],
    &["anonymousId"],
    &["previousId"],
    &["event"],
    &["consent"],
    &["context", "consent"],
    &["context", "consentManagement"],
    &["context", "timezone"],
];
/// Kept of activity: what sessions and touches are told by.
const OF_ACTIVITY: [&[&str]; 10] = [
    &["name"],
    &["properties", "page"],
    &["properties", "path"],
    &["context", "userAgent"],
    &["context", "page", "path"],
    &["context", "device", "type"],
    &["context", "os", "name"],
    &["context", "campaign", "name"],
    &["context", "campaign", "source"],
    &["context", "campaign", "medium"],
];
/// Kept of identify calls.
const OF_IDENTIFY: [&[&str]; 2] = [&["traits"], &["context", "traits"]];

impl Keep {
    /// What is left of a call's body; none: it is no call.
    pub fn left(&self, body: &str, kind: Kind) -> Option<String> {
        let call = Call::parse(body, Some(kind)).ok()?;
        let name = if kind.is_activity() { self.vocabulary.name(&call.event) } else { NameId::NONE };
        let mut paths: Vec<Vec<&str>> = ALWAYS.iter().map(|path| path.to_vec()).collect();
        let more: &[&[&str]] = match kind {
            Kind::Identify => &OF_IDENTIFY,
            kind if kind.is_activity() => &OF_ACTIVITY,
            _ => &[],
        };
        paths.extend(more.iter().map(|path| path.to_vec()));
        for (root, wants) in
            [("properties", self.vocabulary.property_wants(name)), ("context", self.vocabulary.context_wants(name))]
        {
            let below = wants.iter().map(|(keys, _)| keys.iter().map(EcoString::as_str));
            paths.extend(below.map(|keys| [root].into_iter().chain(keys).collect()));
        }
        paths.extend(self.beside.iter().map(|path| path.iter().map(String::as_str).collect()));
        let paths: Vec<&[&str]> = paths.iter().map(Vec::as_slice).collect();
        along(&mut Reader::new(body), &paths).ok()
    }
}

/// An object without the members that are not on any of the paths. A member at the end of one is kept as it is.
fn along(reader: &mut Reader<'_>, paths: &[&[&str]]) -> Result<String, Fault> {
    let mut left = String::from("{");
    reader.object(|reader, key| {
        let further: Vec<&[&str]> = paths.iter().filter_map(|path| path.strip_prefix(&[&*key])).collect();
        let is_end = further.iter().any(|path| path.is_empty());
        let value = match reader.peek()? {
            Next::Object if !is_end && !further.is_empty() => Some(along(reader, &further)?),
            _ => Some(reader.skip()?.to_owned()).filter(|_| is_end),
        };
        if let Some(value) = value {
            let comma = if left.len() > 1 { "," } else { "" };
            let key = serde_json::to_string(&key).expect("a text is JSON");
            left.extend([comma, &key, ":", &value]);
        }
        Ok(())
    })?;
    left.push('}');
    Ok(left)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::definitions::Definitions;
    use crate::event::Decoder;
    use crate::plan::Plan;

    const YAML: &str = "
version: 1
touchpoints: [ { event: shared, channel: properties.by, campaign: 'properties[\"Of It\"].name' } ]
traits: { with: { last: properties.with, of: shared }, deep: { unique: context.app.user, of: page_view } }
";

    #[test]
    fn an_event_of_what_is_left_is_what_it_was() {
        let plan = Plan::new(Arc::new(Definitions::parse(YAML).expect("it is right").0));
        let mut decoder = Decoder::new(Arc::clone(&plan.vocabulary));
        let beside = BTreeSet::from([vec!["properties".to_owned(), "sku".to_owned()]]);
        let keep = Keep { vocabulary: (*plan.vocabulary).clone(), beside };
        for (kind, body, left) in [
            (
                Kind::Track,
                r#"{"type":"track","event":"shared","userId":7,"groupId":"g","sentAt":"x","messageId":"m","timestamp":
                    "2026-01-01T00:00:00Z","properties":{"secret":1,"by":"\u0061","Of It":{"name":"n","of":2},
                    "with":[{"a":1},
                    2.50],"sku":{"x":[1]},"by":"b"},"traits":{"secret":1},"context":{"ip":"1","userAgent":"curl/8",
                    "page":{"url":"u","path":"/"},"campaign":{"name":"spring","term":"t"},"app":{"user":1}}}"#,
                r#"{"event":"shared","userId":7,"properties":{"by":"\u0061","Of It":{"name":"n"},"with":[{"a":1},
                    2.50],"sku":{"x":[1]},"by":"b"},"context":{"userAgent":"curl/8","page":{"path":"/"},
                    "campaign":{"name":"spring"}}}"#,
            ),
            (
                Kind::Page,
                r#"{"anonymousId":"a","name":"home","properties":{"by":1,"page":"/x"},"context":{"app":{"user":1,"v":2},
                    "timezone":"UTC","traits":{"secret":1},"consent":{"ad_storage":"denied"}}}"#,
                r#"{"anonymousId":"a","name":"home","properties":{"page":"/x"},"context":{"app":{"user":1},
                    "timezone":"UTC","consent":{"ad_storage":"denied"}}}"#,
            ),
            (
                Kind::Identify,
                r#"{"userId":"b","anonymousId":"a","properties":{"by":1},"traits":{},"context":{"timezone":"UTC",
                    "traits":{"plan":{"is":1}},"device":{"type":"ios"}},"consent":{"ad_storage":"granted"}}"#,
                r#"{"userId":"b","anonymousId":"a","properties":{},"traits":{},"context":{
                    "timezone":"UTC","traits":{"plan":{"is":1}}},"consent":{"ad_storage":"granted"}}"#,
            ),
            (
                Kind::Alias,
                r#"{"userId":"b","previousId":"c","traits":{"secret":1},"context":null}"#,
                r#"{"userId":"b","previousId":"c"}"#,
            ),
        ] {
            let found = keep.left(body, kind).expect("a call");
            let plain = |text: &str| text.split('\n').map(str::trim).collect::<String>();
            assert_eq!(plain(&found), plain(left));
            assert_eq!(keep.left(&found, kind), Some(found.clone()), "nothing more goes");
            let mut read = |body: &str| {
                let mut call = Call::parse(body, Some(kind)).expect("a call");
                let link = call.link(5, &"m".into());
                let event = decoder.event(&mut call, 5, "m".into()).expect("an event");
                (event.own, event.name, event.known, event.details, link)
            };
            assert_eq!(read(body), read(&found), "{body}");
        }
    }
}
