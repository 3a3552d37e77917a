// The visit that tests/sdks.rs knows, told by @segment/analytics-node: node segment_node.js URL WRITE_KEY
const { Analytics } = require('@segment/analytics-node')

const [host, writeKey] = process.argv.slice(2)
const sdk = new Analytics({ writeKey, host, flushAt: 15, flushInterval: 100, maxRetries: 10 })
sdk.on('error', (error) => {
  console.error(error)
  process.exitCode = 1
})
const context = { campaign: { source: 'google', medium: 'cpc', name: 'spring' } }
sdk.track({ anonymousId: 'before', event: 'Product Viewed', properties: { sku: 'shoe-1', name: 'Schuh für 42,50 €' } })
sdk.identify({ userId: 'ada', traits: { email: 'ada@shop.example', plan: 'pro' } })
sdk.page({ userId: 'ada', name: 'Home', properties: { path: '/home' }, context })
sdk.screen({ userId: 'ada', name: 'Start' })
sdk.group({ userId: 'ada', groupId: 'acme', traits: { name: 'Acme Ltd' } })
sdk.track({ userId: 'ada', event: 'Order Completed', properties: { order_id: 'o1', revenue: 42.5 }, context })
sdk.alias({ userId: 'ada', previousId: 'before' })
for (let i = 0; i < 50; i++) sdk.track({ userId: 'ada', event: 'Viewed', properties: { i } })
sdk.closeAndFlush({ timeout: 60_000 }).then((unsent) => {
  if (unsent?.length) process.exitCode = 1
})
