// Compiles the contracts offline with the solc and OpenZeppelin of node_modules.
//
//   node build.mjs                      write artifacts/*.json and our rows of ../shared/chain/known_builds.py
//   node build.mjs --check              write nothing; exit 1 and name every file that drifted
//   node build.mjs --describe DIR EVM LABEL
//                                       print the known-build rows of the contracts in DIR, for another EVM
//                                       version or another author's sources
//
// The output depends on the sources, the settings below and the locked packages alone.

import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const require = createRequire(import.meta.url);
const solc = require("solc");
const { keccak256 } = require("js-sha3");

const HERE = dirname(fileURLToPath(import.meta.url));
const ARTIFACTS = join(HERE, "artifacts");
const KNOWN_BUILDS = join(HERE, "..", "shared", "chain", "known_builds.py");
const BEGIN = "    # begin: written by contracts/build.mjs";
const END = "    # end: written by contracts/build.mjs";

// cancun is what forge resolves to for solc 0.8.24; this compiler emits the same instructions for shanghai.
const EVM = "cancun";
const LABEL = "dstack-cloud";
const CONTRACTS = {
  DstackApp: "contracts/DstackApp.sol",
  DstackKms: "contracts/DstackKms.sol",
  ERC1967Proxy: "@openzeppelin/contracts/proxy/ERC1967/ERC1967Proxy.sol",
};

function compile(directory, evmVersion) {
  const read = (unit) => {
    const file = unit.startsWith("contracts/")
      ? join(directory, unit.slice("contracts/".length))
      : join(HERE, "node_modules", unit);
    return existsSync(file) ? { contents: readFileSync(file, "utf8") } : { error: `no file for ${unit}` };
  };
  const roots = Object.values(CONTRACTS);
  const input = {
    language: "Solidity",
    sources: Object.fromEntries(roots.map((unit) => [unit, { content: read(unit).contents }])),
    settings: {
      evmVersion,
      optimizer: { enabled: true, runs: 200 },
      outputSelection: {
        "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode", "storageLayout"] },
      },
    },
  };
  const output = JSON.parse(solc.compile(JSON.stringify(input), { import: read }));
  // our own sources compile without a warning and stay so; what others wrote is theirs to mend
  const complaints = (output.errors ?? []).filter(
    (e) => e.severity === "error" || (directory === HERE && e.sourceLocation?.file.startsWith("contracts/")),
  );
  if (complaints.length) {
    throw new Error(complaints.map((e) => e.formattedMessage).join("\n"));
  }
  return Object.fromEntries(
    Object.entries(CONTRACTS).map(([name, unit]) => [name, artifact(name, output.contracts[unit][name], evmVersion)]),
  );
}

function artifact(name, compiled, evmVersion) {
  const { object, immutableReferences = {} } = compiled.evm.deployedBytecode;
  const offsets = Object.values(immutableReferences)
    .flat()
    .map(({ start, length }) => {
      if (length !== 32) throw new Error(`${name} has an immutable of ${length} bytes, expected 32`);
      return start;
    })
    .sort((a, b) => a - b);
  const code = Buffer.from(object, "hex");
  for (const offset of offsets) code.fill(0, offset, offset + 32);
  return {
    abi: compiled.abi,
    bytecode: `0x${compiled.evm.bytecode.object}`,
    compiler: solc.version(),
    contractName: name,
    deployedBytecode: `0x${object}`,
    evmVersion,
    immutableOffsets: offsets,
    maskedKeccak256: `0x${keccak256(code)}`,
    storageLayout: compiled.storageLayout.storage.map(({ slot, offset, label, type }) => ({
      bytes: Number(compiled.storageLayout.types[type].numberOfBytes),
      label,
      offset,
      slot: Number(slot),
      // the numbers that solc appends are positions in its syntax tree
      type: type.replace(/\)\d+_storage/g, ")"),
    })),
  };
}

function knownBuild(built, label) {
  const length = (built.deployedBytecode.length - 2) / 2;
  const offsets = built.immutableOffsets;
  return [
    "    KnownBuild(",
    `        contract="${built.contractName}",`,
    `        build="${label}",`,
    `        evm="${built.evmVersion}",`,
    `        length=${length},`,
    `        immutable_offsets=(${offsets.join(", ")}${offsets.length === 1 ? "," : ""}),`,
    `        masked_keccak256="${built.maskedKeccak256}",`,
    "    ),",
  ].join("\n");
}

function sorted(value) {
  if (Array.isArray(value)) return value.map(sorted);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.keys(value).sort().map((key) => [key, sorted(value[key])]));
}

function withOurRows(table, rows) {
  const start = table.indexOf(BEGIN);
  const end = table.indexOf(END);
  if (start < 0 || end < start) throw new Error(`${KNOWN_BUILDS} has lost the marks around our rows`);
  return `${table.slice(0, start)}${BEGIN}\n${rows}\n${table.slice(end)}`;
}

function wanted() {
  const built = compile(HERE, EVM);
  const files = Object.entries(built).map(([name, content]) => [
    join(ARTIFACTS, `${name}.json`),
    `${JSON.stringify(sorted(content), null, 1)}\n`,
  ]);
  const rows = Object.values(built).map((one) => knownBuild(one, LABEL));
  files.push([KNOWN_BUILDS, withOurRows(readFileSync(KNOWN_BUILDS, "utf8"), rows.join("\n"))]);
  return files;
}

function main([mode, ...rest]) {
  if (mode === "--describe" && rest.length === 3) {
    const [directory, evmVersion, label] = rest;
    for (const one of Object.values(compile(directory, evmVersion))) console.log(knownBuild(one, label));
    return 0;
  }
  if (mode !== undefined && mode !== "--check") {
    console.error("usage: node build.mjs [--check | --describe DIR EVM LABEL]");
    return 2;
  }
  const drifted = wanted().filter(([file, text]) => !existsSync(file) || readFileSync(file, "utf8") !== text);
  if (mode === "--check") {
    for (const [file] of drifted) console.error(`${file} is not what the sources compile to: run make contracts`);
    return drifted.length ? 1 : 0;
  }
  mkdirSync(ARTIFACTS, { recursive: true });
  for (const [file, text] of drifted) writeFileSync(file, text);
  console.log(drifted.length ? `wrote ${drifted.map(([file]) => file).join(", ")}` : "nothing changed");
  return 0;
}

process.exitCode = main(process.argv.slice(2));
