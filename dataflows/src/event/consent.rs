//! Consent, as calls tell of it: in Segment's, RudderStack's and Google's fields.

use ecow::EcoString;
use serde::{Deserialize, Serialize};

use super::text;
use crate::json::{Fault, Next, Reader};

/// An answer to whether something may be done with what is known of a person.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Consent {
    /// What may be done.
    pub purpose: EcoString,
    /// Whether it may.
    pub granted: bool,
    /// Where the call says so.
    pub source: ConsentSource,
}

/// Whose fields tell of consent. Where a call has several for one purpose, the first of these counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsentSource {
    /// `context.consent.categoryPreferences`
    Segment,
    /// `context.consentManagement`
    RudderStack,
    /// `ad_storage` and the like, in `context.consent` or `consent`.
    Google,
}

/// The purposes of Google's consent mode.
const GOOGLE_PURPOSES: [&str; 7] = [
    "ad_storage",
    "ad_user_data",
    "ad_personalization",
    "analytics_storage",
    "functionality_storage",
    "personalization_storage",
    "security_storage",
];

/// Segment's `categoryPreferences`, and the purposes of Google's consent mode beside them.
pub(super) fn read(reader: &mut Reader<'_>, consent: &mut Vec<Consent>) -> Result<(), Fault> {
    if reader.peek()? != Next::Object {
        return reader.skip().map(|_| ());
    }
    reader.object(|reader, key| match reader.peek()? {
        Next::Object if key == "categoryPreferences" => reader.object(|reader, purpose| {
            if reader.peek()? == Next::Bool {
                let (granted, source) = (reader.bool()?, ConsentSource::Segment);
                consent.push(Consent { purpose: purpose.into(), granted, source });
                return Ok(());
            }
            reader.skip().map(|_| ())
        }),
        Next::Text if GOOGLE_PURPOSES.contains(&&*key) => {
            let answer = reader.text()?;
            let granted = answer.eq_ignore_ascii_case("granted");
            if granted || answer.eq_ignore_ascii_case("denied") {
                consent.push(Consent { purpose: key.into(), granted, source: ConsentSource::Google });
            }
            Ok(())
        }
        _ => reader.skip().map(|_| ()),
    })
}

/// RudderStack's lists of what is allowed and what is denied. What stands in both is denied.
pub(super) fn read_management(reader: &mut Reader<'_>, consent: &mut Vec<Consent>) -> Result<(), Fault> {
    if reader.peek()? != Next::Object {
        return reader.skip().map(|_| ());
    }
    let (mut allowed, mut denied) = (Vec::new(), Vec::new());
    reader.object(|reader, key| {
        let (into, granted) = match &*key {
            "allowedConsentIds" => (&mut allowed, true),
            "deniedConsentIds" => (&mut denied, false),
            _ => return reader.skip().map(|_| ()),
        };
        if reader.peek()? != Next::List {
            return reader.skip().map(|_| ());
        }
        reader.list(|reader| {
            let source = ConsentSource::RudderStack;
            into.extend(text(reader)?.map(|purpose| Consent { purpose: purpose.into(), granted, source }));
            Ok(())
        })
    })?;
    consent.append(&mut allowed);
    consent.append(&mut denied);
    Ok(())
}

/// Of all that was read, in the order in which it was: each purpose once.
pub(super) fn settle(consent: &mut Vec<Consent>) {
    // Of what one source says twice, the last: it was put first.
    consent.reverse();
    consent.sort_by(|a, b| (&a.purpose, a.source).cmp(&(&b.purpose, b.source)));
    consent.dedup_by(|next, first| next.purpose == first.purpose);
}

#[cfg(test)]
mod tests {
    use crate::event::Call;

    #[test]
    fn consent_is_told_by_several_and_the_first_of_them_counts() {
        let read = |members: &str| {
            let text = format!(r#"{{"type":"page","userId":"ada",{members}}}"#);
            let consent = Call::parse(&text, None).expect("a call").surroundings.consent;
            let told = consent.iter().map(|of| format!("{}:{}:{:?}", of.purpose, of.granted, of.source));
            told.collect::<Vec<_>>().join(" ")
        };
        let segment =
            r#""consent":{"categoryPreferences":{"ads":true,"b":1,"ads":false},"ad_storage":"GRANTED","x":"denied"}"#;
        assert_eq!(read(&format!(r#""context":{{{segment}}}"#)), "ad_storage:true:Google ads:false:Segment");
        let rudder = r#""consentManagement":{"deniedConsentIds":["b"],"allowedConsentIds":["a","b",7,"ads"]}"#;
        assert_eq!(
            read(&format!(r#""context":{{{rudder},{segment}}}"#)),
            "a:true:RudderStack ad_storage:true:Google ads:false:Segment b:false:RudderStack"
        );
        let google = r#""consent":{"ad_user_data":"denied","ad_storage":"Denied","categoryPreferences":{"a":true}}"#;
        assert_eq!(
            read(&format!(r#"{google},"context":{{{segment}}}"#)),
            "ad_storage:false:Google ad_user_data:false:Google ads:false:Segment"
        );
        assert_eq!(
            read(r#""consent":["ads"],"context":{"consent":"all","consentManagement":{"allowedConsentIds":7}}"#),
            ""
        );
    }
}
