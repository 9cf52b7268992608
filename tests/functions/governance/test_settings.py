"""Settings and secrets: what is wrong is named, and no secret is shown."""

import base64

import pytest

from functions.governance.secret_source import KEEP_SECONDS, SecretCache, fetch_from
from functions.governance.settings import read_settings
from shared.errors import ConfigError, UnavailableError
from tests.fakes.aws import REGION, AwsServer
from tests.shared.refusal import refuses

GOOD = {
    "DSTACK_GOVERNANCE_RPC_URLS": "https://a.example/key https://b.example/key https://c.example/key",
    "DSTACK_KMS_CONTRACT": "0x9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0",
    "DSTACK_CHAIN_ID": "8453",
    "DSTACK_WEBHOOK_SECRETS": "plain=aws:hooks/plain alchemy=gcp:projects/p/secrets/alchemy",
}
SECRET = "a secret of thirty characters."


def test_a_majority_is_the_quorum_unless_another_is_named() -> None:
    settings = read_settings(GOOD)
    assert (settings.quorum, settings.chain_id) == (2, 8453)
    assert settings.secrets == {"plain": "aws:hooks/plain", "alchemy": "gcp:projects/p/secrets/alchemy"}
    assert read_settings(GOOD | {"DSTACK_GOVERNANCE_QUORUM": "3"}).quorum == 3
    assert "key" not in repr(settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"DSTACK_GOVERNANCE_RPC_URLS": " "},
        {"DSTACK_GOVERNANCE_QUORUM": "4"},
        {"DSTACK_GOVERNANCE_QUORUM": "0"},
        {"DSTACK_GOVERNANCE_MAX_HEAD_AGE": "soon"},
        {"DSTACK_KMS_CONTRACT": "0x00"},
        {"DSTACK_CHAIN_ID": ""},
        {"DSTACK_GOVERNANCE_NOTIFY_URL": "http://hook.example"},
        {"DSTACK_WEBHOOK_SECRETS": "nobody=aws:x"},
        {"DSTACK_WEBHOOK_SECRETS": "plain=file:x"},
        {"DSTACK_WEBHOOK_SECRETS": "plain=env:X"},
        {"DSTACK_WEBHOOK_SECRETS": "plain=aws:x plain=aws:y"},
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused(wrong: dict[str, str]) -> None:
    with refuses("governance.settings", ConfigError):
        read_settings(GOOD | wrong)


class TestSecrets:
    def test_a_secret_is_kept_for_a_minute(self) -> None:
        content = [f"{SECRET}\n"]
        cache = SecretCache({"plain": "env:X"}, lambda _: content[0])
        assert cache.get("plain", 100) == (SECRET.encode(),)
        content[0] = f"another {SECRET}\n{SECRET}\n"
        assert len(cache.get("plain", 100 + KEEP_SECONDS - 1)) == 1
        assert cache.get("plain", 100 + KEEP_SECONDS) == (f"another {SECRET}".encode(), SECRET.encode())

    @pytest.mark.parametrize("content", ["", "short", f"{SECRET}\n{SECRET}\n{SECRET}"], ids=len)
    def test_what_is_no_secret_lets_nobody_in(self, content: str) -> None:
        with refuses("governance.secret", ConfigError):
            SecretCache({"plain": "env:X"}, lambda _: content).get("plain", 0)

    def test_a_provider_without_a_secret_is_not_taken(self) -> None:
        with refuses("governance.provider", ConfigError):
            SecretCache({}, lambda _: SECRET).get("plain", 0)

    def test_it_is_read_from_secrets_manager(self, aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", aws.url)
        monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        aws.new_client("secretsmanager").create_secret(Name="hooks/plain", SecretString=SECRET)
        assert fetch_from({})("aws:hooks/plain") == SECRET

    def test_it_is_read_from_secret_manager(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []

        class Session:
            def call(self, method: str, url: str) -> object:
                asked.append(f"{method} {url}")
                return {"payload": {"data": base64.b64encode(SECRET.encode()).decode()}}

        monkeypatch.setattr("functions.google_api.endpoint.google_session", lambda _: Session())
        assert fetch_from({})("gcp:projects/p/secrets/alchemy") == SECRET
        assert asked == [
            "GET https://secretmanager.googleapis.com/v1/projects/p/secrets/alchemy/versions/latest:access"
        ]

    def test_a_secret_that_is_no_text_is_told(self, aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", aws.url)
        monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        aws.new_client("secretsmanager").create_secret(Name="hooks/bytes", SecretBinary=SECRET.encode())
        with refuses("governance.secret.answer", UnavailableError):
            fetch_from({})("aws:hooks/bytes")

    def test_an_answer_without_a_secret_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Session:
            def call(self, method: str, url: str) -> object:
                return {"payload": {"at": f"{method} {url}"}}

        monkeypatch.setattr("functions.google_api.endpoint.google_session", lambda _: Session())
        with refuses("governance.secret.answer", UnavailableError):
            fetch_from({})("gcp:projects/p/secrets/alchemy")
