// Every call of the released JavaScript SDK, against the agent of the two variables. Prints one JSON object.
import { DstackClient, TappdClient } from "@phala/dstack-sdk";
import { toKeypairSecure } from "@phala/dstack-sdk/solana";
import { toViemAccountSecure } from "@phala/dstack-sdk/viem";

const hex = (bytes) => Buffer.from(bytes).toString("hex");
const failure = async (call) => {
  try {
    await call();
    return null;
  } catch (error) {
    return error.message;
  }
};

const client = new DstackClient();
const tappd = new TappdClient();
const data = Buffer.alloc(32, 7);

const key = await client.getKey("wallet", "ethereum");
const quote = await client.getQuote("test");
const tls = await client.getTlsKey({
  subject: "app", altNames: ["localhost"], usageRaTls: true, usageServerAuth: true, withAppInfo: true,
});
const verdicts = {};
for (const algorithm of ["ed25519", "secp256k1", "secp256k1_prehashed"]) {
  const signed = await client.sign(algorithm, data);
  verdicts[algorithm] = [
    (await client.verify(algorithm, data, signed.signature, signed.public_key)).valid,
    (await client.verify(algorithm, Buffer.alloc(32, 8), signed.signature, signed.public_key)).valid,
  ];
}
const derived = await tappd.deriveKey("/", "test");
const hashed = await tappd.tdxQuote("test", "sha512");

process.stdout.write(JSON.stringify({
  key: hex(key.key),
  chain: key.signature_chain.map(hex),
  ed25519: hex((await client.getKey("wallet", "ethereum", "ed25519")).key),
  rsa: await failure(() => client.getKey("wallet", "", "rsa")),
  quote: quote.quote,
  report_data: quote.report_data,
  replayed: quote.replayRtmrs(),
  attestation: (await client.attest(data)).attestation,
  info: await client.info(),
  version: (await client.version()).version,
  reachable: [await client.isReachable(), await tappd.isReachable()],
  event: await failure(() => client.emitEvent("mine", "payload")),
  certificates: tls.certificate_chain,
  tls_key: tls.key,
  verdicts,
  ethereum: toViemAccountSecure(key).address,
  solana: toKeypairSecure(key).publicKey.toBase58(),
  derived: [derived.key, (await tappd.deriveKey("/", "test")).key],
  hashed: hashed.quote,
}));
