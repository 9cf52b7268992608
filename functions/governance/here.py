"""A queue of looks in this process, for a governance function that is one process, in development."""

from functions.deploy.engine import Next
from functions.deploy.record import Step
from functions.governance.governor import Governor
from functions.governance.look import read_look
from functions.governance.notice import Notice, Notify
from functions.queues.in_process import InProcessSchedule


class InProcessLooks:
    """See `functions.deploy.store.Schedule`. A look that fails is made again in some seconds."""

    def __init__(self, governor: Governor, notify: Notify) -> None:
        self._governor = governor
        self._schedule = InProcessSchedule(
            self._look, lambda code, message: notify(Notice(code=code, message=message, severity="warning"))
        )

    def __call__(self, name: str, seconds: int) -> None:
        """Have a look made in so many seconds."""
        self._schedule(name, seconds)

    def _look(self, name: str) -> Next:
        look = read_look(name)
        self._governor.look(look.address, look.at_least)
        return Next(None, Step.RUNNING)
