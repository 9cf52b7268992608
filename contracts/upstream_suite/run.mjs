// Runs upstream's own forge suite, unchanged, against our contracts.
//
//   node run.mjs CHECKOUT [FORGE-TEST-OPTION...]
//
// CHECKOUT is a working tree of Dstack-TEE/dstack. Its tests, and the two V2 contracts that they upgrade to, are
// laid beside ours in build/, which is made anew each time: leavings of an earlier build confuse the plugin that
// checks upgrades. Nothing is fetched. Exits with forge's status; the last line counts what passed.

import { spawnSync } from "node:child_process";
import { copyFileSync, cpSync, existsSync, mkdirSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const HERE = dirname(fileURLToPath(import.meta.url));
const OURS = dirname(HERE);
const BUILD = join(HERE, "build");
const FORGE = join(HERE, "node_modules", "@foundry-rs", "forge-linux-amd64", "bin", "forge");
const SUITE = join("dstack", "kms", "auth-eth");

// Upstream's settings, with the libraries of npm in place of its submodules; forge-std is in LayerZero's toolbox.
const CONFIGURATION = `[profile.default]
src = "contracts"
test = "test"
out = "out"
libs = ["node_modules"]
auto_detect_remappings = false
remappings = [
  "@openzeppelin/contracts-upgradeable/=node_modules/@openzeppelin/contracts-upgradeable/",
  "@openzeppelin/contracts/=node_modules/@openzeppelin/contracts/",
  "forge-std/=node_modules/@layerzerolabs/toolbox-foundry/lib/forge-std/",
  "openzeppelin-foundry-upgrades/=node_modules/@openzeppelin/foundry-upgrades/src/",
]
optimizer = true
optimizer_runs = 200
via_ir = false
ast = true
build_info = true
extra_output = ["storageLayout"]
`;

function layOut(checkout) {
  const upstream = join(checkout, SUITE);
  rmSync(BUILD, { recursive: true, force: true });
  mkdirSync(join(BUILD, "contracts"), { recursive: true });
  for (const name of readdirSync(OURS).filter((one) => one.endsWith(".sol"))) {
    copyFileSync(join(OURS, name), join(BUILD, "contracts", name));
  }
  cpSync(join(upstream, "contracts", "test-utils"), join(BUILD, "contracts", "test-utils"), { recursive: true });
  cpSync(join(upstream, "test"), join(BUILD, "test"), { recursive: true });
  symlinkSync(join(HERE, "node_modules"), join(BUILD, "node_modules"));
  writeFileSync(join(BUILD, "foundry.toml"), CONFIGURATION);
}

function main([checkout, ...options]) {
  if (checkout === undefined || !existsSync(join(checkout, SUITE, "test"))) {
    console.error(`usage: node run.mjs CHECKOUT [FORGE-TEST-OPTION...]; a checkout has ${join(SUITE, "test")}`);
    return 2;
  }
  if (!existsSync(FORGE)) {
    console.error(`no forge in ${HERE}: run npm ci --ignore-scripts there (linux on x86-64 only)`);
    return 2;
  }
  layOut(checkout);
  const done = spawnSync(FORGE, ["test", "--offline", "--ffi", "--use", join(HERE, "solc.cjs"), ...options], {
    cwd: BUILD,
    stdio: "inherit",
    // the plugin asks npx for a checker that is installed here, and must not look for a newer one elsewhere
    env: { ...process.env, npm_config_offline: "true" },
  });
  return done.status ?? 1;
}

process.exitCode = main(process.argv.slice(2));
