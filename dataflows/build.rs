//! Tells `utoipa` how types that it does not know are written as JSON.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    utoipa_config::Config::new()
        .alias_for("EcoString", "String")
        .alias_for("Millis", "i64")
        .alias_for("RawValue", "serde_json::Value")
        .write_to_file();
}
