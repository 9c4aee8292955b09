// Writes test/vectors/digests.json and test/vectors/bls.json with libraries that share nothing with the contracts or the services
// (ethers, @noble/curves): a first set of golden values, in the shape that the forge tests read. `--bls-only` leaves digests.json, which
// the services' generator writes too, as it is.
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { TypedDataEncoder, concat, hexlify, id, keccak256, sha256, toUtf8Bytes } from "ethers";
import { Key, g1 } from "../test/support/bls.mjs";

const folder = join(dirname(fileURLToPath(import.meta.url)), "..", "test", "vectors");

const members = (text) => text.split(",").map((part) => ({ type: part.split(" ")[0], name: part.split(" ")[1] }));
const types = {
  Intent: members("address from,address to,uint256 value,bytes data,uint256 chainId,string functionSignature,uint256 nonce,uint64 deadline"),
  Leaf: members("bytes32 taskId,address policyClient,bytes32 policyId,bytes32 intentHash,uint64 sequence,bool allow,bytes32 output,bytes32 evidence,uint64 expiration"),
  Certificate: members("bytes32 root,uint32 count,uint64 epoch,uint64 timestamp"),
  RegisterKey: members("address operator,bytes32 keyId,bytes32 busKey"),
  Task: members("uint256 chainId,address validator,address policyClient,bytes32 policyId,bytes32 intentHash,bytes32 argsHash,uint64 timestamp"),
};
const policyTypes = {
  Policy: members("RegoModule[] modules,string entrypoint,bytes params,bytes schema,bytes32[] policyDataIds,ArgumentBinding[] bindings,GovernedCall[] calls,uint8 ordering,uint64 validFor,uint64 retryAfter,bytes inference,bytes32 engineSha256,uint64 regoFuel,uint64 regoMemory"),
  ArgumentBinding: members("uint32 policyData,string name,uint8 source,string value"),
  GovernedCall: members("bool self,address target,string signature,string unpack"),
  RegoModule: members("string name,bytes source"),
};
const only = (name) => ({ [name]: types[name] });
const domain = (name, chainId, verifyingContract) => ({ name, version: "1", chainId, verifyingContract });
const address = (name) => hexlify("0x" + id(name).slice(26));

function intents() {
  const plain = {
    from: address("alice"), to: address("bob"), value: "0", data: "0x", chainId: "1", functionSignature: "()", nonce: "0", deadline: "1800000000",
  };
  const full = {
    from: address("carol"), to: address("token"), value: "123456789012345678901234567890", data: concat([id("transfer(address,uint256)").slice(0, 10), "0x" + "ab".repeat(64)]),
    chainId: "31337", functionSignature: "transfer(address,uint256)", nonce: "115792089237316195423570985008687907853269984665640564039457584007913129639935",
    deadline: "18446744073709551615",
  };
  return [plain, full].map((intent, i) => {
    const client = address(`client ${i}`);
    const digest = TypedDataEncoder.hash(domain("Placet Intent", intent.chainId, client), only("Intent"), intent);
    return { ...intent, client, digest };
  });
}

function leaves() {
  const leaf = (i, allow) => ({
    taskId: id(`task ${i}`), policyClient: address(`client ${i}`), policyId: id("policy"), intentHash: id(`intent ${i}`), sequence: `${i}`, allow,
    output: i ? id("output") : "0x" + "00".repeat(32), evidence: id(`evidence ${i}`), expiration: `${1800000000 + i}`,
  });
  return [leaf(0, true), leaf(7, false)].map((fields) => {
    const structHash = TypedDataEncoder.hashStruct("Leaf", only("Leaf"), fields);
    return { ...fields, structHash, leafHash: keccak256(concat(["0x00", structHash])) };
  });
}

function certificates() {
  return [["1", 1, "1"], ["31337", 256, "12"]].map(([chainId, count, epoch]) => {
    const certificate = { root: id(`root ${count}`), count: `${count}`, epoch, timestamp: "1800000000" };
    const validator = address(`validator ${chainId}`);
    return { ...certificate, validator, chainId, digest: TypedDataEncoder.hash(domain("Placet", chainId, validator), only("Certificate"), certificate) };
  });
}

