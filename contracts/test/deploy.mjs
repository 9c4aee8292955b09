// Deploys with the forge script on two chains, one with the precompiles and one without, and without forge by deploy-plan.json:
// both ways must end at the same addresses, and a chain without the precompiles must be refused before anything is sent.
import { spawnSync } from "node:child_process";
import { readFileSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { binary } from "../tools/foundry.mjs";
import { deployPlan, startChain } from "./support/chain.mjs";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const file = join(root, "deployments", "31337.json");
const activationDelay = 3600n;

const keyCommitmentAge = 60n;
const refundToken = "0x00000000000000000000000000000000000000aa";
const settlement = "0x00000000000000000000000000000000000000bb";
const inference = {
  PLACET_KEY_COMMITMENT_AGE: `${keyCommitmentAge}`,
  PLACET_REFUND_TOKEN: refundToken,
  PLACET_SETTLEMENT: settlement,
};

function script(chain, more = {}) {
  const owner = chain.accounts[0];
  return spawnSync(
    binary("forge"),
    ["script", "script/Deploy.s.sol", "--rpc-url", chain.url, "--broadcast", "--unlocked", "--sender", owner, "--slow"],
    { cwd: root, encoding: "utf8", env: { ...process.env, PLACET_OWNER: owner, PLACET_ACTIVATION_DELAY: `${activationDelay}`, ...more } },
  );
}

let passed = 0;
let failed = 0;
function expect(what, holds) {
  holds ? passed++ : failed++;
  console.log(`${holds ? "  ok" : "FAIL"}  ${what}`);
}

const prague = await startChain();
try {
  rmSync(file, { force: true });
  const first = script(prague);
  if (first.status !== 0) console.error(first.stdout, first.stderr);
  expect("the script deploys", first.status === 0);
  const least = JSON.parse(readFileSync(file, "utf8"));
  expect("what is optional is not deployed unasked", !("nodeRegistry" in least || "receiptLedger" in least || "refundVault" in least));
  expect("and is deployed when its parameters are given", script(prague, inference).status === 0);
  const written = JSON.parse(readFileSync(file, "utf8"));
  const count = await prague.rpc("eth_getTransactionCount", [prague.accounts[0], "latest"]);
  expect("the script deploys again without sending anything", script(prague, inference).status === 0
    && (await prague.rpc("eth_getTransactionCount", [prague.accounts[0], "latest"])) === count);

  const other = await startChain();
  try {
    const planned = await deployPlan(other, { owner: other.accounts[0], activationDelay, keyCommitmentAge, refundToken, settlement });
    expect("the plan has all that the script writes", "refundVault" in planned && Object.keys(planned).every((key) => key in written));
    for (const [key, address] of Object.entries(planned)) {
      expect(`${key} is at the same address either way`, address.toLowerCase() === written[key].toLowerCase());
      expect(`${key} has the same code either way`, (await other.rpc("eth_getCode", [address, "latest"])) === (await prague.rpc("eth_getCode", [address, "latest"])));
    }
  } finally {
    other.stop();
  }
} finally {
  prague.stop();
}

const cancun = await startChain({ hardfork: "cancun" });
try {
  const refused = script(cancun);
  expect("a chain without the precompiles is refused", refused.status !== 0 && /PrecompileMissing/.test(refused.stdout + refused.stderr));
  expect("and nothing was sent to it", Number(await cancun.rpc("eth_getTransactionCount", [cancun.accounts[0], "latest"])) === 0);
} finally {
  cancun.stop();
  rmSync(file, { force: true });
}
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed ? 1 : 0;
