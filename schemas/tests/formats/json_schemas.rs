//! The JSON Schemas under `schemas/json` are those of the types, and accept exactly what the types say.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_schemas::control::{Check, Control, NewEpoch, Tick};
use plimsoll_schemas::ctl::Ctl;
use plimsoll_schemas::inventory::{HostEvent, Inventory};
use plimsoll_schemas::out::{
    AlertChanged, CloudEvent, Decided, DeviceChanged, Distributed, Gap, HostChanged, LeaseChanged, PaceChanged, Payload, PolicyChanged,
    PreemptionProposed, RejectedOut,
};
use plimsoll_schemas::request::Request;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::bless::{blessing, names, read, write};
use crate::examples::{ctl_messages, log_messages, outputs, schema_of, to_bytes};

fn schema_for<T: JsonSchema>(name: &str) -> Value {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>().to_value();
    schema["$id"] = json!(format!("urn:plimsoll:schema:{name}"));
    schema
}

/// The definition of a payload within the schema of the envelope.
fn definition_of(payload: &Payload) -> std::borrow::Cow<'static, str> {
    match payload {
        Payload::Decided(_) => Decided::schema_name(),
        Payload::Distributed(_) => Distributed::schema_name(),
        Payload::Lease(_) => LeaseChanged::schema_name(),
        Payload::Device(_) => DeviceChanged::schema_name(),
        Payload::Host(_) => HostChanged::schema_name(),
        Payload::Rejected(_) => RejectedOut::schema_name(),
        Payload::Gap(_) => Gap::schema_name(),
        Payload::Alert(_) => AlertChanged::schema_name(),
        Payload::Policy(_) => PolicyChanged::schema_name(),
        Payload::Pace(_) => PaceChanged::schema_name(),
        Payload::Preemption(_) => PreemptionProposed::schema_name(),
    }
}

/// The file name of an event's schema: its type without the project's name.
fn name_of(kind: &str) -> &str {
    kind.strip_prefix("plimsoll.").expect("every type starts so")
}

/// The envelope with exactly one type and exactly that type's content.
fn event_schema(payload: &Payload) -> Value {
    let mut schema = schema_for::<CloudEvent>(name_of(payload.kind()));
    let definition = definition_of(payload);
    schema["title"] = json!(payload.kind());
    schema["description"] = schema["$defs"][definition.as_ref()]["description"].clone();
    schema["properties"]["type"] = json!({ "description": "Kind of event.", "type": "string", "const": payload.kind() });
    schema["properties"]["data"] = json!({ "$ref": format!("#/$defs/{definition}") });
    prune(&mut schema);
    schema
}

