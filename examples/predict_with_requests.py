"""One record, one answer, with requests. Start `tabpfn-serve up`, then run:

python examples/predict_with_requests.py http://127.0.0.1:8080 [MODEL]
"""

import sys
from typing import Any

import requests


def checked(response: requests.Response) -> dict[str, Any]:
    """The body of an answer. Ends the program where the server refused the request."""
    body: dict[str, Any] = response.json()
    if response.status_code in (429, 503):  # overloaded, draining or not ready: nothing was computed
        sys.exit(f"busy, try again in {response.headers['retry-after']} s: {body['detail']}")
    if response.status_code != 200:  # `code` is for programs and never changes its meaning; `detail` is for people
        sys.exit(f"{response.status_code} {body['code']}: {body['detail']}")
    return body


def main(url: str, model: str = "fraud") -> None:
    with requests.Session() as session:  # keeps the connection open between requests
        record = checked(session.get(f"{url}/v1/models/{model}", timeout=5))["example"]
        response = session.post(
            f"{url}/v1/models/{model}/predict",
            json={"records": [record]},
            headers={"x-request-timeout-ms": "10000"},  # the server refuses at once what it cannot answer in time
            timeout=15,  # longer than the deadline, so that the server's own error arrives
        )
    answer = checked(response)
    prediction = answer["predictions"][0]
    print(prediction["label"], dict(zip(answer["classes"], prediction["probabilities"], strict=True)))


main(*sys.argv[1:])
