// Runs forge or anvil by the binary inside its npm package, chosen by this machine's system and processor.
// `node tools/foundry.mjs [--env NAME=VALUE] forge test`; as a module: `binary("anvil")` gives the path, so that a caller can stop it by its own pid.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");

export function binary(tool) {
  const system = { linux: "linux", darwin: "darwin", win32: "win32" }[process.platform];
  const processor = { x64: "amd64", arm64: "arm64" }[process.arch];
  const suffix = process.platform === "win32" ? ".exe" : "";
  const path = join(root, "node_modules", "@foundry-rs", `${tool}-${system}-${processor}`, "bin", tool + suffix);
  if (!existsSync(path)) throw new Error(`${tool} is not installed for ${process.platform}/${process.arch}: run npm ci --ignore-scripts`);
  return path;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const given = process.argv.slice(2);
  const env = { ...process.env };
  while (given[0] === "--env") {
    const [name, value] = given.splice(0, 2)[1].split("=");
    env[name] = value;
  }
  const [tool, ...args] = given;
  const done = spawnSync(binary(tool), args, { cwd: root, stdio: "inherit", env });
  process.exit(done.status ?? 1);
}
