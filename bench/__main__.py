"""`make bench`: run them, print the table, write `bench/results.json`, fail when a bar is missed."""

import argparse
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from bench import (
    attested_request,
    decisions,
    deploy_engine,
    eif_hash,
    guest_agent,
    image_build,
    import_budget,
    key_dispatch,
    key_latency,
    key_memory,
    nitro_verdict,
    tdx_verdict,
)
from bench.measure import Result

RESULTS = Path(__file__).with_name("results.json")

BENCHES: dict[str, Callable[[], Result]] = {
    "nitro-cold": nitro_verdict.cold,
    "nitro-warm": nitro_verdict.warm,
    "tdx-verdict": tdx_verdict.tdx,
    "gcp-verdict": tdx_verdict.gcp,
    "gcp-cold": tdx_verdict.gcp_cold,
    "event-replay": tdx_verdict.long_log,
    "eif-hash": eif_hash.measure,
    "import-verify": import_budget.verify,
    "import-authorize": import_budget.authorize,
    "import-deploy-aws": import_budget.deploy_aws,
    "import-deploy-gcp": import_budget.deploy_gcp,
    "import-governance-aws": import_budget.governance_aws,
    "import-governance-gcp": import_budget.governance_gcp,
    "advance": deploy_engine.advance,
    "converge": deploy_engine.converge,
    "cli-help": deploy_engine.show_help,
    "key-dispatch": key_dispatch.dispatch,
    "kms-latency": key_latency.latency,
    "kms-memory": key_memory.memory,
    "agent-get-key": guest_agent.get_key,
    "image-build": image_build.image_build,
    "authorize-decision": decisions.function,
    "proof-check": decisions.check,
    "attested-proven": attested_request.proven,
    "attested-remembered": attested_request.remembered,
}


def main() -> int:
    """Run what was asked for; 0 when every bar held, 1 when one was missed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=BENCHES, help="run this one; may be repeated")
    parser.add_argument("--json", action="store_true", help="print the results as one json object")
    chosen = parser.parse_args()
    results = []
    if not chosen.json:
        print(_row("name", "ours", "reference", "ratio", "bar", "pass"))
    for name in chosen.only or BENCHES:
        result = BENCHES[name]()
        results.append(result)
        if not chosen.json:
            print(_line(result), flush=True)
    ok = all(result.passed is not False for result in results)
    report = msgspec.json.format(msgspec.json.encode(_report(results, ok=ok)))
    RESULTS.write_bytes(report + b"\n")
    if chosen.json:
        print(report.decode())
    else:
        print("\nours and reference: CPU time per operation, best of the rounds, where nothing else is said")
        for result in results:
            print(f"\n{result.name}: {result.what}")
            for key, value in result.detail.items():
                print(f"  {key}: {value:.3f}")
    return 0 if ok else 1


def _report(results: list[Result], *, ok: bool) -> dict[str, object]:
    return {
        "ok": ok,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "results": [{**msgspec.structs.asdict(one), "pass": one.passed} for one in results],
    }


def _line(result: Result) -> str:
    bar = "reported" if result.bar is None else f"{result.bar.sense} {result.bar.ratio:g}"
    verdict = {None: "-", True: "yes", False: "NO"}[result.passed]
    return _row(
        result.name,
        _shown(result.ours, result),
        _shown(result.reference, result),
        f"{result.ratio:.3f}",
        bar,
        verdict,
    )


def _row(*cells: str) -> str:
    name, ours, reference, ratio, bar, passed = cells
    return f"{name:<20}{ours:>12}{reference:>12}{ratio:>9}  {bar:<16}{passed}"


def _shown(value: float, result: Result) -> str:
    return f"{value * 1e3:.3f} ms" if result.unit == "ms" else f"{value / 2**20:.1f} MiB"


if __name__ == "__main__":
    sys.exit(main())
