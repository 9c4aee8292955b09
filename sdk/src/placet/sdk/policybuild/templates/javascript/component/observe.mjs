// Fetches the value that the policy judges. What is thrown is the error's text.
import { fetch } from "placet:policydata/http@1.0.0";

export function run(context, intent, params, args) {
  const { url } = JSON.parse(args);
  let response;
  try {
    response = fetch({ method: "get", url, headers: [{ name: "accept", value: "application/json" }], body: undefined });
  } catch (error) {
    throw `the value cannot be fetched: ${(error.payload ?? error).tag ?? error}`;
  }
  if (response.status !== 200) throw `the server answered ${response.status}`;
  const { value } = JSON.parse(response.body);
  if (!Number.isSafeInteger(value)) throw "the server's value is no integer";
  return JSON.stringify({ @package@: { value } });
}
