"""What happens to a request whichever door it is for: request id, body limit, early refusal, disconnect.

Requests for predictions use the functions and classes of these modules through `predictions.py`. Two modules also hold
a middleware in the sense of ASGI, for the requests that go to the router: `RequestId` around `BodyLimit`.
"""
