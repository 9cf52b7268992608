"""A command whose pauses take no time: the clock jumps instead, so that polls of a cloud cost nothing.

`python -m tests.end_to_end.fast_clock ARGUMENTS` is `dstack-cloud ARGUMENTS` with that clock.
"""

import time

import cli.deployments
import cli.runtime
from cli.main import main

YIELD = 0.01
"""Real seconds of each pause, for the machines that boot meanwhile."""


class FastClock:
    def __init__(self) -> None:
        self.skipped = 0.0

    def __call__(self) -> int:
        return int(time.time() + self.skipped)

    def sleep(self, seconds: float) -> None:
        self.skipped += seconds
        time.sleep(YIELD)


def install() -> FastClock:
    """Give this process's commands the clock."""
    clock = FastClock()
    cli.runtime.now = clock
    defaults = cli.deployments.HereDeployments.__init__.__kwdefaults__
    assert defaults is not None
    defaults["sleep"] = clock.sleep
    return clock


if __name__ == "__main__":
    install()
    main()
