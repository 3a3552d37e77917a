//! Pseudonyms: values that the definitions do not want kept give way, before anything is written down, to hashes under
//! the log's own key.
//!
//! Equal values have equal pseudonyms, so that whoever asks by a value finds what was kept under its pseudonym. Who has
//! the key can try values: it stands in the data directory.

use std::borrow::Cow;
use std::ops::Range;

use dataflows::condition::{Path, Root};
use dataflows::definitions::Privacy;
use dataflows::json::{Fault, Next, Reader, canonical};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// What is said of a body in which the values cannot be found.
pub const NOT_KEPT: &str = "; its body is not kept, since what of it is to be pseudonymised cannot be found in it";
/// How a pseudonym begins; 32 hexadecimal digits follow.
const MARK: &str = "p_";

/// The pseudonym of a value; what is one already stays.
pub fn of(value: &str, secret: &[u8; 16]) -> String {
    let digits = value.strip_prefix(MARK).filter(|digits| digits.len() == 32);
    if digits.is_some_and(|digits| digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))) {
        return value.to_owned();
    }
    MARK.to_owned() + &hash("pseudonym", value, secret)
}

/// Half of a keyed hash in hexadecimal digits. What it is for is hashed too, so that hashes for one thing tell nothing
/// about those for another.
pub fn hash(purpose: &str, value: impl AsRef<[u8]>, secret: &[u8; 16]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key of any length will do");
    mac.update(&[purpose.as_bytes(), b"\n", value.as_ref()].concat());
    mac.finalize().into_bytes()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A call with pseudonyms in the place of what is private.
pub fn call<'c>(body: &'c str, privacy: &Privacy, secret: &[u8; 16]) -> Result<Cow<'c, str>, Fault> {
    let paths = paths(privacy);
    let paths: Vec<&[&str]> = paths.iter().map(Vec::as_slice).collect();
    if paths.is_empty() {
        return Ok(body.into());
    }
    let (mut reader, mut found) = (Reader::new(body), Vec::new());
    find(&mut reader, &paths, secret, &mut found)?;
    reader.end()?;
    if found.is_empty() {
        return Ok(body.into());
    }
    let mut private = body.to_owned();
    for (range, pseudonym) in found.into_iter().rev() {
        private.replace_range(range, &format!("\"{pseudonym}\""));
    }
    Ok(private.into())
}

/// The keys that lead from a call to what is private. What is told of a person may stand in the context too.
fn paths(privacy: &Privacy) -> Vec<Vec<&str>> {
    let mut paths = Vec::new();
    for Path { root, keys } in &privacy.pseudonymise {
        let below = |roots: &[&'static str]| roots.iter().copied().chain(keys.iter().map(|key| key.as_str())).collect();
        match root {
            Root::Traits => paths.extend([below(&["traits"]), below(&["context", "traits"])]),
            Root::Context => paths.push(below(&["context"])),
            _ => paths.push(below(&["properties"])),
        }
    }
    if privacy.ids {
        paths.extend(["userId", "anonymousId", "previousId"].map(|id| vec![id]));
    }
    paths
}

/// Finds texts and numbers at paths and below them, also within lists.
fn find(
    reader: &mut Reader<'_>,
    paths: &[&[&str]],
    secret: &[u8; 16],
    found: &mut Vec<(Range<usize>, String)>,
) -> Result<(), Fault> {
    let is_private = paths.iter().any(|path| path.is_empty());
    let (next, start) = (reader.peek()?, reader.place());
    match next {
        Next::List => reader.list(|reader| find(reader, paths, secret, found)),
        Next::Object => reader.object(|reader, key| {
            let inside = |path: &&&[&str]| path.first().is_none_or(|first| *first == key);
            let inside: Vec<&[&str]> = paths.iter().filter(inside).map(|path| path.get(1..).unwrap_or(path)).collect();
            if inside.is_empty() { reader.skip().map(|_| ()) } else { find(reader, &inside, secret, found) }
        }),
        Next::Text if is_private => {
            let text = reader.text()?;
            // An id of no length is none.
            if !text.is_empty() {
                found.push((start..reader.place(), of(&text, secret)));
            }
            Ok(())
        }
        Next::Number if is_private => {
            let number = canonical(reader.number()?)?;
            found.push((start..reader.place(), of(&number, secret)));
            Ok(())
        }
        _ => reader.skip().map(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    use dataflows::definitions::Definitions;

    use super::*;

    const SECRET: [u8; 16] = [7; 16];

    fn privacy(paths: &str) -> Privacy {
        let text = format!("privacy: {{ pseudonymise: {paths} }}");
        Definitions::parse(&text).unwrap_or_else(|problems| panic!("{problems:?}")).0.privacy
    }

    #[test]
    fn what_is_private_gives_way_and_nothing_else_does() {
        let asked = privacy(r#"[context.ip, traits.email, 'properties["who is"]', userId, anonymousId]"#);
        let p = |value: &str| format!("\"{}\"", of(value, &SECRET));
        let body = r#"{ "userId" : 7, "anonymousId":"", "previousId":"a", "ip":"1.1.1.1", "traits":{"email":"\u0061@x"},
            "properties":[{"who is":{"a":[1.50,true,null,{"b":"c"}]},"other":"x"}],
            "context":{"ip":"1.1.1.1","ip":["2.2.2.2"],"traits":{"email":"a@x","age":3},"page":{"ip":"3.3.3.3"}} }"#;
        let expected = format!(
            r#"{{ "userId" : {}, "anonymousId":"", "previousId":{}, "ip":"1.1.1.1", "traits":{{"email":{email}}},
            "properties":[{{"who is":{{"a":[{},true,null,{{"b":{}}}]}},"other":"x"}}],
            "context":{{"ip":{ip},"ip":[{}],"traits":{{"email":{email},"age":3}},"page":{{"ip":"3.3.3.3"}}}} }}"#,
            p("7"),
            p("a"),
            p("1.5"),
            p("c"),
            p("2.2.2.2"),
            email = p("a@x"),
            ip = p("1.1.1.1"),
        );
        let private = call(body, &asked, &SECRET).expect("JSON");
        assert_eq!(private, expected);
        // What is a pseudonym stays.
        assert_eq!(call(&private, &asked, &SECRET).expect("JSON"), private);
        assert_eq!(call(body, &Privacy::default(), &SECRET).expect("JSON"), body);
        assert!(call("{} {}", &asked, &SECRET).is_err() && call("{", &asked, &SECRET).is_err());
    }

    #[test]
    fn pseudonyms_are_hashes_under_a_key() {
        // By `printf 'pseudonym\nada' | openssl dgst -sha256 -mac HMAC -macopt hexkey:07…07`.
        assert_eq!(of("ada", &SECRET), "p_b26a82a35be5436be756ab475c798a75");
        assert_ne!(of("ada", &[8; 16]), of("ada", &SECRET));
        assert_ne!(hash("audit", "ada", &SECRET), of("ada", &SECRET)[2..]);
        assert_ne!(of("p_0123456789abcdef0123456789ABCDEF", &SECRET), "p_0123456789abcdef0123456789ABCDEF");
    }
}
