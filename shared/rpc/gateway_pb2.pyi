from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PortAttrs(_message.Message):
    __slots__ = ("port", "pp")
    PORT_FIELD_NUMBER: _ClassVar[int]
    PP_FIELD_NUMBER: _ClassVar[int]
    port: int
    pp: bool
    def __init__(self, port: _Optional[int] = ..., pp: _Optional[bool] = ...) -> None: ...

class PortPolicy(_message.Message):
    __slots__ = ("ports", "restrict_mode")
    PORTS_FIELD_NUMBER: _ClassVar[int]
    RESTRICT_MODE_FIELD_NUMBER: _ClassVar[int]
    ports: _containers.RepeatedCompositeFieldContainer[PortAttrs]
    restrict_mode: bool
    def __init__(self, ports: _Optional[_Iterable[_Union[PortAttrs, _Mapping]]] = ..., restrict_mode: _Optional[bool] = ...) -> None: ...

class RegisterCvmRequest(_message.Message):
    __slots__ = ("client_public_key", "port_policy")
    CLIENT_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    PORT_POLICY_FIELD_NUMBER: _ClassVar[int]
    client_public_key: str
    port_policy: PortPolicy
    def __init__(self, client_public_key: _Optional[str] = ..., port_policy: _Optional[_Union[PortPolicy, _Mapping]] = ...) -> None: ...

class WireGuardPeer(_message.Message):
    __slots__ = ("pk", "ip", "endpoint")
    PK_FIELD_NUMBER: _ClassVar[int]
    IP_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    pk: str
    ip: str
    endpoint: str
    def __init__(self, pk: _Optional[str] = ..., ip: _Optional[str] = ..., endpoint: _Optional[str] = ...) -> None: ...

class WireGuardConfig(_message.Message):
    __slots__ = ("client_ip", "servers")
    CLIENT_IP_FIELD_NUMBER: _ClassVar[int]
    SERVERS_FIELD_NUMBER: _ClassVar[int]
    client_ip: str
    servers: _containers.RepeatedCompositeFieldContainer[WireGuardPeer]
    def __init__(self, client_ip: _Optional[str] = ..., servers: _Optional[_Iterable[_Union[WireGuardPeer, _Mapping]]] = ...) -> None: ...

class GuestAgentConfig(_message.Message):
    __slots__ = ("external_port", "internal_port", "domain", "app_address_ns_prefix")
    EXTERNAL_PORT_FIELD_NUMBER: _ClassVar[int]
    INTERNAL_PORT_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    APP_ADDRESS_NS_PREFIX_FIELD_NUMBER: _ClassVar[int]
    external_port: int
    internal_port: int
    domain: str
    app_address_ns_prefix: str
    def __init__(self, external_port: _Optional[int] = ..., internal_port: _Optional[int] = ..., domain: _Optional[str] = ..., app_address_ns_prefix: _Optional[str] = ...) -> None: ...

class GatewayNodeInfo(_message.Message):
    __slots__ = ("id", "uuid", "url", "last_seen", "wg_public_key", "wg_ip", "wg_endpoint")
    ID_FIELD_NUMBER: _ClassVar[int]
    UUID_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    WG_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    WG_IP_FIELD_NUMBER: _ClassVar[int]
    WG_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    id: int
    uuid: bytes
    url: str
    last_seen: int
    wg_public_key: str
    wg_ip: str
    wg_endpoint: str
    def __init__(self, id: _Optional[int] = ..., uuid: _Optional[bytes] = ..., url: _Optional[str] = ..., last_seen: _Optional[int] = ..., wg_public_key: _Optional[str] = ..., wg_ip: _Optional[str] = ..., wg_endpoint: _Optional[str] = ...) -> None: ...

class RegisterCvmResponse(_message.Message):
    __slots__ = ("wg", "agent", "gateways")
    WG_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    GATEWAYS_FIELD_NUMBER: _ClassVar[int]
    wg: WireGuardConfig
    agent: GuestAgentConfig
    gateways: _containers.RepeatedCompositeFieldContainer[GatewayNodeInfo]
    def __init__(self, wg: _Optional[_Union[WireGuardConfig, _Mapping]] = ..., agent: _Optional[_Union[GuestAgentConfig, _Mapping]] = ..., gateways: _Optional[_Iterable[_Union[GatewayNodeInfo, _Mapping]]] = ...) -> None: ...
