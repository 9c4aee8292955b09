#!/usr/bin/env node
// The npm compiler (WebAssembly) behind the two switches of the native one that forge uses, so that node is all a machine needs.
const fs = require("fs");
const solc = require("solc");

const args = process.argv.slice(2);
if (args.includes("--version")) {
  console.log(`solc, the solidity compiler commandline interface\nVersion: ${solc.version()}`);
} else if (args.includes("--standard-json")) {
  const output = Buffer.from(solc.compile(fs.readFileSync(0, "utf8")));
  for (let sent = 0; sent < output.length; ) {
    try {
      sent += fs.writeSync(1, output, sent);
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
    }
  }
} else {
  console.error("solc.cjs: only --version and --standard-json are answered");
  process.exitCode = 1;
}
