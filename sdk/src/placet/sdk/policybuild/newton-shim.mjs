// What `placet policy build` puts in front of JavaScript made for Newton, which expects the globals of another engine.
// Written to be joined into one line: statements end with semicolons, comments stand on lines of their own.
import { nowMillis as __placetNowMillis } from "placet:policydata/clock@1.0.0";

// Date over the task's timestamp: milliseconds, the same at every operator, standing still during a run. Everything but "now" is the
// engine's own Date.
globalThis.Date = ((Own) => {
    const now = () => Number(__placetNowMillis());
    const Task = new Proxy(Own, {
        construct: (target, args, made) => Reflect.construct(target, args.length === 0 ? [now()] : args, made === Task ? target : made),
        apply: () => new Own(now()).toString(),
        get: (target, name) => (name === "now" ? now : Reflect.get(target, name)),
    });
    Object.defineProperty(Own.prototype, "constructor", { value: Task, writable: true, configurable: true });
    return Task;
})(globalThis.Date);

// UTF-8 only. What is not UTF-8 becomes U+FFFD, a byte at a time, or an error when fatal.
globalThis.TextEncoder ??= class TextEncoder {
    get encoding() { return "utf-8"; }
    encode(text = "") {
        const bytes = [];
        for (const character of String(text)) {
            let code = character.codePointAt(0);
            if (code >= 0xd800 && code <= 0xdfff) code = 0xfffd;
            if (code < 0x80) bytes.push(code);
            else if (code < 0x800) bytes.push(0xc0 | (code >> 6), 0x80 | (code & 63));
            else if (code < 0x10000) bytes.push(0xe0 | (code >> 12), 0x80 | ((code >> 6) & 63), 0x80 | (code & 63));
            else bytes.push(0xf0 | (code >> 18), 0x80 | ((code >> 12) & 63), 0x80 | ((code >> 6) & 63), 0x80 | (code & 63));
        }
        return new Uint8Array(bytes);
    }
};
globalThis.TextDecoder ??= class TextDecoder {
    constructor(label = "utf-8", options = {}) {
        if (!/^utf-?8$/i.test(label)) throw new RangeError("only utf-8 is decoded here");
        this.fatal = Boolean(options.fatal);
        this.ignoreBOM = Boolean(options.ignoreBOM);
    }
    get encoding() { return "utf-8"; }
    decode(input = new Uint8Array(0)) {
        const bytes = input instanceof ArrayBuffer ? new Uint8Array(input) : new Uint8Array(input.buffer, input.byteOffset, input.byteLength);
        const least = [0, 0, 0x80, 0x800, 0x10000];
        const parts = [];
        let text = "";
        for (let at = 0; at < bytes.length; ) {
            const first = bytes[at];
            const size = first < 0x80 ? 1 : first >= 0xc2 && first < 0xe0 ? 2 : first >= 0xe0 && first < 0xf0 ? 3 : first >= 0xf0 && first < 0xf5 ? 4 : 0;
            let code = size === 1 ? first : first & (0xff >> (size + 1));
            let good = size > 0 && at + size <= bytes.length;
            for (let next = 1; good && next < size; next++) {
                good = (bytes[at + next] & 0xc0) === 0x80;
                code = (code << 6) | (bytes[at + next] & 63);
            }
            good = good && (size === 1 || code >= least[size]) && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff);
            if (!good && this.fatal) throw new TypeError("not UTF-8");
            if (!(good && code === 0xfeff && at === 0 && !this.ignoreBOM)) text += good ? String.fromCodePoint(code) : "\ufffd";
            at += good ? size : 1;
            if (text.length > 4096) { parts.push(text); text = ""; }
        }
        parts.push(text);
        return parts.join("");
    }
};

// There is nobody to read it.
globalThis.console ??= { log() {}, info() {}, warn() {}, error() {}, debug() {}, trace() {} };

globalThis.btoa ??= (text) => {
    const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const codes = [...String(text)].map((character) => character.codePointAt(0));
    if (codes.some((code) => code > 255)) throw new RangeError("btoa takes characters up to U+00FF");
    let out = "";
    for (let at = 0; at < codes.length; at += 3) {
        const [a, b, c] = [codes[at], codes[at + 1], codes[at + 2]];
        out += alphabet[a >> 2] + alphabet[((a & 3) << 4) | ((b ?? 0) >> 4)];
        out += b === undefined ? "==" : alphabet[((b & 15) << 2) | ((c ?? 0) >> 6)] + (c === undefined ? "=" : alphabet[c & 63]);
    }
    return out;
};
globalThis.atob ??= (text) => {
    const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const digits = String(text).replace(/[\t\n\f\r ]/g, "").replace(/={1,2}$/, "");
    if (digits.length % 4 === 1 || [...digits].some((digit) => !alphabet.includes(digit))) throw new RangeError("not base64");
    let out = "";
    let bits = 0;
    let held = 0;
    for (const digit of digits) {
        held = ((held << 6) | alphabet.indexOf(digit)) & 0xffff;
        bits += 6;
        if (bits >= 8) { bits -= 8; out += String.fromCharCode((held >> bits) & 255); }
    }
    return out;
};
