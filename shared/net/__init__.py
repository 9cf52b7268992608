"""The one shared room that opens sockets: dialers, bounded fetch, JSON-RPC, the attested TLS client."""
