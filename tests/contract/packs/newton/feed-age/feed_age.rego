package feed_age_policy

import rego.v1

default decision := {"allow": false, "reasons": ["no feed"]}

decision := {"allow": count(reasons) == 0, "reasons": reasons} if data.wasm.feed_age.error == ""

reasons contains "the feed is stale" if data.wasm.feed_age.feedAgeSeconds > data.params.max_age_seconds
