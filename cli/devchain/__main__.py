"""`python -m cli.devchain`: run a development chain in the foreground, for people and for the demo."""

import json
import signal
import sys

import click

from cli.devchain.launcher import ENGINES, start_chain


@click.command()
@click.option("--port", default=0, help="TCP port on 127.0.0.1; 0 takes a free one.")
@click.option("--engine", type=click.Choice(ENGINES), default="auto", show_default=True)
@click.option("--block-time", default=1, show_default=True, help="Seconds; 0 mines on each transaction.")
def main(port: int, engine: str, block_time: int) -> None:
    """Print one JSON line {"url", "engine", "chain_id"} when the chain is ready, then run until stopped."""
    if engine == "py-evm":
        from cli.devchain.node import serve  # noqa: PLC0415 - py-evm takes over a second to import

        serve(port=port, block_time=block_time)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the node below is stopped as well
    with start_chain(engine, port=port, block_time=block_time) as chain:
        print(json.dumps({"url": chain.url, "engine": chain.engine, "chain_id": chain.chain_id}), flush=True)
        chain.wait()


if __name__ == "__main__":
    main()
