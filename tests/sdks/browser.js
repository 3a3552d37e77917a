// A page of http://shop.example/ in jsdom, which holds requests to other origins to the rules as browsers do, with the
// browser SDK of Segment or RudderStack: node browser.js URL WRITE_KEY segment|rudderstack
const { JSDOM } = require('jsdom')

const [url, writeKey, sdk] = process.argv.slice(2)
const page = 'http://shop.example/products?utm_source=google&utm_medium=cpc&utm_campaign=spring'
const { window } = new JSDOM('<!doctype html><title>Shoes</title>', { url: page, pretendToBeVisual: true })
window.navigator.sendBeacon = () => false
// The SDKs take these for their own.
const names = ['document', 'navigator', 'location', 'localStorage', 'sessionStorage', 'XMLHttpRequest', 'Blob', 'Event',
  'CustomEvent', 'Element', 'Document', 'Node', 'HTMLElement', 'history', 'screen', 'addEventListener',
  'removeEventListener', 'dispatchEvent', 'FormData', 'DOMParser', 'ErrorEvent', 'PromiseRejectionEvent']
Object.defineProperty(globalThis, 'window', { value: window })
Object.defineProperty(globalThis, 'self', { value: window })
for (const name of names) {
  const value = window[name]
  const bound = typeof value === 'function' && !/^[A-Z]/.test(name) ? value.bind(window) : value
  Object.defineProperty(globalThis, name, { value: bound, configurable: true, writable: true })
}
delete globalThis.fetch

const order = { order_id: 'o1', revenue: 42.5 }

async function segment() {
  const { AnalyticsBrowser } = require('@segment/analytics-next')
  const [analytics] = await AnalyticsBrowser.load({ writeKey, cdnURL: url })
  await analytics.identify('ada', { email: 'ada@shop.example' })
  await analytics.page('Home')
  await analytics.track('Order Completed', order)
  await analytics.group('acme', { name: 'Acme Ltd' })
}

async function rudderstack() {
  const { RudderAnalytics } = require('@rudderstack/analytics-js/bundled')
  const analytics = new RudderAnalytics()
  analytics.load(writeKey, url, { configUrl: url, polyfillIfRequired: false })
  const done = (call) => new Promise((resolve) => call(resolve))
  await new Promise((resolve) => analytics.ready(resolve))
  await done((resolve) => analytics.identify('ada', { email: 'ada@shop.example' }, resolve))
  await done((resolve) => analytics.page('Home', resolve))
  await done((resolve) => analytics.track('Order Completed', order, resolve))
  await done((resolve) => analytics.group('acme', { name: 'Acme Ltd' }, resolve))
}

// Whoever started it ends it when everything has come; by itself it ends only where that cannot be.
setTimeout(() => process.exit(1), 10_000)
const visit = { segment, rudderstack }[sdk]
visit().catch((error) => {
  console.error(error)
  process.exit(1)
})
