// Written for this test in the manner of the packs published for Newton: `newton:provider/http` and `secrets`, host secrets with a
// fallback, output wrapped under a pack id, `Date.now()` for ages, fractions in the output. Nothing in it knows of Placet.
import { fetch as httpFetch } from "newton:provider/http@0.2.0";
import { get as getHostSecrets } from "newton:provider/secrets@0.2.0";

const PACK_ID = "feed_age";

let _secrets = {};

function loadHostSecrets() {
  try {
    const answer = getHostSecrets();
    const bytes = (answer?.val ?? answer)?.value;
    if (!bytes || bytes.length === 0) return;
    _secrets = { ..._secrets, ...JSON.parse(new TextDecoder().decode(new Uint8Array(bytes))) };
  } catch (_) {
    // without host secrets the feed is asked without a key
  }
}

function wrapOutput(value) {
  return JSON.stringify({ [PACK_ID]: value });
}

export function run(wasm_args) {
  const parsed = JSON.parse(wasm_args);
  const args = parsed[PACK_ID] ?? parsed;
  loadHostSecrets();
  try {
    const headers = [["accept", "application/json"]];
    if (_secrets.FEED_KEY) headers.push(["x-api-key", _secrets.FEED_KEY]);
    const answer = httpFetch({ url: args.url, method: "GET", headers, body: null });
    const response = answer?.val ?? answer;
    if (response.status !== 200) throw new Error(`feed answered ${response.status}`);
    const feed = JSON.parse(new TextDecoder().decode(new Uint8Array(response.body)));
    const now = Date.now();
    return wrapOutput({
      price: feed.price,
      feedAgeSeconds: Math.max(0, (now - feed.timestamp) / 1000),
      checkedAt: new Date().toISOString(),
      error: "",
    });
  } catch (error) {
    return wrapOutput({ price: 0, feedAgeSeconds: 0, checkedAt: "", error: String(error?.payload ?? error?.message ?? error) });
  }
}
