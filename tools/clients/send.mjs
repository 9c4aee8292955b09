// node send.mjs RPC PRIVATE_KEY CALL_JSON: sends the gateway's `call` as it is, with viem; prints the receipt's status and gas.
import { createPublicClient, createWalletClient, http } from 'viem'
import { privateKeyToAccount } from 'viem/accounts'

const [, , url, key, text] = process.argv
const call = JSON.parse(text)
const account = privateKeyToAccount(key)
const transport = http(url)
const reader = createPublicClient({ transport })
const id = await reader.getChainId()
const chain = { id, name: 'local', nativeCurrency: { name: 'Ether', symbol: 'ETH', decimals: 18 }, rpcUrls: { default: { http: [url] } } }
const wallet = createWalletClient({ account, chain, transport })
const hash = await wallet.sendTransaction({ to: call.to, data: call.data, value: BigInt(call.value) })
const receipt = await reader.waitForTransactionReceipt({ hash, pollingInterval: 50 })
console.log(JSON.stringify({ status: receipt.status, gasUsed: receipt.gasUsed.toString() }))
process.exit(receipt.status === 'success' ? 0 : 1)
