"""Publishes messages of events to NATS JetStream with nats-py: python nats.py URL. See the test for what they are."""

import asyncio
import gzip
import json
import sys

import nats


async def main():
    client = await nats.connect(sys.argv[1])
    jetstream = client.jetstream()

    async def publish(body, id=None):
        headers = {"Nats-Msg-Id": id} if id else None
        await jetstream.publish("thalweg.events.python", body, headers=headers)

    def call(**fields):
        return {"type": "track", "event": "add_to_cart", "userId": "ada", **fields}

    def text(value):
        return json.dumps(value).encode()

    await publish(text(call(messageId="m1", properties={"price": 9.5})))
    await publish(text(call()), id="of-the-message")
    await publish(text(call()))
    await publish(text({"batch": [call(), {"type": "track"}, call(messageId="m2")]}), id="of-a-batch")
    await publish(b"\n".join([text(call()), b"{broken", text(call(messageId="m3"))]) + b"\n")
    await publish(gzip.compress(text(call(messageId="m4")) + b"\n" + text(call())))
    await publish(b"")
    await publish(b"neither \xff one nor the other")
    await client.drain()


asyncio.run(main())
