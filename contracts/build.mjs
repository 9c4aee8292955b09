// Compiles the deployable contracts with the npm compiler and writes artifacts/<Name>.json {abi, bytecode, deployedBytecode}.
// `--check` compiles again and fails when what is checked in differs. Settings are the same as in foundry.toml, and without metadata
// in the bytecode the result depends on nothing but the sources, so addresses of CREATE2 are the same everywhere.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import solc from "solc";

const root = dirname(fileURLToPath(import.meta.url));
const folder = join(root, "artifacts");

const deployables = {
  OperatorRegistry: "src/OperatorRegistry.sol",
  OwnerWeights: "src/stake/OwnerWeights.sol",
  ERC20Deposit: "src/stake/ERC20Deposit.sol",
  PolicyRegistry: "src/PolicyRegistry.sol",
  AttestationValidator: "src/AttestationValidator.sol",
  NodeRegistry: "src/NodeRegistry.sol",
  ReceiptLedger: "src/ReceiptLedger.sol",
  RefundVault: "src/RefundVault.sol",
  Groth16Verifier: "src/Groth16Verifier.sol",
  GuardedVault: "src/examples/GuardedVault.sol",
  GuardedWallet: "src/examples/GuardedWallet.sol",
  TestToken: "src/examples/TestToken.sol",
};

// Compiled apart: what is compiled together shapes the others' bytecode through the IR, and addresses above must not move.
const payment = {
  TestUSDC: "src/payment/TestUSDC.sol",
  ExactPermit2Proxy: "src/payment/ExactPermit2Proxy.sol",
  UptoPermit2Proxy: "src/payment/UptoPermit2Proxy.sol",
};

// Permit2's runtime code, from a helper of its own tests. The domain separator cached in it is that of another address on chain 31337; with
// 0 for the cached chain it makes one wherever it is asked, as it does on a forked chain.
function permit2() {
  const periphery = join(root, "node_modules/@uniswap/v4-periphery");
  const helper = readFileSync(join(periphery, "lib/permit2/test/utils/DeployPermit2.sol"), "utf8");
  const parts = /hex"([0-9a-f]+)"/.exec(helper)[1].split("7f" + (31337).toString(16).padStart(64, "0"));
  if (parts.length !== 2) throw new Error("Permit2: the cached chain is not where it was");
  const deployedBytecode = "0x" + parts.join("7f" + "0".repeat(64));
  const { abi } = JSON.parse(readFileSync(join(periphery, "foundry-out/ISignatureTransfer.sol/ISignatureTransfer.json"), "utf8"));
  const errors = { SignatureExpired: ["uint256"], InvalidNonce: [], InvalidSignatureLength: [], InvalidSignature: [], InvalidSigner: [] };
  for (const [name, types] of Object.entries({ ...errors, InvalidContractSignature: [] })) {
    abi.push({ type: "error", name, inputs: types.map((type) => ({ name: "", type, internalType: type })) });
  }
  return JSON.stringify({ abi, deployedBytecode }, null, 1) + "\n";
}

function compile(deployables) {
  const sources = {};
  for (const path of Object.values(deployables)) sources[path] = { content: readFileSync(join(root, path), "utf8") };
  const outputSelection = {};
  for (const [name, path] of Object.entries(deployables)) {
    outputSelection[path] = { [name]: ["abi", "evm.bytecode.object", "evm.deployedBytecode.object"] };
  }
  const input = {
    language: "Solidity",
    sources,
    settings: {
      evmVersion: "prague",
      optimizer: { enabled: true, runs: 20_000 },
      viaIR: true,
      metadata: { bytecodeHash: "none", appendCBOR: false },
      remappings: ["@openzeppelin/contracts/=node_modules/@openzeppelin/contracts/"],
      outputSelection,
    },
  };
  const find = (path) => {
    const file = join(root, path);
    return existsSync(file) ? { contents: readFileSync(file, "utf8") } : { error: `${path} not found` };
  };
  const output = JSON.parse(solc.compile(JSON.stringify(input), { import: find }));
  const problems = output.errors ?? [];
  for (const problem of problems) console.error(problem.formattedMessage);
  if (problems.some((problem) => problem.severity === "error")) process.exit(1);
  return Object.fromEntries(
    Object.entries(deployables).map(([name, path]) => {
      const { abi, evm } = output.contracts[path][name];
      const artifact = {
        abi,
        bytecode: "0x" + evm.bytecode.object,
        deployedBytecode: "0x" + evm.deployedBytecode.object,
      };
      return [`${name}.json`, JSON.stringify(artifact, null, 1) + "\n"];
    }),
  );
}

const artifacts = { ...compile(deployables), ...compile(payment), "Permit2.json": permit2() };
const present = existsSync(folder) ? readdirSync(folder).filter((name) => name.endsWith(".json")) : [];
const strays = present.filter((name) => !(name in artifacts));

if (process.argv.includes("--check")) {
  const differing = Object.entries(artifacts)
    .filter(([name, text]) => !present.includes(name) || readFileSync(join(folder, name), "utf8") !== text)
    .map(([name]) => name);
  for (const name of [...differing, ...strays]) console.error(`artifacts/${name} is not what the sources compile to: run npm run build`);
  if (differing.length + strays.length > 0) process.exit(1);
  console.log(`${present.length} artifacts are what the sources compile to (solc ${solc.version()})`);
} else {
  mkdirSync(folder, { recursive: true });
  for (const name of strays) rmSync(join(folder, name));
  for (const [name, text] of Object.entries(artifacts)) {
    writeFileSync(join(folder, name), text);
    const bytes = JSON.parse(text).deployedBytecode.length / 2 - 1;
    console.log(`${relative(root, join(folder, name))}: ${bytes} bytes deployed`);
  }
}
