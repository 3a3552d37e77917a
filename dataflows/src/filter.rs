//! Filters: which calls a condition selects, whatever the definitions keep of them.

use std::sync::Arc;

use ecow::EcoString;

use crate::condition::{Condition, Path, Root};
use crate::event::{Call, Decoder, Event, Kind};
use crate::profile::people::kind_value;
use crate::time::Millis;
use crate::value::Value;
use crate::vocabulary::{NameId, Slot, Vocabulary};

/// A condition, and what reads of a call what it looks at.
#[derive(Debug)]
pub struct Filter {
    condition: Condition<Looked>,
    decoder: Decoder,
}

/// What a path of a filter reads.
#[derive(Clone, Debug)]
enum Looked {
    Event,
    Type,
    Slot(Slot),
}

impl Filter {
    /// A filter by a condition on calls alone: what is told or computed of a person is no part of a call. An error says
    /// what is wrong with the text.
    pub fn parse(text: &str) -> Result<Filter, String> {
        let condition = Condition::parse(text).map_err(|error| error.to_string())?;
        let mut strange = None;
        condition.paths(&mut |path: &Path| {
            if matches!(path.root, Root::Traits | Root::Computed) {
                strange.get_or_insert(path.to_string());
            }
        });
        if let Some(path) = strange {
            return Err(format!("`{path}` is of a person, not of an event: look at event, type, properties, context"));
        }
        // Names are not numbered, so that what is wanted is wanted of all calls.
        let mut vocabulary = Vocabulary::default();
        let condition = condition.map(&mut |path: Path| match path.root {
            Root::Event => Looked::Event,
            Root::Type => Looked::Type,
            _ => Looked::Slot(vocabulary.want(NameId::NONE, &path)),
        });
        Ok(Filter { condition, decoder: Decoder::new(Arc::new(vocabulary)) })
    }

    /// The event that a call is, and its name, if it is selected; and whether that is sure: of one whose body is not
    /// whole what is missing may have been there. The call has this time and this message id.
    pub fn select(
        &mut self,
        kind: Kind,
        body: &str,
        timestamp: Millis,
        message_id: &str,
        is_whole: bool,
    ) -> Option<(Event, EcoString, bool)> {
        let mut call = Call::parse(body, Some(kind)).ok()?;
        let name = EcoString::from(&*call.event);
        let event = self.decoder.event(&mut call, timestamp, message_id.into()).ok()?;
        let (named, values) = (Value::Text(name.clone()), event.values());
        let look = |looked: &Looked| match looked {
            Looked::Event => Some(&named),
            Looked::Type => Some(kind_value(kind)),
            Looked::Slot(slot) => values.iter().find(|(other, _)| other == slot).map(|(_, value)| value),
        };
        let holds = self.condition.judge(&look, &|looked| !is_whole && look(looked).is_none());
        (holds != Some(false)).then_some((event, name, holds.is_some()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_at_what_nobody_keeps() {
        let mut filter =
            Filter::parse(r#"event == "buy" && properties["Order ID"] > 2 && context.bot && type == "track""#).unwrap();
        let mut select = |kind, body| filter.select(kind, body, 5, "m", true).map(|(event, name, _)| (event.own, name));
        let body = r#"{"userId":"ada","event":"buy","properties":{"Order ID":3},"context":{"bot":true}}"#;
        assert_eq!(select(Kind::Track, body), Some(("ada".into(), "buy".into())));
        let other = body.replace('3', "2");
        assert_eq!(select(Kind::Track, &other), None);
        assert_eq!(select(Kind::Page, body), None);
        // Of what is left of a body nobody knows what else was in it.
        let left = r#"{"userId":"ada","event":"buy","properties":{"Order ID":3}}"#;
        let mut judge = |kind, body| filter.select(kind, body, 5, "m", false).map(|(_, _, is_sure)| is_sure);
        assert_eq!((judge(Kind::Track, left), judge(Kind::Track, body)), (Some(false), Some(true)));
        assert_eq!((judge(Kind::Page, left), judge(Kind::Track, &left.replace('3', "2"))), (None, None));
        assert!(Filter::parse("traits.plan == 1").unwrap_err().contains("`traits.plan` is of a person"));
        assert!(Filter::parse("event ==").is_err());
    }
}
