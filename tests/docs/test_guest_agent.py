"""docs/guest-agent.md has every setting with its default, and the codes of the agent's own."""

import re

import pytest

from enclave.agent.config import AgentConfig
from tests.docs.references import REPOSITORY, is_error_code

PAGE = (REPOSITORY / "docs" / "guest-agent.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("|") and not line.startswith("|---")
]
CODES = {
    code
    for row in ROWS
    for code in re.findall(r"`([a-z0-9_]+(?:\.[a-z0-9_]+)+)`", row[0])
    if not code.startswith(("default.", "internal", "external.", "guest-api"))
}
START = ("config", "daemon", "sockets", "own_identity", "guest", "methods_v0", "methods_v1")


@pytest.mark.parametrize(
    ("setting", "default"),
    [
        *(
            (f"default.core.{name}", getattr(AgentConfig().core, name))
            for name in AgentConfig().core.__struct_fields__
        ),
        ("internal.address", AgentConfig().internal.address),
        ("internal-v0.address", AgentConfig().internal_v0.address),
        ("external.port", AgentConfig().external.port),
        ("guest-api.port", AgentConfig().guest_api.port),
    ],
)
def test_has_every_setting_with_its_default(setting: str, default: object) -> None:
    row = next(row for row in ROWS if f"`{setting}`" in row[0])
    shown = default[0] if isinstance(default, tuple) else default
    assert str(shown) in row[1]


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_can_be_raised(code: str) -> None:
    assert is_error_code(code)


@pytest.mark.parametrize("module", START)
def test_has_every_code_of_the_agents_own(module: str) -> None:
    source = (REPOSITORY / "enclave" / "agent" / f"{module}.py").read_text()
    raised = set(re.findall(r'Error\(\s*"(agent\.[a-z_.]+)"', source))
    assert not raised - CODES
