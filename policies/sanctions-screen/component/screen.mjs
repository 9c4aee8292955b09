// Which of the addresses it is given stand on a list that an HTTP server publishes.
//
// Input (arguments): list_url, subjects bound by the policy (receiver, sender). Output: the subjects that are listed, and how many
// addresses the list had, so that the policy can tell an empty or cut-off list from a clean receiver.
import { fetch } from "placet:policydata/http@1.0.0";

const ADDRESS = /^0x[0-9a-f]{40}$/;
const SUBJECTS = ["receiver", "sender"];

// Errors of a component are text for people; whoever reads it sees what the server did.
function failed(message) {
  throw message;
}

function read(url) {
  let response;
  try {
    response = fetch({ method: "get", url, headers: [{ name: "accept", value: "application/json, text/plain" }], body: undefined });
  } catch (error) {
    const reason = error.payload ?? error;
    failed(`the list cannot be fetched: ${reason.tag ?? reason}${reason.val === undefined ? "" : ` (${reason.val})`}`);
  }
  if (response.status !== 200) failed(`the list's server answered ${response.status}`);
  return response.body;
}

// A JSON array of addresses, an object with one at `addresses`, or one address a line. Anything that is none of these is an error,
// never an empty list: a page that says "maintenance" must not clear anybody.
function addresses(body) {
  const text = body.trim();
  let entries;
  if (text.startsWith("[") || text.startsWith("{")) {
    let document;
    try {
      document = JSON.parse(text);
    } catch {
      failed("the list is not JSON");
    }
    entries = Array.isArray(document) ? document : document.addresses;
    if (!Array.isArray(entries)) failed("the list has no array of addresses");
  } else {
    entries = text.split("\n").map((line) => line.replace(/#.*/, "").trim()).filter((line) => line !== "");
  }
  const found = new Set();
  for (const entry of entries) {
    const address = typeof entry === "string" ? entry.toLowerCase() : "";
    if (!ADDRESS.test(address)) failed(`the list holds ${JSON.stringify(entry).slice(0, 60)}, which is no address`);
    found.add(address);
  }
  return found;
}

export function run(context, intent, params, args) {
  const given = JSON.parse(args);
  const list = addresses(read(given.list_url));
  const screened = new Set(SUBJECTS.filter((name) => name in given).map((name) => given[name].toLowerCase()));
  const listed = [...screened].filter((address) => list.has(address)).sort();
  return JSON.stringify({ sanctions: { listed, entries: list.size } });
}