function tasks() {
  const task = {
    chainId: "31337", validator: address("validator"), policyClient: address("client"), policyId: id("policy"), intentHash: id("intent"), argsHash: id("args"),
    timestamp: "1800000000",
  };
  return [{ ...task, taskId: TypedDataEncoder.hashStruct("Task", only("Task"), task) }];
}

function registrations() {
  const fields = { operator: address("operator"), keyId: id("key"), busKey: id("bus") };
  const registry = address("registry");
  return [{ ...fields, registry, chainId: "31337", digest: TypedDataEncoder.hash(domain("Placet Registry", "31337", registry), only("RegisterKey"), fields) }];
}

function policies() {
  const policy = {
    modules: [{ name: "a.rego", source: toUtf8Bytes("package a") }, { name: "b.rego", source: toUtf8Bytes("package b") }],
    entrypoint: "data.a.allow", params: toUtf8Bytes("{}"), schema: "0x", policyDataIds: [id("component 0"), id("component 1")],
    bindings: [{ policyData: 1, name: "address", source: 2, value: "/to" }],
    calls: [{ self: true, target: "0x" + "00".repeat(20), signature: "withdraw(uint256,address,address)", unpack: "" }],
    ordering: 1, validFor: 300, retryAfter: 60, inference: "0x", engineSha256: sha256(toUtf8Bytes("engine")), regoFuel: 1000000000, regoMemory: 67108864,
  };
  const struct = (name, value) => TypedDataEncoder.hashStruct(name, { [name]: policyTypes[name] }, value);
  const array = (name, values) => keccak256(concat(values.map((value) => struct(name, value))));
  const preimage = {
    modules: array("RegoModule", policy.modules), entrypoint: id(policy.entrypoint), params: keccak256(policy.params), schema: keccak256(policy.schema),
    policyDataIds: keccak256(concat(policy.policyDataIds)), bindings: array("ArgumentBinding", policy.bindings), calls: array("GovernedCall", policy.calls),
    ordering: "1", validFor: "300", retryAfter: "60", inference: keccak256(policy.inference), engineSha256: policy.engineSha256, regoFuel: "1000000000",
    regoMemory: "67108864",
  };
  return [{ ...preimage, policyId: TypedDataEncoder.hashStruct("Policy", policyTypes, policy) }];
}

function treeOf(hashes) {
  if (hashes.length === 1) return { root: hashes[0], proofs: [[]] };
  let split = 1;
  while (split * 2 < hashes.length) split *= 2;
  const [left, right] = [treeOf(hashes.slice(0, split)), treeOf(hashes.slice(split))];
  return {
    root: keccak256(concat(["0x01", left.root, right.root])),
    proofs: [...left.proofs.map((proof) => [...proof, right.root]), ...right.proofs.map((proof) => [...proof, left.root])],
  };
}

const merkle = () => [1, 2, 3, 7, 8].map((count) => {
  const hashes = Array.from({ length: count }, (_, i) => id(`leaf ${i}`));
  return { leaves: hashes, ...treeOf(hashes) };
});

function blsVectors() {
  return Array.from({ length: 8 }, (_, i) => {
    const secret = i === 0 ? 1n : BigInt(id(`bls vector ${i}`)) >> 2n;
    const key = new Key(secret);
    const digest = id(`digest ${i}`);
    return {
      secret: secret.toString(), key: concat(g1(key.point)), compressed: hexlify(key.point.toRawBytes(true)), possession: concat(key.prove()),
      digest, signature: concat(key.sign(digest)), basicSignature: concat(key.signBasic(digest)),
    };
  });
}

mkdirSync(folder, { recursive: true });
const write = (name, value) => writeFileSync(join(folder, name), JSON.stringify(value, null, 1) + "\n");
if (!process.argv.includes("--bls-only")) {
  write("digests.json", {
    intent: intents(), leaf: leaves(), certificate: certificates(), task: tasks(), policy: policies(), merkle: merkle(), registerKey: registrations(),
  });
}
write("bls.json", { vectors: blsVectors() });
