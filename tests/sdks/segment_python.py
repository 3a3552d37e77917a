"""The visit that tests/sdks.rs knows, told by segment-analytics-python: python segment_python.py URL WRITE_KEY"""

import sys

from segment.analytics.client import Client

host, write_key = sys.argv[1:]
failed = []
sdk = Client(write_key, host=host, gzip=True, upload_size=15, upload_interval=0.1, on_error=lambda *e: failed.append(e))
context = {"campaign": {"source": "google", "medium": "cpc", "name": "spring"}}
sdk.track(anonymous_id="before", event="Product Viewed", properties={"sku": "shoe-1", "name": "Schuh für 42,50 €"})
sdk.identify("ada", {"email": "ada@shop.example", "plan": "pro"})
sdk.page("ada", name="Home", properties={"path": "/home"}, context=context)
sdk.screen("ada", name="Start")
sdk.group("ada", "acme", {"name": "Acme Ltd"})
sdk.track("ada", "Order Completed", {"order_id": "o1", "revenue": 42.5}, context=context)
sdk.alias("before", "ada")
for i in range(50):
    sdk.track("ada", "Viewed", {"i": i})
sdk.flush()
sdk.join()
sys.exit(f"not sent: {failed}" if failed else 0)
