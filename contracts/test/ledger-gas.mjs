// Gas of what inference does on chain (nodes, receipts, refunds), as whole transaction receipts on anvil: fails when a ceiling is passed.
import { Wallet, ZeroHash, id } from "ethers";
import { artifact, deployPlan, startChain } from "./support/chain.mjs";

const [nodes, ledger, vault, token] = ["NodeRegistry", "ReceiptLedger", "RefundVault", "TestToken"].map((name) => artifact(name));

async function measure(chain) {
  const [owner, node, settlement, poster] = chain.accounts;
  const chainId = BigInt(await chain.rpc("eth_chainId"));
  const created = await chain.send(null, token.bytecode + token.abi.encodeDeploy(["Dollar", "USD", 6]).slice(2));
  const refundToken = created.contractAddress;
  const at = await deployPlan(chain, { owner, activationDelay: 0n, keyCommitmentAge: 0n, refundToken, settlement });
  const results = [];
  const note = (name, receipt, ceiling) => results.push({ name, gas: Number(receipt.gasUsed), ceiling });
  const to = (address, { abi }, from) => (name, ...values) => chain.send(address, abi.encodeFunctionData(name, values), { from });

  const registry = to(at.nodeRegistry, nodes, node);
  const salt = id("salt");
  const commit = async (key) => {
    const [commitment] = await chain.call(at.nodeRegistry, nodes.abi, "keyCommitment", [node, key, salt]);
    return registry("commitKey", node, commitment);
  };
  note("NodeRegistry.register, an endpoint of 28 bytes", await registry("register", "https://node.example.net:443", node, "0x4445"), 100_000);
  note("NodeRegistry.commitKey", await commit(id("key 0")), 50_000);
  note("NodeRegistry.addKey, the first", await registry("addKey", node, id("key 0"), salt), 122_000);
  for (let i = 1; i < 7; i++) {
    await commit(id(`key ${i}`));
    await registry("addKey", node, id(`key ${i}`), salt);
  }
  await commit(id("key 7"));
  note("NodeRegistry.addKey, the eighth", await registry("addKey", node, id("key 7"), salt), 138_000);
  await commit(id("key 8"));
  const [oldKeyId] = await chain.call(at.nodeRegistry, nodes.abi, "keyIdOf", [id("key 0")]);
  note("NodeRegistry.rotateKey, the ninth in place of one of eight", await registry("rotateKey", node, oldKeyId, id("key 8"), salt, 0), 132_000);
  const [keyId] = await chain.call(at.nodeRegistry, nodes.abi, "keyIdOf", [id("key 8")]);
  note("NodeRegistry.revokeKey", await registry("revokeKey", keyId, 3), 33_000);

  await to(at.receiptLedger, ledger, owner)("setPoster", poster, true);
  const post = to(at.receiptLedger, ledger, poster);
  await post("post", id("first root"), 256, 1n, 2n, ZeroHash);
  note("ReceiptLedger.post", await post("post", id("root"), 256, 1n, 2n, id("uri")), 103_000);
  note("ReceiptLedger.post again", await post("post", id("root"), 256, 1n, 2n, id("uri")), 31_000);

  const payer = new Wallet(id("payer"));
  const recipient = new Wallet(id("recipient")).address;
  await to(refundToken, token, owner)("mint", at.refundVault, 1_000_000n);
  const credit = to(at.refundVault, vault, settlement);
  await credit("credit", id("zero"), payer.address, 100n);
  note("RefundVault.credit", await credit("credit", id("one"), payer.address, 100n), 64_000);
  await credit("credit", id("two"), payer.address, 100n);
  note("RefundVault.withdraw, to an account new to the token", await credit("withdraw", id("one")), 76_000);
  const domain = { name: "Placet Refunds", version: "1", chainId, verifyingContract: at.refundVault };
  const types = { Withdrawal: [["bytes32", "paymentId"], ["address", "recipient"], ["uint64", "deadline"]].map(([type, name]) => ({ type, name })) };
  const deadline = 2n ** 40n;
  const signature = await payer.signTypedData(domain, types, { paymentId: id("two"), recipient, deadline });
  note("RefundVault.withdrawTo, by signature, likewise", await credit("withdrawTo", id("two"), recipient, deadline, signature), 82_000);
  return results;
}

const chain = await startChain({ hardfork: process.argv[2] ?? "prague" });
try {
  const results = await measure(chain);
  let failed = 0;
  for (const { name, gas, ceiling } of results) {
    if (gas > ceiling) failed++;
    console.log(`${gas > ceiling ? "OVER" : "  ok"}  ${String(gas).padStart(7)}  <= ${String(ceiling).padEnd(6)}  ${name}`);
  }
  console.log(`${results.length - failed} passed, ${failed} failed`);
  process.exitCode = failed ? 1 : 0;
} finally {
  chain.stop();
}
