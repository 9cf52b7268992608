"""Greets whoever connects, with a word that the host of this enclave never sees."""

import http.server
import os
import sys


class Greeter(http.server.BaseHTTPRequestHandler):
    """Answers every GET in the same way."""

    def do_GET(self) -> None:
        """Greet."""
        body = f"{os.environ.get('GREETING', 'hello')}, whoever you are\n".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Greeter)
    print("listening", flush=True)
    server.serve_forever()