/// Drops definitions that nothing refers to.
fn prune(schema: &mut Value) {
    let mut used = BTreeSet::new();
    let mut open = vec![schema["properties"].clone()];
    while let Some(value) = open.pop() {
        match &value {
            Value::Object(fields) => {
                if let Some(name) = fields.get("$ref").and_then(Value::as_str).and_then(|reference| reference.strip_prefix("#/$defs/"))
                    && used.insert(name.to_owned())
                {
                    open.push(schema["$defs"][name].clone());
                }
                open.extend(fields.values().cloned());
            }
            Value::Array(items) => open.extend(items.iter().cloned()),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    schema["$defs"].as_object_mut().expect("the envelope has definitions").retain(|name, _| used.contains(name));
}

/// Every schema by file name.
fn schemas() -> BTreeMap<String, Value> {
    let mut schemas = BTreeMap::from([
        ("inventory".to_owned(), schema_for::<Inventory>("inventory")),
        ("event".to_owned(), schema_for::<HostEvent>("event")),
        ("request".to_owned(), schema_for::<Request>("request")),
        ("control".to_owned(), schema_for::<Control>("control")),
        ("tick".to_owned(), schema_for::<Tick>("tick")),
        ("check".to_owned(), schema_for::<Check>("check")),
        ("ctl".to_owned(), schema_for::<Ctl>("ctl")),
        ("epoch".to_owned(), schema_for::<NewEpoch>("epoch")),
        ("cloudevent".to_owned(), schema_for::<CloudEvent>("cloudevent")),
    ]);
    for example in outputs() {
        schemas.insert(name_of(example.payload.kind()).to_owned(), event_schema(&example.payload));
    }
    schemas
}

fn validator(name: &str) -> jsonschema::Validator {
    let schema: Value = serde_json::from_slice(&read(&format!("json/{name}.schema.json"))).expect("a schema is JSON");
    jsonschema::options().should_validate_formats(true).build(&schema).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn assert_valid(name: &str, message: &Value) {
    let errors: Vec<_> = validator(name).iter_errors(message).map(|error| format!("{} at {}", error, error.instance_path())).collect();
    assert!(errors.is_empty(), "{name}: {errors:?}: {message}");
}

#[test]
fn the_checked_in_schemas_are_those_of_the_types() {
    for (name, schema) in schemas() {
        let file = format!("json/{name}.schema.json");
        let text = serde_json::to_string_pretty(&schema).expect("JSON") + "\n";
        if blessing() {
            write(&file, text.as_bytes());
        }
        assert!(
            read(&file) == text.as_bytes(),
            "schemas/{file} differs from the types: run PLIMSOLL_BLESS=1 cargo test -p plimsoll-schemas --test formats and read the difference"
        );
    }
    let expected: Vec<_> = schemas().keys().map(|name| format!("{name}.schema.json")).collect();
    let found: BTreeSet<_> = names("json").into_iter().collect();
    assert_eq!(found, expected.into_iter().collect(), "a schema without a type, or a type without a schema");
}

#[test]
fn every_message_of_the_log_is_valid_under_its_schema() {
    for example in log_messages() {
        if let Some(name) = schema_of(&example.subject) {
            assert_valid(name, &serde_json::from_slice(&to_bytes(&example.body)).expect("JSON"));
        }
    }
}

#[test]
fn every_request_to_an_agent_is_valid_under_its_schema() {
    for (_, ctl) in ctl_messages() {
        assert_valid("ctl", &serde_json::to_value(&ctl).expect("JSON"));
    }
}

#[test]
fn every_event_of_out_is_valid_under_the_schema_of_its_type_and_under_no_other() {
    for example in outputs() {
        let event: Value = serde_json::from_slice(&example.output.bytes).expect("JSON");
        assert_valid("cloudevent", &event);
        assert_valid(name_of(example.payload.kind()), &event);
        for other in outputs().iter().filter(|other| other.payload.kind() != example.payload.kind()) {
            assert!(!validator(name_of(other.payload.kind())).is_valid(&event), "{} is also valid as {}", example.name, other.payload.kind());
        }
    }
}

#[test]
fn what_breaks_the_contract_is_invalid() {
    let request = json!({"type": "place", "request_id": "r", "bundles": [{"count": 1}]});
    assert_valid("request", &request);
    let check = |name: &str, valid: &Value, pointer: &str, value: Value| {
        let mut broken = valid.clone();
        match pointer.rsplit_once('/') {
            Some((parent, field)) => broken.pointer_mut(parent).expect("parent exists")[field] = value,
            None => panic!("{pointer} is no pointer"),
        }
        assert!(!validator(name).is_valid(&broken), "{name}: {broken} is valid");
    };
    check("request", &request, "/type", json!("steal"));
    check("request", &request, "/request_id", json!(""));
    check("request", &request, "/colour", json!("red"));
    check("request", &request, "/bundles", json!([]));
    check("request", &request, "/bundles/0/count", json!(0));
    check("request", &request, "/bundles/0/milli", json!(1_001));
    check("request", &request, "/lease_ttl_ms", json!(1));
    let event: Value = serde_json::from_slice(&outputs()[0].output.bytes).expect("JSON");
    check("place.decided.v1", &event, "/specversion", json!("0.3"));
    check("place.decided.v1", &event, "/type", json!("plimsoll.gap.v1"));
    check("place.decided.v1", &event, "/time", json!("yesterday"));
    check("place.decided.v1", &event, "/data/outcome", json!("perhaps"));
    check("place.decided.v1", &event, "/data/tenant", json!("a.b"));
    check("place.decided.v1", &event, "/data/refused", json!({"bad_mood": 1}));
}

#[test]
fn every_field_says_what_it_is() {
    for (name, schema) in schemas() {
        let mut open = vec![(name, schema)];
        while let Some((place, value)) = open.pop() {
            if let Some(properties) = value.get("properties").and_then(Value::as_object) {
                for (field, property) in properties {
                    let tag = property.get("const").is_some();
                    assert!(tag || property.get("description").is_some() || property.get("$ref").is_some(), "{place}.{field} has no description");
                }
            }
            match value {
                Value::Object(fields) => open.extend(fields.into_iter().map(|(key, inner)| (format!("{place}.{key}"), inner))),
                Value::Array(items) => open.extend(items.into_iter().map(|inner| (place.clone(), inner))),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
            }
        }
    }
}
