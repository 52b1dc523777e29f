"""Load over HTTP on one server, and the commands that measure with it.

Every command goes the same way: draw the due times (`arrivals`), send each request when it is due (`generator`,
`open_loop`, `client`), count the outcomes (`tally`), summarise them (`summary`).

| command | what it measures |
|---|---|
| `load` | latency, goodput and batch sizes of a running server at given rates |
| `demo` | the same with a server that it starts itself |
| `search` | the highest rate whose p99 keeps a bound (`probe`, `bisection`, `confirm`, `evidence`) |
| `mixed` | interactive callers beside bulk callers, and overload |
| `overhead` | the server beside the bare engine |
| `gpu_like` | the server and peers in front of a simulated GPU (`gpu_like_device`, `..._engine`, `..._server`) |
| `hostile` | ordinary callers beside callers that mean no good (`hostile_callers`) |
| `mlperf` | the verdict of MLPerf's LoadGen |

What is always true: the load is open (a slow server does not slow it down), but in `overhead` and `gpu_like`, which say
what a system can do; latency counts from the due time; answers are compared with those given alone; a generator that
lags makes its rate void; failures are part of the result. A server is known by its documented JSON alone, except in
`in_process`, which runs the engine without a server, and in `gpu_like`, which gives the server another worker.
"""
