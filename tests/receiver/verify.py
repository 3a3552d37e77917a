"""Verifies webhooks with the official Python library: JSON lines of {secret, headers, body}; one word for each."""

import json
import sys

from standardwebhooks import Webhook, WebhookVerificationError

for line in sys.stdin:
    call = json.loads(line)
    try:
        Webhook(call["secret"]).verify(call["body"], call["headers"])
        print("verified", flush=True)
    except WebhookVerificationError:
        print("refused", flush=True)
