// Holds the shim's text functions against this engine's own, on random and on chosen bytes. Arguments: the shim's file.
import { readFileSync } from "node:fs";

const native = { TextEncoder, TextDecoder, btoa, atob, Date };
for (const name of ["TextEncoder", "TextDecoder", "btoa", "atob"]) delete globalThis[name];
const shim = readFileSync(process.argv[2], "utf-8").replace(/^import .*$/m, "const __placetNowMillis = () => 1700000000000n;");
(0, eval)(shim);

const chosen = [[0xef, 0xbb, 0xbf, 0x61], [0xed, 0xa0, 0x80], [0xf4, 0x90, 0x80, 0x80], [0xc0, 0xaf], [0xf0, 0x9f, 0x98, 0x80], [0xff], []];
let seed = 1;
const random = (below) => (seed = (seed * 48271) % 2147483647) % below;
const samples = [...chosen, ...Array.from({ length: 2000 }, () => Array.from({ length: random(12) }, () => random(256)))];
let checked = 0;
const same = (own, wanted, what) => {
  checked += 1;
  if (own !== wanted) throw new Error(`${what}: ${JSON.stringify(own)}, not ${JSON.stringify(wanted)}`);
};
const attempt = (run) => { try { return run(); } catch { return "throws"; } };
for (const sample of samples) {
  const bytes = new Uint8Array(sample);
  const valid = attempt(() => new native.TextDecoder("utf-8", { fatal: true }).decode(bytes));
  same(attempt(() => new TextDecoder("utf-8", { fatal: true }).decode(bytes)), valid, `fatal decode of ${sample}`);
  if (valid !== "throws") same(new TextDecoder().decode(bytes), native.TextDecoder.prototype.decode.call(new native.TextDecoder(), bytes), `decode of ${sample}`);
  const text = String.fromCharCode(...sample.map((byte) => byte * 257));
  same([...new TextEncoder().encode(text)].join(), [...new native.TextEncoder().encode(text)].join(), `encode of ${sample}`);
  const latin = String.fromCharCode(...sample);
  same(btoa(latin), native.btoa(latin), `btoa of ${sample}`);
  same(atob(native.btoa(latin)), latin, `atob of ${sample}`);
}
same(Date.now(), 1700000000000, "now");
same(new Date().getTime(), 1700000000000, "new Date()");
same(new Date(5).getTime(), 5, "new Date(5)");
same(new Date() instanceof Date, true, "instanceof");
same(new Date().constructor === Date, true, "constructor");
same(Date.UTC(2020, 0), native.Date.UTC(2020, 0), "UTC");
same(typeof Date(), "string", "Date()");
class Own extends Date {}
same(new Own().getTime(), 1700000000000, "a subclass");
console.log(`${checked} the same`);
