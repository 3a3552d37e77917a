// The visit that tests/sdks.rs knows, told by @rudderstack/rudder-sdk-node: node rudderstack_node.js URL WRITE_KEY
const Analytics = require('@rudderstack/rudder-sdk-node')

const [dataPlaneUrl, writeKey] = process.argv.slice(2)
const sdk = new Analytics(writeKey, { dataPlaneUrl, flushAt: 15, flushInterval: 100, retryCount: 10 })
const context = { campaign: { source: 'google', medium: 'cpc', name: 'spring' } }
sdk.track({ anonymousId: 'before', event: 'Product Viewed', properties: { sku: 'shoe-1', name: 'Schuh für 42,50 €' } })
sdk.identify({ userId: 'ada', traits: { email: 'ada@shop.example', plan: 'pro' } })
sdk.page({ userId: 'ada', name: 'Home', properties: { path: '/home' }, context })
sdk.screen({ userId: 'ada', name: 'Start' })
sdk.group({ userId: 'ada', groupId: 'acme', traits: { name: 'Acme Ltd' } })
sdk.track({ userId: 'ada', event: 'Order Completed', properties: { order_id: 'o1', revenue: 42.5 }, context })
sdk.alias({ userId: 'ada', previousId: 'before' })
for (let i = 0; i < 50; i++) sdk.track({ userId: 'ada', event: 'Viewed', properties: { i } })
sdk.flush((error) => {
  if (!error) return
  console.error(error)
  process.exitCode = 1
})
