"""How daemons serve ASGI applications: attested TLS or plain, over TCP, unix sockets or VSOCK."""
