// A chain of one's own for the scripts here: anvil on a free loopback port, stopped by its own handle, and a few helpers around it.
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { createServer } from "node:net";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { AbiCoder, Interface, concat, getCreate2Address, id, keccak256 } from "ethers";
import { binary } from "../../tools/foundry.mjs";

const contracts = join(dirname(fileURLToPath(import.meta.url)), "..", "..");
export const coder = AbiCoder.defaultAbiCoder();

export function artifact(name) {
  const { abi, bytecode } = JSON.parse(readFileSync(join(contracts, "artifacts", `${name}.json`), "utf8"));
  return { abi: new Interface(abi), bytecode };
}

async function freePort() {
  const server = createServer();
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Starts anvil; answers {url, rpc, accounts, send, call, stop}. */
export async function startChain({ hardfork = "prague" } = {}) {
  const port = await freePort();
  const process_ = spawn(binary("anvil"), ["--hardfork", hardfork, "--host", "127.0.0.1", "--port", `${port}`, "--silent", ...(process.env.ANVIL_ARGS ?? "").split(" ").filter(Boolean)], {
    stdio: "ignore",
  });
  const rpc = async (method, params = []) => {
    const answer = await fetch(`http://127.0.0.1:${port}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ jsonrpc: "2.0", id: 1, method, params }),
    });
    const { result, error } = await answer.json();
    if (error) throw new Error(`${method}: ${error.message} ${JSON.stringify(error.data ?? "")}`);
    return result;
  };
  const deadline = Date.now() + 20_000;
  for (;;) {
    try {
      await rpc("eth_chainId");
      break;
    } catch (error) {
      if (process_.exitCode !== null || Date.now() > deadline) throw new Error(`anvil did not start: ${error.message}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
  const accounts = await rpc("eth_accounts");

  /** Sends a transaction and answers its receipt; throws when it reverted. */
  async function send(to, data, { from = accounts[0], value = 0n, gas = 10_000_000 } = {}) {
    const transaction = { from, data, gas: "0x" + gas.toString(16), value: "0x" + value.toString(16) };
    if (to) transaction.to = to;
    const hash = await rpc("eth_sendTransaction", [transaction]);
    for (;;) {
      const receipt = await rpc("eth_getTransactionReceipt", [hash]);
      if (receipt) {
        if (receipt.status !== "0x1") throw new Error(`reverted: ${hash} ${await reason(transaction)}`);
        return receipt;
      }
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }
  async function reason(transaction) {
    return rpc("eth_call", [transaction, "latest"]).then(() => "", (error) => error.message);
  }
  async function call(to, abi, name, args) {
    const data = abi.encodeFunctionData(name, args);
    return abi.decodeFunctionResult(name, await rpc("eth_call", [{ to, data }, "latest"]));
  }
  return { url: `http://127.0.0.1:${port}`, rpc, accounts, send, call, stop: () => process_.kill() };
}

/** Deploys what deploy-plan.json lists, through the CREATE2 factory, of the optional steps those whose parameters are given. Answers {key: address}. */
export async function deployPlan(chain, parameters) {
  const plan = JSON.parse(readFileSync(join(contracts, "deploy-plan.json"), "utf8"));
  const addresses = {};
  const isGiven = (name) => name.startsWith("$") || name in parameters;
  for (const step of [...plan.steps, ...plan.optional.filter((step) => step.arguments.every(isGiven))]) {
    const { abi, bytecode } = artifact(step.contract);
    const values = step.arguments.map((name) => (name.startsWith("$") ? addresses[name.slice(1)] : parameters[name]));
    const init = concat([bytecode, abi.encodeDeploy(values)]);
    addresses[step.key] = getCreate2Address(plan.factory, id(step.salt), keccak256(init));
    await chain.send(plan.factory, concat([id(step.salt), init]));
  }
  return addresses;
}
