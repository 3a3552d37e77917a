// Publishes messages of events to NATS JetStream with nats.js: node nats.cjs URL. See the test for what they are.
const { connect } = require("@nats-io/transport-node");
const { jetstream } = require("@nats-io/jetstream");
const { gzipSync } = require("node:zlib");

async function main() {
  const client = await connect({ servers: process.argv[2] });
  const stream = jetstream(client);
  const publish = (body, msgID) => stream.publish("thalweg.events.javascript", body, { msgID });
  const call = (fields) => ({ type: "track", event: "add_to_cart", userId: "ada", ...fields });
  const text = (value) => JSON.stringify(value);

  await publish(text(call({ messageId: "m1", properties: { price: 9.5 } })));
  await publish(text(call()), "of-the-message");
  await publish(text(call()));
  await publish(text({ batch: [call(), { type: "track" }, call({ messageId: "m2" })] }), "of-a-batch");
  await publish([text(call()), "{broken", text(call({ messageId: "m3" }))].join("\n") + "\n");
  await publish(gzipSync(text(call({ messageId: "m4" })) + "\n" + text(call())));
  await publish("");
  await publish(Buffer.concat([Buffer.from("neither "), Buffer.of(0xff), Buffer.from(" one nor the other")]));
  await client.drain();
}

main();
