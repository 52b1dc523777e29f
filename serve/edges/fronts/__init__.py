"""Front processes: they read, refuse, encode and render requests, while the core process admits and batches them.

| file | holds |
|---|---|
| `frames` | the bytes between a front and the core: many requests or answers in one frame, and messages |
| `messages` | the messages, and a served model as plain data |
| `channel` | one end of the connection that the frames take |
| `admission_board` | the state of admission in shared memory, for early refusals |
| `core_side` | the core's end of one front: admits, answers, counts |
| `forwarding` | requests that are no predictions, answered by the core's app |
| `listener` | starts the fronts, replaces those that end, stops them |
| `front`, `remote_replica`, `report` | the front process: its server, what stands for the predictor, its counts |

What is always true: the core decides. A front refuses a request early only where the core would refuse it too, by the
same code on a copy of the core's state. A front that ends takes its own connections with it, and nothing else.
"""
