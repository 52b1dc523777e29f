"""LitServe with its dynamic batching (lightning.ai/docs/litserve/features/batching).

`batch_timeout` is 2 ms: the worker collects that long after it became free, and requests that arrived while it computed
are there at once. 0 would spin on the queue with a whole core, which the HTTP server and the load generator need here.
The ZeroMQ queue (`fast_queue`) is the documented choice for high rates. One worker means one model process, as
everywhere here.
"""

from typing import Any

import litserve as ls

from benchmarks.peers.servers.options import MAX_BATCH_ROWS, read_options

Records = list[dict[str, Any]]


class FraudAPI(ls.LitAPI):
    """The hooks that LitServe calls."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - the framework's own signature
        """Load the model, in the worker."""
        from benchmarks.peers.models import load_batched  # torch in the worker alone

        self.predict_all = load_batched()

    def decode_request(self, request: dict[str, Any]) -> Records:
        """The records of one request."""
        return request["records"]

    def batch(self, inputs: list[Records]) -> list[Records]:
        """The requests as they are; `predict` joins them."""
        return inputs

    def predict(self, x: list[Records]) -> list[list[list[float]]]:
        """One batch."""
        return self.predict_all(x)

    def unbatch(self, output: list[list[list[float]]]) -> list[list[list[float]]]:
        """One answer for each request."""
        return output

    def encode_response(self, output: list[list[float]]) -> dict[str, Any]:
        """The body of one answer."""
        return {"probabilities": output}


if __name__ == "__main__":
    options = read_options()
    api = FraudAPI(max_batch_size=MAX_BATCH_ROWS, batch_timeout=0.002)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=options.port, log_level="warning", generate_client_file=False, num_api_servers=1)
