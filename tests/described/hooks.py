"""What schemathesis cannot know: ids and names that exist, and what only an answer can give."""

import os

import schemathesis

EXAMPLES = {
    "profiles": "ada",
    "segments": "vip",
    "journeys": "cart",
    "campaigns": "vip_checkout",
    "channels": "crm",
    "projects": "SHOP",
    "definitions": "vip",
    "erasures": os.environ["ERASURE"],
    "requests": os.environ["REQUEST"],
}
ONLY_FROM_ANSWERS = {"after", "wait", "cursor"}


@schemathesis.hook
def before_load_schema(context, raw_schema):
    for path, methods in raw_schema["paths"].items():
        for method, operation in methods.items():
            parameters = operation.get("parameters", [])
            parameters[:] = [of for of in parameters if of["name"] not in ONLY_FROM_ANSWERS]
            for parameter in parameters:
                if parameter["in"] == "path":
                    parameter["example"] = EXAMPLES[path.split("/")[2]]
                    if (method, path) == ("delete", "/v1/profiles/{id}"):
                        # The others are asked about somebody who is there.
                        parameter["example"] = "tablet"
                if parameter["name"] == "kind":
                    parameter["example"] = "segments"
                if parameter["name"] == "segment":
                    parameter["schema"] = {"enum": ["vip", "lapsed"]}
                if parameter["name"] == "at":
                    parameter["schema"] = {"enum": [1767225605000, 1767225609000]}
                if parameter["name"] == "conversion":
                    parameter["schema"] = {"enum": ["purchase"]}
                if parameter["name"] == "model":
                    parameter["schema"] = {"enum": ["first_touch", "linear", "position_based"]}
    given = raw_schema["paths"]["/v1/definitions/{kind}/{name}"]["put"]["requestBody"]
    given["content"]["text/plain"]["schema"]["enum"] = ["visitor: returning"]
    resend = raw_schema["paths"]["/v1/channels:resend"]["post"]["requestBody"]
    resend["content"]["application/json"]["schema"]["properties"]["channel"]["enum"] = ["crm"]
    retract = raw_schema["paths"]["/v1/events:retract"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    # One event, or all that a condition selects: a schema of one object cannot say that.
    retract["properties"] = {"where": {"enum": ['event == "purchase"']}, "preview": {"enum": [True]}}
    retract["required"] = ["where"]
    bodies = {
        "segments:preview": {"name": "vip", "definition": {"visitor": "returning"}},
        "definitions:diff": {"kind": "segments", "name": "vip", "definition": {"visitor": "returning"}},
        "campaigns:dry-run": {"from": "2026-01-01", "variants": {"a": {"segments": {"vip": {"visitor": "known"}}}}},
    }
    for path, body in bodies.items():
        tried = raw_schema["paths"][f"/v1/{path}"]["post"]["requestBody"]
        tried["content"]["application/json"]["schema"] = {"enum": [body]}
