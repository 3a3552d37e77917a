// Verifies webhooks with the official JavaScript library: JSON lines of {secret, headers, body}; one word for each.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { join } from "node:path";

// The folder that holds node_modules.
const { Webhook, WebhookVerificationError } = createRequire(join(process.argv[2], "/"))("standardwebhooks");

for await (const line of createInterface({ input: process.stdin })) {
  const { secret, headers, body } = JSON.parse(line);
  try {
    new Webhook(secret).verify(body, headers);
    console.log("verified");
  } catch (error) {
    if (!(error instanceof WebhookVerificationError)) throw error;
    console.log("refused");
  }
}
