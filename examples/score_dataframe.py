"""A DataFrame scored: one column of probabilities per class, joined by index. Start `tabpfn-serve up`, then run:

python examples/score_dataframe.py http://127.0.0.1:8080 [MODEL]
"""

import json
import sys

import httpx
import pandas as pd


def score(frame: pd.DataFrame, url: str, model: str) -> pd.DataFrame:
    """Probabilities of every row: the index of `frame`, one column per class."""
    path = f"{url}/v1/models/{model}"
    with httpx.Client(timeout=60) as client:
        max_rows = client.get(path).raise_for_status().json()["max_rows"]  # most rows in one request
        chunks = []
        for start in range(0, len(frame), max_rows):
            chunk = frame.iloc[start : start + max_rows]
            # to_json writes missing values as null and datetimes in ISO 8601, as the server reads them
            split = json.loads(chunk.to_json(orient="split", date_format="iso"))
            body = {"columns": split["columns"], "data": split["data"]}
            # bulk: interactive requests of other callers go first
            response = client.post(f"{path}/predict", json=body, headers={"x-priority": "bulk"})
            answer = response.raise_for_status().json()
            probabilities = [prediction["probabilities"] for prediction in answer["predictions"]]
            chunks.append(pd.DataFrame(probabilities, index=chunk.index, columns=answer["classes"]))
    return pd.concat(chunks)


if __name__ == "__main__":
    url, model = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "fraud"
    example = httpx.get(f"{url}/v1/models/{model}").json()["example"]
    frame = pd.DataFrame([example] * 1000, index=[f"row-{i}" for i in range(1000)])  # your own table instead
    frame = frame.join(score(frame, url, model).add_prefix("probability_"))
    print(frame.filter(like="probability_"))
