// Prints what @phala/dcap-qvl says of TDX quotes.
//
//   node verdicts.mjs < cases.json
//
// Reads [{ name, quote, root, collateral, now }]: quote and root in hex, collateral in upstream's JSON form, now
// in unix seconds. Writes { [name]: { status, advisory_ids } or { error } }.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { QuoteVerifier } = createRequire(import.meta.url)("@phala/dcap-qvl");

function verdict({ quote, root, collateral, now }) {
  try {
    const verifier = QuoteVerifier.newWithRootCa(Buffer.from(root, "hex"));
    const report = verifier.verify(new Uint8Array(Buffer.from(quote, "hex")), collateral, now);
    return { status: report.status, advisory_ids: report.advisory_ids };
  } catch (error) {
    const reasons = [];
    for (let at = error; at; at = at.cause) reasons.push(at.message ?? String(at));
    return { error: reasons.join(": ") };
  }
}

const cases = JSON.parse(readFileSync(0, "utf8"));
const verdicts = Object.fromEntries(cases.map((one) => [one.name, verdict(one)]));
process.stdout.write(JSON.stringify(verdicts));
