//! Recommendations: what a person looked at most and has not bought, read off their own events.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// The events by which a product was looked at: the shop's name, and that of Segment's e-commerce events.
const VIEWED: [&str; 2] = ["product_view", "Product Viewed"];
/// The event by which products were bought, besides those that the definitions call conversions.
const BOUGHT: &str = "Order Completed";
/// The properties that are looked at.
pub const READ: [&str; 4] = [NAMES[0], NAMES[1], NAMES[2], "products"];
/// What names a product, the best name first.
const NAMES: [&str; 3] = ["sku", "product_id", "productId"];

/// The products looked at most, at most so many, of several the least; none that was bought, under whatever name.
/// `bodies` are calls, `conversions` the events that the definitions call conversions.
pub fn recommend<'a>(
    bodies: impl IntoIterator<Item = &'a Value>,
    conversions: &BTreeSet<String>,
    items: usize,
) -> Vec<String> {
    let mut views: BTreeMap<String, usize> = BTreeMap::new();
    let (mut names, mut bought) = (BTreeMap::new(), BTreeSet::new());
    for body in bodies {
        let event = body["event"].as_str().unwrap_or_default();
        let properties = &body["properties"];
        if VIEWED.contains(&event)
            && let Some(item) = names_of(properties).next()
        {
            *views.entry(item.clone()).or_default() += 1;
            names.entry(item).or_insert_with(BTreeSet::new).extend(names_of(properties));
        }
        if event == BOUGHT || conversions.contains(event) {
            let products = properties["products"].as_array().into_iter().flatten();
            bought.extend(products.chain([properties]).flat_map(names_of));
        }
    }
    views.retain(|item, _| names[item].is_disjoint(&bought));
    let mut best: Vec<(Reverse<usize>, String)> =
        views.into_iter().map(|(item, times)| (Reverse(times), item)).collect();
    best.sort();
    best.into_iter().take(items).map(|(_, item)| item).collect()
}

/// What a product is called: texts that are not empty, and integers.
fn names_of(product: &Value) -> impl Iterator<Item = String> {
    NAMES.iter().filter_map(|name| match &product[*name] {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn call(event: &str, properties: Value) -> Value {
        json!({"type": "track", "event": event, "properties": properties})
    }

    fn view(sku: impl Into<Value>) -> Value {
        call("product_view", json!({"sku": sku.into()}))
    }

    fn of(calls: &[Value], items: usize) -> Vec<String> {
        recommend(calls, &BTreeSet::from(["purchase".to_owned()]), items)
    }

    #[test]
    fn what_was_seen_most_comes_first_and_of_several_the_least() {
        let seen = ["hat", "shoe", "bag", "shoe", "hat", "tie"].map(view);
        assert_eq!(of(&seen, 3), ["hat", "shoe", "bag"]);
        assert_eq!(of(&seen, 9), ["hat", "shoe", "bag", "tie"]);
        assert_eq!(of(&[], 3), [""; 0]);
    }

    #[test]
    fn what_was_bought_is_not_recommended() {
        let calls = [
            view("hat"),
            view("shoe"),
            view(7),
            call("Product Viewed", json!({"product_id": "p1", "sku": "bag"})),
            call("Product Viewed", json!({"productId": "p2"})),
            call("add_to_cart", json!({"sku": "shoe"})),
            call("purchase", json!({"sku": "hat"})),
            call("Order Completed", json!({"products": [{"product_id": "p1"}, {"sku": 7}, 3, null]})),
        ];
        assert_eq!(of(&calls, 9), ["p2", "shoe"]);
    }

    #[test]
    fn what_names_nothing_is_passed_over() {
        let strange = [view(""), view(json!(null)), view(1.5), view(json!(["hat"])), json!({"event": "product_view"})];
        assert_eq!(of(&strange, 3), [""; 0]);
    }
}
