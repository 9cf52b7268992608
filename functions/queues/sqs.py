"""Calls to `advance` as messages of an SQS queue; `functions.deploy.aws_worker` answers them."""

from typing import Final

from functions.aws_api import AwsClient, aws_errors, error_code
from functions.deploy.cloud import DeniedError
from functions.deploy.worker import encode_message
from shared.errors import CloudError

MAX_DELAY: Final = 900
"""Seconds that SQS holds a message back. Of a longer wait `advance` then says how much is left."""


class SqsSchedule:
    """See `functions.deploy.store.Schedule`. The queue is a standard one: only there a message has a delay.

    Raises the errors of `aws_error`, and `DeniedError("aws.sqs.queue")` without the queue.
    """

    def __init__(self, queue_url: str, client: AwsClient) -> None:
        self._queue_url = queue_url
        self._client = client

    def __call__(self, name: str, seconds: int) -> None:
        """Have `advance` called for a name, in so many seconds or in `MAX_DELAY`."""
        what = f"scheduling deployment {name}"
        try:
            with aws_errors(what):
                self._client.send_message(
                    QueueUrl=self._queue_url,
                    MessageBody=encode_message(name).decode(),
                    DelaySeconds=min(max(seconds, 0), MAX_DELAY),
                )
        except CloudError as error:
            if not error_code(error.__cause__).endswith(("QueueDoesNotExist", "NonExistentQueue")):
                raise
            raise DeniedError(
                "aws.sqs.queue",
                f"{what}: there is no queue {self._queue_url}",
                "deploy the stack that makes the queue, or correct its url and region",
            ) from error
