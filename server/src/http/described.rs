//! How the doors are described: what many share, and the rules that hold of every answer. The rest stands at each door.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::response::Response;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, SchemaType};
use utoipa::openapi::{Content, Info, OpenApi, Paths, Ref, RefOr, Required, ResponseBuilder, Schema};
use utoipa::{IntoParams, IntoResponses, PartialSchema, ToSchema};

use crate::problem::Problem;

/// The description of all doors, before any is described.
pub(super) fn nothing_yet() -> OpenApi {
    let about = "A real-time marketing engine: events in, answers and triggers out. Every answer is a pure function of \
        the accepted records, the corrections made to them, the definitions, and the clock. Times are integer \
        milliseconds, positions are opaque, money and credit are decimal strings, and a field without value is null.";
    let mut info = Info::new("Thalweg", env!("CARGO_PKG_VERSION"));
    info.description = Some(about.into());
    let mut openapi = OpenApi::new(info, Paths::new());
    let components = openapi.components.get_or_insert_default();
    components.schemas.insert("Problem".into(), Problem::schema());
    let mut parts = Vec::new();
    Problem::schemas(&mut parts);
    components.schemas.extend(parts);
    openapi
}

macro_rules! in_paths {
    ($($name:ident $($key:literal $what:literal)*;)*) => {$(
        /// What stands in a path, described.
        pub(super) struct $name;
        impl IntoParams for $name {
            fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
                vec![$(parameter($key, $what, ParameterIn::Path)),*]
            }
        }
    )*};
}

in_paths! {
    ById "id" "Any id of the person.";
    ByName "name" "The name that the definitions give it.";
    ByKind "kind" "A key of the definitions file, such as `segments`."
        "name" "The name below it; where a kind is one document, any.";
    ByKey "key" "A write key.";
    ByErasure "id" "The erasure, as it was told when it began.";
    ByRequest "id" "The `subject_request_id` of a request.";
}

fn parameter(name: &str, what: &str, of: ParameterIn) -> Parameter {
    let required = if of == ParameterIn::Path { Required::True } else { Required::False };
    let parameter = ParameterBuilder::new().name(name).parameter_in(of).required(required);
    parameter.description(Some(what)).schema(Some(String::schema())).build()
}

/// The query's write key, where nothing else says it.
pub(super) struct KeyInQuery;

impl IntoParams for KeyInQuery {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let what = "Who writes, where neither Basic authorization nor the body says it.";
        vec![parameter("writeKey", what, ParameterIn::Query)]
    }
}

/// The form of a call of the tracking API.
pub(super) struct CallForm;
/// The form of several calls.
pub(super) struct BatchForm;

/// What is wrong with a call is told in the answer that takes it, so its form says only what is looked for.
fn call(more: &[(&str, &str)]) -> ObjectBuilder {
    let members = [
        ("userId", "Who it is, known: a text of at most 255 bytes, or an integer."),
        ("anonymousId", "Who it is, not known. One of the two there must be."),
        ("messageId", "Its own id, so that it counts once; one is made for a call without."),
        ("timestamp", "When it was: RFC 3339, or integer milliseconds."),
        ("event", "`track`: what happened."),
        ("name", "`page`, `screen`: its name."),
        ("previousId", "`alias`: the id that is joined to `userId`."),
        ("groupId", "`group`: the group."),
        ("properties", "What is to be known of what happened: an object."),
        ("traits", "`identify`, `group`: what is to be known of whom: an object."),
        ("context", "The surroundings: campaign, page, device, consent, user agent; an object."),
    ];
    members.iter().chain(more).fold(ObjectBuilder::new(), |call, (name, what)| {
        call.property(*name, ObjectBuilder::new().schema_type(SchemaType::AnyValue).description(Some(*what)))
    })
}

impl PartialSchema for CallForm {
    fn schema() -> RefOr<Schema> {
        call(&[("writeKey", "Who writes, where Basic authorization does not say it.")]).into()
    }
}

impl ToSchema for CallForm {}

impl PartialSchema for BatchForm {
    fn schema() -> RefOr<Schema> {
        // What is no call at all is rejected by itself, like any other bad one.
        let one = call(&[("type", "Which call: `track`, `identify`, …")]).schema_type(SchemaType::AnyValue);
        ObjectBuilder::new().property("batch", ArrayBuilder::new().items(one)).required("batch").into()
    }
}

