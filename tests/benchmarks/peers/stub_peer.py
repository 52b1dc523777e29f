"""A peer for the tests of the peers' run: a program that answers, and has a child process that outlives its end.

`python stub_peer.py --port PORT --engine ENGINE`; engine `broken` ends at once, `wrong` answers other numbers.
"""

import argparse
import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECOND_PROCESS = "import time\nwhile True: time.sleep(60)"


class Answerer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    shift = 0.0

    def do_POST(self) -> None:
        records = json.loads(self.rfile.read(int(self.headers["content-length"])))["records"]
        share = [1 / (2 + record["amount"]) + self.shift for record in records]
        body = json.dumps({"probabilities": [[1 - each, each] for each in share]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--engine")
    options = parser.parse_args()
    if options.engine == "broken":
        sys.exit("it is broken")
    Answerer.shift = 0.5 if options.engine == "wrong" else 0.0
    subprocess.Popen([sys.executable, "-c", SECOND_PROCESS], start_new_session=True)
    ThreadingHTTPServer(("127.0.0.1", options.port), Answerer).serve_forever()