impl ToSchema for BatchForm {}

macro_rules! refusals {
    ($($(#[$about:meta])* $name:ident $statuses:expr;)*) => {$(
        $(#[$about])*
        pub(super) struct $name;
        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                $statuses.into_iter().map(|status: u16| (status.to_string(), RefOr::T(refusal(status)))).collect()
            }
        }
    )*};
}

refusals! {
    /// How a question can go wrong.
    Refused [400, 503];
    /// How a question about something that has a name, or an id, can go wrong.
    Unknown [400, 404, 503];
    /// How a question that needs the log can go wrong.
    NeedsLog [400, 409, 503];
    /// How a question about somebody that needs the log can go wrong.
    UnknownOrNeedsLog [400, 404, 409, 503];
    /// How asking by a write key can go wrong.
    Keyless [400, 401];
    /// How calls can go wrong as a whole.
    Untaken [400, 401, 409, 413, 503];
}

fn refusal(status: u16) -> Response {
    let what = match status {
        400 => "`bad_request`: the request makes no sense",
        401 => "`unauthorized`: not with this write key",
        404 => "`not_found`: there is no such thing",
        409 => "`conflict`: this cannot be done here",
        413 => "`too_large`: more than is taken",
        503 => "`busy` or `not_yet`: try again, as `Retry-After` says",
        status => unreachable!("{status} is told nowhere"),
    };
    let problem = Content::builder().schema(Some(Ref::from_schema_name("Problem"))).build();
    ResponseBuilder::new().description(what).content("application/problem+json", problem).build()
}

/// The description as it is served: what holds of every answer is put into every schema of one.
pub(super) fn settled(openapi: &OpenApi) -> String {
    let mut whole = serde_json::to_value(openapi).expect("descriptions have string keys");
    let mut schemas = whole["components"]["schemas"].take();
    let members = schemas.as_object().cloned().unwrap_or_default();
    for (_, schema) in schemas.as_object_mut().into_iter().flatten() {
        settle(schema, &members);
    }
    whole["components"]["schemas"] = schemas;
    whole.to_string()
}

/// Rows within rows are one object; a field without value is null, never left out; and there are no other fields.
fn settle(schema: &mut Value, all: &Map<String, Value>) {
    if let Some(parts) = schema.get_mut("allOf").map(Value::take) {
        let mut whole = json!({ "type": "object", "properties": {}, "required": [] });
        for part in parts.as_array().into_iter().flatten() {
            let name = part["$ref"].as_str().and_then(|name| name.rsplit('/').next());
            let mut part = name.map_or(part, |name| &all[name]).clone();
            settle(&mut part, all);
            for (name, property) in part["properties"].as_object().into_iter().flatten() {
                whole["properties"][name] = property.clone();
            }
            let required = part["required"].as_array().cloned().unwrap_or_default();
            whole["required"].as_array_mut().expect("a list").extend(required);
        }
        *schema = whole;
    }
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(|property| settle(property, all));
        let nullable = properties.iter().filter(|(_, property)| may_be_null(property));
        let mut required: BTreeSet<String> = nullable.map(|(name, _)| name.clone()).collect();
        let told = schema["required"].as_array().into_iter().flatten();
        required.extend(told.filter_map(Value::as_str).map(str::to_owned));
        schema["required"] = json!(required);
        schema["additionalProperties"] = false.into();
    }
    for within in ["items", "additionalProperties"] {
        if let Some(within) = schema.get_mut(within).filter(|within| within.is_object()) {
            settle(within, all);
        }
    }
    for part in schema.get_mut("oneOf").and_then(Value::as_array_mut).into_iter().flatten() {
        settle(part, all);
    }
}

fn may_be_null(property: &Value) -> bool {
    let is_null = |kind: &Value| kind == "null";
    let kinds = property["type"].as_array().into_iter().flatten();
    let parts = property["oneOf"].as_array().into_iter().flatten().map(|part| &part["type"]);
    let may_be_anything = ["type", "oneOf", "$ref"].iter().all(|key| property.get(key).is_none());
    may_be_anything || kinds.chain(parts).any(is_null)
}
